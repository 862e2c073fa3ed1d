"""The package's conda.yaml, as a conda user installs it, without conda and without a network.

It is all that the endpoint has: its code answers a request there.
"""

import os
import subprocess
from pathlib import Path

import pytest
import run
import yaml
from conftest import Project, environment

LOAD = """
import json, os, sys
import mlflow
import numpy as np
package, serving = sys.argv[1:]
answer = mlflow.pyfunc.load_model(package).predict(np.zeros((1, 28, 28), np.uint8))
print(sys.prefix, answer["digit"].shape)
os.environ["AZUREML_MODEL_DIR"] = package
sys.path.insert(0, serving)
import batch, request, score
batch.init()
print(len(batch.service.scores(np.zeros((3, 28, 28), np.uint8), None)[0]))
try:
    import matplotlib
except ModuleNotFoundError:
    print("alone")
"""


@pytest.mark.prove(minutes=1)
def test_its_pip_section_installs_and_loads_the_model(reproduced: Project, tmp_path: Path) -> None:
    """From the cache that `make env` filled, in an environment of its own.

    conda gives Python and pip; uv, which is locked, takes the place of pip and checks that the pins
    satisfy each other.
    """
    package = reproduced.root / "data" / "package"
    conda = yaml.safe_load((package / "conda.yaml").read_text("utf-8"))
    version, pip, section = conda["dependencies"]
    assert (version[:7], pip, list(section)) == ("python=", "pip", ["pip"])
    (tmp_path / "pip.txt").write_text("\n".join(section["pip"]) + "\n", "utf-8")
    env, folder, uv = environment(), tmp_path / "served", str(run.BIN / "uv")
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    for arguments in (
        ["venv", "--offline", "--python", str(run.PYTHON), str(folder)],
        ["pip", "sync", "--offline", "--python", python, str(tmp_path / "pip.txt")],
        ["pip", "check", "--python", python],
    ):
        subprocess.run([uv, *arguments, "--quiet"], env=env, check=True)
    serving = str(reproduced.root / "src" / "digits" / "serving")
    loading = [python, "-W", "ignore", "-c", LOAD, str(package), serving]
    printed = subprocess.check_output(loading, env=env, text=True, stderr=subprocess.DEVNULL)
    assert printed == f"{folder} (1,)\n3\nalone\n"
