"""The repository's connection to Azure: the storage account and the workspace."""

import json
import os
from pathlib import Path

import configobj

from core.errors import DigitsError
from core.files import write_text

DVC = Path(".dvc/config")
WORKSPACE = Path(".azureml/config.json")  # what MLClient.from_config reads
API = "2025-12-01"  # Azure ML's API version, as in the template and the SDK
REMOTES = ("main", "review")
# The variables that identify the workspace for workflows and commands, with their WORKSPACE keys.
NAME = "AZURE_ML_WORKSPACE"
SETTINGS = {
    "AZURE_SUBSCRIPTION_ID": "subscription_id",
    "AZURE_RESOURCE_GROUP": "resource_group",
    NAME: "workspace_name",
}
# Where the emulator on this machine writes address.json.
EMULATOR = Path(os.environ.get("DIGITS_LOCAL_FOLDER", ".emulator"))


def workspace_id(values: dict[str, str]) -> str:
    """Return the workspace's resource id, from the variables in SETTINGS."""
    subscription, group, name = (values[key] for key in SETTINGS)
    provider = "Microsoft.MachineLearningServices/workspaces"
    return f"/subscriptions/{subscription}/resourceGroups/{group}/providers/{provider}/{name}"


def load_connection() -> dict[str, str]:
    """Return the variables in SETTINGS as stored in the repository, {} when not connected.

    Raises DigitsError when the file is invalid.
    """
    if not WORKSPACE.exists():
        return {}
    try:
        values = json.loads(WORKSPACE.read_text("utf-8"))
        return {name: str(values[key]) for name, key in SETTINGS.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise DigitsError(
            f"{WORKSPACE}: expected {', '.join(SETTINGS.values())}, found {error!r}. Write it "
            "again: digits azure connect"
        ) from None


def save_connection(values: dict[str, str] | None) -> list[Path]:
    """Write the connection, or remove it for None; return the files that changed.

    Needs AZURE_STORAGE_ACCOUNT and the variables in SETTINGS.
    """
    config = _config()
    for section in _remotes(config):
        if values:
            section["account_name"] = values["AZURE_STORAGE_ACCOUNT"]
        else:
            section.pop("account_name", None)
    texts = {DVC: "\n".join([*config.write(), ""]), WORKSPACE: ""}
    if values:
        workspace = {key: values[name] for name, key in SETTINGS.items()}
        texts[WORKSPACE] = json.dumps(workspace, indent=2) + "\n"
    changed = []
    for path, text in texts.items():
        if text == (path.read_text("utf-8") if path.exists() else ""):
            continue
        changed.append(path)
        if text:
            write_text(path, text)
        else:
            path.unlink()
    return changed


def _config() -> configobj.ConfigObj:
    try:
        config = configobj.ConfigObj(DVC.read_text("utf-8").splitlines())
        _remotes(config)
    except (OSError, ValueError, KeyError, configobj.ConfigObjError) as error:
        raise DigitsError(
            f"{DVC}: expected the remotes {' and '.join(REMOTES)}, found {error!r}. In the "
            f"project's root: git checkout {DVC}"
        ) from None
    return config


def _remotes(config: configobj.ConfigObj) -> list[dict[str, str]]:
    return [config[f'remote "{remote}"'] for remote in REMOTES]
