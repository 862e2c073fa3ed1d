"""The client for strangers patches in Azure's SDK what mlops.azure.workspace patches, no less."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, environment

from azureml_emulator.web import EmulatorError

pytestmark = pytest.mark.slow

# Prints what a call of connect changes: in the environment, and in modules and classes of the SDK.
CHANGES = """
import json, logging, os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from {module} import connect


def plain(value):
    if isinstance(value, dict):
        return {{str(key): plain(one) for key, one in value.items()}}
    return value if isinstance(value, (str, int, float, type(None))) else id(value)


def snapshot():
    found = {{f"environment {{name}}": value for name, value in os.environ.items()}}
    found["logger"] = logging.getLogger("azure.ai.ml").level
    for name, module in list(sys.modules.items()):
        if not name.startswith("azure.ai.ml"):
            continue
        for key, value in vars(module).items():
            found[f"{{name}}.{{key}}"] = plain(value)
            if isinstance(value, type) and value.__module__ == name:
                for inner, one in vars(value).items():
                    found[f"{{name}}.{{key}}.{{inner}}"] = plain(one)
    return found


before = snapshot()
{call}
after = snapshot()
changed = {{key: after[key] for key in before.keys() & after.keys() if before[key] != after[key]}}
changed |= {{key: after[key] for key in after.keys() - before.keys() if key.startswith("env")}}
print(json.dumps(changed))
"""
CONNECTS = {
    "azureml_emulator.client": "connect(sys.argv[1])",
    "mlops.azure.workspace": 'connect("local", Path(sys.argv[1]))',
}


@pytest.mark.prove
def test_both_clients_patch_the_same(tmp_path: Path) -> None:
    address = {"url": "https://127.0.0.1:1", "blobs": "http://127.0.0.1:2", "port": 1}
    address |= {"secret": "secret", "certificate": str(tmp_path / "authority.pem")}
    (tmp_path / "address.json").write_text(json.dumps(address))
    plain = {key: value for key, value in environment().items() if key.upper() != "NO_PROXY"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHANGES.format(module=module, call=call), str(tmp_path)],
            env=plain | {"PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.PIPE,
        )
        for module, call in CONNECTS.items()
    ]
    theirs, ours = (json.loads(process.communicate(timeout=120)[0]) for process in processes)
    # Each command of ours exempts loopback from a proxy, in core.console; a stranger's does not.
    for name in ("NO_PROXY", "no_proxy"):
        assert theirs.pop(f"environment {name}") == "127.0.0.1"
        ours.pop(f"environment {name}", None)
    assert {key: value for key, value in theirs.items() if comparable(key, value)} == {
        key: value for key, value in ours.items() if comparable(key, value)
    }
    assert theirs.keys() == ours.keys()
    for name in ("POLL_INTERVAL", "STORAGE_ACCOUNT_URLS", "check_blob_exists"):
        assert any(name in key for key in ours), f"{name} is seen to be patched"


def comparable(key: str, value: Any) -> bool:
    """Return whether a value says the same in two processes: no address of an object."""
    return not isinstance(value, int) and "CLOUD" not in key.upper() and "_environments" not in key


@pytest.mark.filterwarnings("ignore")  # of what the SDK imports
def test_without_an_emulator_it_says_how_to_start_one(tmp_path: Path) -> None:
    from azureml_emulator.client import connect

    with pytest.raises(
        EmulatorError, match=r"address.json: not found, or incomplete. Start the emulator"
    ):
        connect(tmp_path)
