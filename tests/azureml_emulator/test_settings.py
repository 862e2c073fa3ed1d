"""settings.json: sizes, quota, and how long an image takes to be built."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from emulated import Client, emulated

from azureml_emulator.services import deployments
from azureml_emulator.settings import Settings, read_settings
from azureml_emulator.web import EmulatorError


def write(folder: Path, **settings: Any) -> None:
    """Write settings.json."""
    (folder / "settings.json").write_text(json.dumps(settings))


def test_without_a_file_they_are_the_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == Settings()
    write(tmp_path, image_build_seconds=30)
    assert read_settings(tmp_path) == Settings(image_build_seconds=30)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{", "the file"),
        ('{"quotas": {}}', "quotas"),
        ('{"quota": {"a": "many"}}', "quota.a"),
        ('{"sizes": {"a": [4]}}', "sizes.a.1"),
        ('{"image_build_seconds": -1}', "image_build_seconds"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(EmulatorError, match=rf"settings.json: {place}: .*Correct or delete it"):
        read_settings(tmp_path)


def test_a_duration_is_iso_8601() -> None:
    assert [deployments.duration(text) for text in ("PT1M30S", "P7D")] == [90, 604_800]


def test_an_image_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    router = SimpleNamespace(aborted=MagicMock())
    settings = Settings(image_build_seconds=30)
    state: Any = SimpleNamespace(lock=threading.Lock(), images={}, settings=settings, router=router)
    for now, waited in ((100, 30), (110, 20), (200, 0)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        deployments.build_image(state, "environment")
        router.aborted.wait.assert_called_with(waited)
    deployments.build_image(state, "another")
    router.aborted.wait.assert_called_with(30)


@pytest.mark.slow
def test_sizes_quota_and_builds_are_those_that_are_set(tmp_path: Path) -> None:
    sizes = {"Standard_X": [2, "xFamily"], "Standard_Y": [2, "yFamily"]}
    write(tmp_path, sizes=sizes, quota={"xFamily": 4}, image_build_seconds=1000)
    with emulated(tmp_path) as client:
        code = client.code("any", {"score.py": ""}, tmp_path)
        client.endpoint("set")
        assert refused(client, code, "Standard_DS2_v2", 1) == "BadArgument"
        assert refused(client, code, "Standard_Y", 1) == "BadRequest"  # no quota
        assert refused(client, code, "standard_x", 2) == "BadRequest"  # more than there is
        assert refused(client, code, "standard_x", 1) == ""
        found = client.call("GET", "/onlineEndpoints/set/deployments/blue")[1]["properties"]
        # Its image is being built.
        assert (found["instanceType"], found["provisioningState"]) == ("Standard_X", "Creating")


def refused(client: Client, code: str, size: str, count: int) -> str:
    """Ask for a deployment; return the code of the refusal, if it is refused."""
    properties: dict[str, Any] = {"instanceType": size, "environmentId": "e"}
    properties |= {"codeConfiguration": {"codeId": code, "scoringScript": "score.py"}}
    body = {"location": "x", "properties": properties, "sku": {"capacity": count}}
    answer = client.call("PUT", "/onlineEndpoints/set/deployments/blue", body)[1]
    return str(answer.get("error", {}).get("code", ""))
