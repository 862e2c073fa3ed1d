# %% [markdown]
"""
# 2. Cloud: the same notebook as a job of Azure Machine Learning

Upload notebook 1 with some digits, let a machine of the workspace run it, and download its files
in `outputs/`.

The local services need no account: start them in a second terminal with `digits local`.
"""

# %%
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import Environment, ManagedIdentityConfiguration
from azure.identity import DefaultAzureCredential
from azure.storage.blob import ContainerClient

from azureml_emulator.client import connect

# %% [markdown]
# Connect. For your own workspace set `AZURE = True`, after `az login` and `digits azure connect`;
# nothing else changes.

# %%
AZURE = False
folders = (Path.cwd(), *Path.cwd().parents)
os.chdir(next((folder for folder in folders if Path(folder, "data/mnist").is_dir()), "."))
if AZURE:
    client = MLClient.from_config(DefaultAzureCredential())
    blobs = "https://{}.blob.core.windows.net"
else:
    client = connect(".emulator")
    blobs = json.loads(Path(".emulator/address.json").read_text("utf-8"))["blobs"] + "/{}"
print(f"workspace {client.workspace_name}")

# %% [markdown]
# A job runs in a copy of one folder. This one has notebook 1, and only 10,000 digits to train on,
# to keep the upload small.

# %%
code = Path(tempfile.mkdtemp())
shutil.copy("src/notebooks/1_data_science.py", code)
Path(code, "data/mnist").mkdir(parents=True)
shutil.copy("data/mnist/test.csv", code / "data/mnist")
pd.read_csv("data/mnist/train.csv", nrows=10_000).to_csv(code / "data/mnist/train.csv", index=False)
print(*(path.relative_to(code) for path in code.rglob("*.*")), sep="\n")

# %% [markdown]
# Submit it with the locked packages of the pipeline. Azure starts a machine for the job and
# stops it afterwards (`instance_type` is its size); locally a process runs it.

# %%
environment = Environment(
    image=yaml.safe_load(Path("params.yaml").read_text("utf-8"))["azure"]["image"],
    conda_file="data/package/conda.yaml",
)
job = client.jobs.create_or_update(
    command(
        experiment_name="notebooks",
        code=str(code),
        command="python 1_data_science.py",
        environment=environment,
        instance_type="Standard_DS3_v2",
        identity=ManagedIdentityConfiguration(),
    )
)
print(f"submitted {job.name}")

# %% [markdown]
# Poll its status until it has ended. The first job on Azure waits some minutes for its machine.

# %%
status = ""
while status not in ("Completed", "Failed", "Canceled"):
    before, status = status, client.jobs.get(job.name).status
    if status != before:
        print(status.lower())
    time.sleep(5 if AZURE else 0.5)

# %% [markdown]
# The workspace's blob store keeps the log and the folder `outputs` of each job. Access it with its
# key, or with your login if it has none.

# %%
store = client.datastores.get("workspaceartifactstore", include_secrets=True)
container = ContainerClient(
    blobs.format(store.account_name),
    store.container_name,
    credential=getattr(store.credentials, "account_key", None) or DefaultAzureCredential(),
)
kept = f"ExperimentRun/dcid.{job.name}/"
for name in container.list_blob_names(name_starts_with=kept):
    target = Path("outputs", "cloud", name.removeprefix(kept))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(container.download_blob(name).readall())
    print(target)

# %% [markdown]
# The log is what the notebook printed. When a job fails, the last lines of the log show why.

# %%
log = Path("outputs/cloud/user_logs/std_log.txt").read_text("utf-8")
print("\n".join(log.splitlines()[-15:]))
assert status == "Completed", f"the job {job.name} ended as {status}"

# %% [markdown]
# The model is here now, and so are the figures that the job computed.

# %%
print(Path("outputs/cloud/outputs/metrics.json").read_text("utf-8"))
