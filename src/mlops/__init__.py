"""The life cycle of a model: review, deployment, jobs, production. It knows the model by files.

Whoever brings another model replaces `src/digits`, `dvc.yaml` and the model's values in
params.yaml, and keeps core, mlops and azureml_emulator as they are. The two sides meet here:

dvc.yaml, dvc.lock       The stages, each run as `python src STAGE ...`. One has the output
                         data/package. Required.
params.yaml              mlops reads the sections `azure` and `review`, and the top-level values
                         through core.params. It passes any other section on without parsing it,
                         save `monitor` and `simulate`, which digits.monitoring and
                         digits.production parse for the commands of those names.
data/evaluation/         metrics.json: {SOURCE: {METRIC: number}}, in git. Required. The gate names
                         sources and metrics. METRIC_low and METRIC_high give a 95 % interval.
data/package/            The model folder: registered, and mounted below AZUREML_MODEL_DIR.
  conda.yaml             The environment that serves it. Required.
  smoke.jsonl            Requests with known answers, one JSON object a line; see deploy.smoke.
                         Required. deploy sends the first `azure.smoke.digits`, also to a revision
                         that it rolls back to, and requires the share `azure.smoke.accuracy`.
  MLmodel                `model_uuid` begins with the `model_version` of the answers, if they have
                         one. Optional: without it any model may answer.
  data/model/manifest.json   `data`: {NAME: hash} becomes tags of the registered model. Optional.
azure.code               A folder in git with score.py, whose `init` and `run` answer requests. All
                         of it is uploaded. batch.py, if there is one, scores files in batches.

The report shows these as well, where they exist: data/evaluation/per_class.csv (source, class,
accuracy, count), data/model/curves.csv (epoch, validation_accuracy, validation_loss),
data/monitoring/metrics.json (as metrics.json) and data/noise.json (`make noise`).

.github/MAKE_IT_YOURS.md has the commands that merge a later version of core and mlops.
tests/second_model holds a small model of another kind, for which all this is tested.
"""
