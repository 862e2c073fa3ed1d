"""A digit recogniser, from CSV to prediction; read the modules in this order.

params      params.yaml, read strictly: the only place with values
errors      the one error that a person reads
exact       settings without which processors compute differently
console     what every command does around its work
files       files that are whole or absent
dataset     `Digits`: images, labels, where they come from; CSV files and pools
normalise   any ink to MNIST's normal form
sources     real digits on disk: CSV, IDX, archives of images
glyphs      digits rendered from fonts with the variation of a hand
model       the network, its output contract, its file
distance    how foreign an image looks
hint        what it is worth to be told the script
lineage     which scripts, data and params a model came from
augmentation digits turned and moved, images of nothing
training    the loop that trains it
cluster     which machines train together
distributed the loop on several machines
metrics     what is measured
production  requests that were answered, and labels that came later
traffic     what production is asked: a schedule to a stream of requests
summary     requests as small counts that sum in any order
drift       requests without labels, judged against what the model knows
monitoring  windows of requests with verdicts, alarms and accuracy
story       the same as a page for people
scoring     score.py in a process of its own

pipeline.mnist      the digits that the model is for     -> data/mnist/*.csv
pipeline.foreign    digits in scripts it does not know   -> data/foreign/*.csv
pipeline.prepare    CSVs to arrays in separate pools     -> data/prepared/*.npz
pipeline.train      pools to a calibrated model          -> data/model
pipeline.evaluate   the model on digits it never saw     -> data/evaluation
pipeline.package    the model as an MLflow model folder  -> data/package
pipeline.simulate   production traffic, answered         -> data/production
pipeline.monitor    what monitoring makes of it          -> data/monitoring

serving.digit_model the loader that travels in that folder
serving.request     what a client sends, decoded
serving.score       the endpoint: a request in, an answer out
serving.batch       the batch endpoint: files in, files of answers out
batch_scoring       the same on all cores of this machine
inference           Azure's inference server on this machine
azure.release       what of this commit is to be deployed, or why not
azure.connection    who may do what, and what the repository keeps of Azure
azure.commands      `az` and `gh`, asked and run
azure.workspace     the real workspace or the stand-in's, one code path
azure.failure       what went wrong, with cause and mend
azure.revisions     what was live, and of what it was made
azure.assets        what is registered for them, what uses it, its removal
azure.endpoint      one endpoint: traffic, deployments, asking it
azure.lease         one deployment at a time
azure.collected     what production kept: requests and labels
azure.monitor       `digits monitor`
azure.plan          what a deployment would change, take and cost
azure.deploy        `digits deploy`
azure.sending       a stream sent to an endpoint, none of it lost or counted twice
azure.simulate      `digits simulate`: traffic for a live endpoint
azure.connect       `digits connect`: a subscription, from nothing to ready
azure.disconnect    `digits disconnect`: the way back
azure.results       what a job leaves: files by their hash, the run cache, its account
azure.worker        the pipeline inside a job
azure.job           a job: what it is made of, its log, what it left
azure.train         `digits train`: the pipeline as a job
azure.sweep         `digits sweep`: many values of params.yaml, as DVC experiments
azure.batch_endpoint files scored by a batch endpoint of the workspace
azure.score         `digits score`: files of digits, here or by a batch endpoint
azure.doctor        `digits doctor`: what stands in the way, each with its mend
azure.manager       Azure's resource manager, where the SDK has no call
azure.standin       the stand-in's resources and operations
azure.jobs          its jobs and computes
azure.batches       its batch endpoints and their jobs
azure.management    Azure's API before them
azure.router        the endpoint: keys, weights, one server a deployment
azure.detector      the reference and the settings by which windows are judged live
azure.watch         what production does now: requests, windows, labels, within bounds
azure.page          the page of it, and of one's own digits: web/
azure.serve         `digits serve`, which starts it all
review.history      the commit to compare with, and files as git has them
review.side         one side of a comparison, read without trust
review.reproduce    `dvc repro`, and what it says of each stage
review.compare      what differs: metrics against noise, classes, params, data
review.gate         what a change may do to the metrics
review.report       all that a review tells
review.markdown     the same as Markdown
review.command      `digits review`
review.relock       `digits relock`
review.retrain      `digits retrain`: an experiment with the labelled digits of production
review.github       GitHub's API, for the jobs that may write:
review.comment      the report as one comment
review.commit       dvc.lock and metrics as a commit
review.publish      what was computed, into the container `review`
review.upkeep       how the weekly run ended
review.alarm        drift as one issue
review.propose      a retraining as a pull request
cli                 `digits COMMAND`, for people and workflows
noise               how much the metrics differ between seeds alone
bench               how fast it trains, against the Keras documentation's convnet
bench_serve         how fast the endpoint answers
bench_workers       when more machines pay
realism             how like real handwriting the rendered digits are
"""
