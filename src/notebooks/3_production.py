# %% [markdown]
"""
# 3. Production: deploy the model, send digits to it, detect the drift

Put the packaged model behind an endpoint, then let digits in other scripts arrive day by day.

It needs `data/package` (`dvc repro`, or `dvc pull`), and `digits local` in a second terminal.
"""

# %%
import json
import os
import tempfile
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow
import pandas as pd
import yaml
from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    CodeConfiguration,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
)
from azure.identity import DefaultAzureCredential

from azureml_emulator.client import connect

# %% [markdown]
# Connect. For your own workspace set `AZURE = True`, after `az login` and `digits azure connect`;
# nothing else changes.

# %%
AZURE = False
folders = (Path.cwd(), *Path.cwd().parents)
os.chdir(next((folder for folder in folders if Path(folder, "data/mnist").is_dir()), "."))
client = MLClient.from_config(DefaultAzureCredential()) if AZURE else connect(".emulator")
name = f"notebook-{zlib.crc32(f'{client.subscription_id}{client.workspace_name}'.encode()):x}"
print(f"workspace {client.workspace_name}, endpoint {name}")

# %% [markdown]
# The package is an MLflow model: try it here, where a mistake costs nothing.

# %%
mnist = pd.read_csv("data/mnist/test.csv", dtype="uint8")
images = mnist.iloc[:5, 1:].to_numpy().reshape(-1, 28, 28)
answer = mlflow.pyfunc.load_model("data/package").predict(images)
print("labels ", mnist["label"][:5].to_list())
print("answers", answer["digit"].tolist())

# %% [markdown]
# An endpoint is an address with keys. What answers there is a deployment: a model, the code that
# serves it (`score.py`, which Azure calls for each request), its packages, and a machine.

# %%
endpoint = ManagedOnlineEndpoint(name=name, auth_mode="key")
client.online_endpoints.begin_create_or_update(endpoint).result()
deployment = ManagedOnlineDeployment(
    name="blue",
    endpoint_name=name,
    model=Model(name="notebook", path="data/package", type="custom_model"),
    code_configuration=CodeConfiguration(code="src/digits/serving", scoring_script="score.py"),
    environment=Environment(
        image=yaml.safe_load(Path("params.yaml").read_text("utf-8"))["azure"]["image"],
        conda_file="data/package/conda.yaml",
    ),
    instance_type="Standard_DS2_v2",
    instance_count=1,
)
client.online_deployments.begin_create_or_update(deployment).result()
endpoint.traffic = {"blue": 100}
client.online_endpoints.begin_create_or_update(endpoint).result()
print(client.online_endpoints.get(name).scoring_uri)

# %% [markdown]
# Ten days of 200 digits each: first all are from MNIST, then more and more from other scripts.

# %%
scripts = [pd.read_csv(path, dtype="uint8") for path in Path("data/foreign").glob("*_test.csv")]
foreign, request = pd.concat(scripts), Path(tempfile.mkdtemp(), "request.json")
days = []
for day, others in enumerate([0, 0, 0, 0, 0, 10, 20, 40, 60, 80]):
    sent = [mnist.sample(200 - others, replace=True, random_state=day)]
    digits = pd.concat([*sent, foreign.sample(others, replace=True, random_state=day)])
    request.write_text(json.dumps({"data": digits.iloc[:, 1:].to_numpy().tolist()}))
    found = json.loads(client.online_endpoints.invoke(name, request_file=str(request)))
    answers = pd.DataFrame(found["predictions"]).assign(label=digits["label"].to_list())
    right = answers["digit"] == answers["label"].astype(str)
    unusual = answers["ood_score"] > 0.5
    days.append({"others": others, "accuracy": right.mean(), "unusual": unusual.mean()})
table = pd.DataFrame(days)
print(table.round(3).to_string())

# %% [markdown]
# Accuracy needs true labels, which come late or never. The share of digits with an OOD score
# above 0.5 needs none: it is 1 % for digits like the training data, and drift if it is more than
# 3 standard errors above that.

# %%
limit = 0.01 + 3 * (0.01 * 0.99 / 200) ** 0.5
axis = table[["accuracy", "unusual"]].plot(marker="o", xlabel="day", ylabel="share", ylim=(0, 1))
axis.axhline(limit, linestyle="--", color="gray")
Path("outputs").mkdir(exist_ok=True)
plt.savefig("outputs/drift.png")
print(f"drift above {limit:.3f}, on days {table.index[table['unusual'] > limit].to_list()}")

# %% [markdown]
# Delete the endpoint, even if a cell above failed: until then its machine costs money on Azure.

# %%
client.online_endpoints.begin_delete(name).result()
