"""The record of what was played on GitHub and Azure, and what README says of it."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import verified
from benchmarks.verified import NotPlayed, passage, redacted
from core.errors import DigitsError
from mlops import git

ID = "0f2d6b4e-1111-2222-3333-444455556666"


def test_readme_says_what_the_record_says() -> None:
    record = ROOT / verified.OUT
    known = json.loads(record.read_text("utf-8")) if record.exists() else {}
    text = (ROOT / verified.README).read_text("utf-8")
    assert f"<!-- verified -->{passage(known)}<!-- end of verified -->" in text


def test_steps_are_played_until_one_fails_and_the_last_always() -> None:
    def fail() -> None:
        raise DigitsError("no")

    def skip() -> None:
        raise NotPlayed("not on this plan")

    steps = {"a": lambda: None, "b": skip, "c": fail, "d": lambda: None, "e": lambda: None}
    rows = verified.play(steps)
    assert {name: row["result"] for name, row in rows.items()} == {
        "a": "ok",
        "b": "not played: not on this plan",
        "c": "failed: no",
        "e": "ok",
    }


def test_a_record_is_kept_for_each_service_and_readme_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(git, "commit", lambda _: "a" * 40)
    monkeypatch.setattr(verified, "now", lambda: "2026-12-01T08:00:00Z")
    verified.README.write_text("Before <!-- verified -->**?**<!-- end of verified --> after\n")
    right = {"result": "ok", "ended": "2026-12-01T08:00:00Z"}
    wrong = right | {"result": "failed: x"}
    assert verified.keep("azure", {"deploy": right}, [])
    assert verified.README.read_text() == (
        "Before <!-- verified -->**Not yet run on GitHub. Verified on Azure on 2026-12-01 at "
        "`aaaaaaa`: deploy.**<!-- end of verified --> after\n"
    )
    skipped = right | {"result": "not played: no rulesets"}
    steps = {"path 1": right, "path 7": skipped, "path 2": wrong}
    assert not verified.keep("github", steps, [{"path": "/user"}], {"path 4": "a fork"})
    text = "**Failed on GitHub on 2026-12-01 at `aaaaaaa`: path 2; passed: path 1 "
    text += "(not played: path 4, path 7). Verified on Azure on "
    assert text in verified.README.read_text()
    known = json.loads(verified.OUT.read_text())
    assert known["github"]["calls"] == [{"path": "/user"}] and known["azure"]["steps"]


def test_secrets_and_ids_are_not_in_the_record() -> None:
    value = {
        "primaryKey": "k",
        "temp_clone_token": "t",
        "email": "a@b.c",
        "url": "https://x/y?sv=1&sig=abc",
        "location": "https://x/y?api-version=1&t=7&c=certificate&s=signature&h=hash",
        "rows": [{"id": ID}, f"/subscriptions/{ID.upper()}"],
    }
    text = json.dumps(redacted(value))
    for secret in ('"k"', '"t"', "a@b.c", "abc", "certificate", "signature", ID, ID.upper()):
        assert secret not in text
    person = {"login": "Octo", "id": 5, "name": "A Person", "email": "a@b.c"}
    found = redacted([person, "/repos/octo/octopus", {"id": 5, "name": "job"}], names=("octo",))
    assert found == [
        {"login": "somebody", "email": "redacted"},
        "/repos/somebody/octopus",
        {"id": 5, "name": "job"},
    ]
    first, second = redacted(value)["rows"]
    assert second.endswith(first["id"])  # the same id is the same one everywhere
