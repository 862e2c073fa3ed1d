"""Score files with a batch endpoint of the workspace: upload them, wait, download the answers.

A folder that is already in a datastore of the workspace is scored in place. One file is one
mini-batch, so split a large one to use several processes. The answers' folder records the job, so
that an interrupted run continues. Each job writes to its own folder; complete answers are
downloaded from failed jobs too, and the next job scores only the other files.
"""

import hashlib
import json
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from azure.ai.ml import Input, Output
from azure.ai.ml.constants import AssetTypes, BatchDeploymentOutputAction
from azure.ai.ml.entities import (
    BatchEndpoint,
    BatchRetrySettings,
    CodeConfiguration,
    Environment,
    ModelBatchDeployment,
    ModelBatchDeploymentSettings,
    ResourceConfiguration,
)
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import ContainerClient

from core.errors import DigitsError
from core.files import atomic_write, sha256, write_text
from mlops.azure.assets import BATCH_ENVIRONMENT, OWNER
from mlops.azure.endpoint import COST, SCORED, Target
from mlops.azure.revisions import MODEL, Release, stage_code
from mlops.azure.settings import Params
from mlops.azure.workspace import quiet, store

# Names from batch.py in the endpoint's code folder: an environment variable; the file with the
# reason why an input could not be scored; the file that marks a complete folder.
SCRIPT, ERROR, SUCCESS = "DIGITS_SCRIPT", "_ERROR", "_SUCCESS"
URI = "azureml://datastores/workspaceblobstore/paths/{}"
OTHERS = 10  # other deployments to keep: their jobs may be running; the limit is 20
JOB = "job.json"  # in the answers' folder
# The packages that batch.py imports, in the model's versions, and those of Azure's batch driver.
# The driver requires older NumPy and pyarrow, so the complete lock cannot be installed with it.
PINNED = ["azureml-ai-monitoring", "azureml-inference-server-http", "keras", "pandas", "pillow"]
PINNED += ["tensorflow", "tensorflow-cpu"]
DRIVER = ["azureml-core", "azureml-dataset-runtime[fuse]>=1.61"]
STORED = re.compile("azureml://datastores/([A-Za-z0-9_]+)/paths/(.+?)/?")
DONE, FAILED = ("Completed",), ("Failed", "Canceled", "NotResponding")


class Batch:
    """The batch endpoint of a workspace, and one deployment for this commit's model."""

    def __init__(self, target: Target, new: Release, script: str | None) -> None:
        """Derive the names of endpoint and deployment from their content."""
        self.target, self.new, self.script = target, new, script
        self.settings: Params = target.settings
        self.client = target.client
        self.own = self.settings.batch
        self.name = target.batch
        if new.code / "batch.py" not in new.code_files:
            raise DigitsError(f"params.yaml: azure.code: git has no {new.code}/batch.py; add it")
        (*_, pip) = new.conda["dependencies"]
        packages = pip["pip"] if isinstance(pip, dict) else []
        pinned = [line for line in packages if line.partition("==")[0] in PINNED]
        self.conda = new.conda | {
            "dependencies": [*new.conda["dependencies"][:1], "pip", {"pip": pinned + DRIVER}]
        }
        made_of = [repr(self.own), self.settings.image, json.dumps(self.conda), new.package_hash]
        made_of += [script or "", *(f"{path.name} {sha256(path)}" for path in new.code_files)]
        self.digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:10]
        self.deployment = f"b{self.digest}"

    def prepare(self) -> None:
        """Create the endpoint and the deployment if missing; make the deployment the default."""
        endpoints, deployments = self.client.batch_endpoints, self.client.batch_deployments
        with quiet():
            try:
                endpoint: Any = endpoints.get(self.name)
            except ResourceNotFoundError:
                endpoint = BatchEndpoint(name=self.name, tags=dict(COST))
                endpoints.begin_create_or_update(endpoint).result()
            known = list(deployments.list(self.name))
            states = {one.name: str(one.provisioning_state) for one in known}
            if states.get(self.deployment) != "Succeeded":
                self._deploy()
            endpoint = endpoints.get(self.name)
            defaults = endpoint.defaults
            if getattr(defaults, "deployment_name", None) != self.deployment:
                endpoint.defaults = {"deployment_name": self.deployment}
                endpoints.begin_create_or_update(endpoint).result()
            others = [one for one in known if one.name != self.deployment]
            others.sort(key=lambda one: one.creation_context.created_at)
            for one in others[:-OTHERS]:
                deployments.begin_delete(one.name, self.name).result()

    def _deploy(self) -> None:
        own = self.own
        version = self.target.register(self.new)
        environment = Environment(
            name=BATCH_ENVIRONMENT,
            version=self.digest,
            image=self.settings.image,
            conda_file=self.conda,
            tags={OWNER: self.target.name},
        )
        with tempfile.TemporaryDirectory() as folder:
            deployment = ModelBatchDeployment(
                name=self.deployment,
                endpoint_name=self.name,
                tags=dict(COST),
                model=f"{self.target.scope}/models/{MODEL}/versions/{version}",
                code_configuration=CodeConfiguration(
                    code=str(stage_code(self.new, Path(folder))), scoring_script="batch.py"
                ),
                environment=environment,
                compute=own.compute,
                resources=ResourceConfiguration(instance_count=own.instances),
                settings=ModelBatchDeploymentSettings(
                    mini_batch_size=1,
                    max_concurrency_per_instance=own.processes,
                    output_action=BatchDeploymentOutputAction.SUMMARY_ONLY,
                    retry_settings=BatchRetrySettings(
                        max_retries=own.retries, timeout=own.timeout_seconds
                    ),
                    error_threshold=0,
                    logging_level="info",
                    environment_variables={SCRIPT: self.script or ""},
                ),
            )
            self.client.batch_deployments.begin_create_or_update(
                deployment, skip_script_validation=True
            ).result()

    def score(self, source: list[Path] | str, out: Path) -> None:
        """Score files, or a stored folder given by its address; download the answers to `out`.

        Raises DigitsError when the address is invalid or the folder is empty.
        """
        if isinstance(source, str):
            contents, what = self._listed(source), source
        else:
            contents = "\n".join(sorted(f"{path.name} {sha256(path)}" for path in source))
            what = f"{len(source)} files"
        run = hashlib.sha256(f"{self.digest}\n{contents}".encode()).hexdigest()[:16]
        container = store(self.target.workspace)
        out.mkdir(parents=True, exist_ok=True)
        known = self._known(out / JOB, run)
        name, answers = known or ("", "")
        if known is None or self._status(name) in FAILED:
            if known and not isinstance(source, str):
                source = [path for path in source if not (out / path.name / SUCCESS).exists()]
            name, answers = self._begin(source, run, container)
            write_text(out / JOB, json.dumps({"run": run, "job": name, "answers": answers}) + "\n")
        print(f"job {name} scores {what} on {self.own.compute}", flush=True)
        try:
            self.wait(name, container, answers)
        except DigitsError:
            fetch(container, answers, out)
            raise
        fetch(container, answers, out)

    def _begin(
        self, source: list[Path] | str, run: str, container: ContainerClient
    ) -> tuple[str, str]:
        """Upload the files and start a job; return its name and the folder of its answers."""
        self.prepare()
        folder = f"{SCORED.format(endpoint=self.name)}/{run}-{secrets.token_hex(4)}"
        uri = source if isinstance(source, str) else URI.format(f"{folder}/input")
        for path in () if isinstance(source, str) else source:
            with path.open("rb") as data:
                container.upload_blob(f"{folder}/input/{path.name}", data)
        answers = f"{folder}/answers/"
        with quiet():
            job = self.client.batch_endpoints.invoke(
                endpoint_name=self.name,
                deployment_name=self.deployment,  # the default may be another's by now
                inputs={"digits": Input(type=AssetTypes.URI_FOLDER, path=f"{uri.rstrip('/')}/")},
                outputs={"score": Output(type=AssetTypes.URI_FOLDER, path=URI.format(answers))},
            )
        return str(job.name), answers

    def _listed(self, uri: str) -> str:
        """Return a fingerprint of a stored folder's content."""
        match = STORED.fullmatch(uri)
        if match is None:
            form = "azureml://datastores/NAME/paths/FOLDER"
            raise DigitsError(f"{uri}: is not a folder's address. Expected {form}")
        name, folder = match.groups()
        found = list(store(self.target.workspace, name).list_blobs(name_starts_with=f"{folder}/"))
        names = [Path(blob.name).name for blob in found]
        names = [name for name in names if not name.startswith(("_", "."))]  # markers, as in Hadoop
        if not names:
            raise DigitsError(f"{uri}: contains no files. Give the address of a folder.")
        if twice := {name for name in names if names.count(name) > 1}:
            raise DigitsError(f"{uri}: {min(twice)} occurs twice. Score folders one by one.")
        return "\n".join([uri, *sorted(f"{one.name} {one.size} {one.etag}" for one in found)])

    def _known(self, path: Path, run: str) -> tuple[str, str] | None:
        """Return the last job that scored these files and the folder of its answers."""
        if not path.exists():
            return None
        try:
            known = json.loads(path.read_text("utf-8"))
            other, job, answers = known["run"] != run, str(known["job"]), str(known["answers"])
        except (ValueError, KeyError, TypeError) as error:
            fix = "choose another --out"
            raise DigitsError(f"{path}: not written by `digits score` ({error!r}); {fix}") from None
        if other:
            raise DigitsError(f"{path}: has answers of other files or model; choose another --out")
        return job, answers

    def _status(self, job: str) -> str:
        """Return a job's status; a deleted one counts as failed."""
        try:
            status = self.client.jobs.get(job).status
        except ResourceNotFoundError:
            return FAILED[0]
        return str(getattr(status, "value", status))

    def wait(self, name: str, container: ContainerClient, answers: str) -> None:
        """Return when the job is completed; raise DigitsError with the reason when it fails."""
        while (status := self._status(name)) not in DONE:
            if status in FAILED:
                faults = [
                    container.download_blob(blob).readall().decode()
                    for blob in container.list_blob_names(name_starts_with=answers)
                    if blob.endswith("/" + ERROR)
                ]
                reason = "; ".join(faults) or "see its log"
                raise DigitsError(f"job {name} ended as {status}: {reason}; fix this and run again")
            time.sleep(self.target.workspace.poll_seconds)


def fetch(container: ContainerClient, prefix: str, out: Path) -> None:
    """Download the complete folders; the mark of each is downloaded last."""
    names = list(container.list_blob_names(name_starts_with=prefix))
    folders = {name.removesuffix(SUCCESS) for name in names if name.endswith("/" + SUCCESS)}
    complete = [name for name in names if f"{name.rpartition('/')[0]}/" in folders]
    for name in sorted(complete, key=lambda name: name.endswith(SUCCESS)):
        if not name.endswith(ERROR):  # of an earlier attempt
            file = out / name.removeprefix(prefix)
            if not file.resolve().is_relative_to(out.resolve()):
                raise DigitsError(f"the blob {name!r} would be written outside {out}; delete it")
            with atomic_write(file) as partial:
                partial.write_bytes(container.download_blob(name).readall())
