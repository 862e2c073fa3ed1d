"""Pull requests that change data and pretend: each passed once, and is refused or named now."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from tiny import METRICS, PARAMS, Reviewed, Tiny, md5

from core.errors import DigitsError
from mlops import dvc

pytestmark = pytest.mark.slow
Review = Callable[[], Reviewed]
GOOD = '{"mnist": {"accuracy": 0.9999, "accuracy_low": 0.9989, "accuracy_high": 1.0}}'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The repository, made once."""
    return tiny.make(tmp_path_factory.mktemp("tiny") / "author")


@pytest.fixture
def author(made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    return Tiny(made.copy(tmp_path / "author").root)


@pytest.fixture
def review(author: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Review:
    return lambda: tiny.review(author, tmp_path / "job", monkeypatch)


def test_an_honest_change_passes(author: Tiny, review: Review) -> None:
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    author.dvc("repro", "--quiet")
    author.commit("Two epochs")
    found = review()
    assert found.passed, found
    assert found.trained  # whatever the author computed
    assert "| mnist accuracy" in found.text.replace("*", "")
    assert found.report["verdict"] == "better"


def test_a_forged_accuracy_fails(author: Tiny, review: Review) -> None:
    """Three data files edited by hand: the model is bad, metrics and lock say that it is good."""
    author.edit("params.yaml", "epochs: 1", "epochs: 0")
    author.write(METRICS, GOOD)
    lock = author.lock()
    lock["stages"]["train"]["params"]["params.yaml"]["epochs"] = 0
    lock["stages"]["evaluate"]["outs"][0] |= {"md5": md5(GOOD), "size": len(GOOD)}
    author.forge(lock)
    author.commit("A forged accuracy")
    found = review()
    assert not found.passed
    assert found.trained
    assert "mnist accuracy 0.5 is below its limit 0.9" in found.error


def test_a_forged_lock_fails(author: Tiny, review: Review) -> None:
    """The lock says that main's weights came of other params, so that nothing seems to change."""
    author.edit("params.yaml", "epochs: 1", "epochs: 0")
    lock = author.lock()
    lock["stages"]["train"]["params"]["params.yaml"]["epochs"] = 0
    author.forge(lock)
    author.commit("A forged lock")
    found = review()
    assert not found.passed
    assert found.trained


def test_a_forged_run_cache_is_not_believed(author: Tiny, review: Review) -> None:
    """An earlier run of the pull request, or an author with a clone, may fill the run cache."""
    author.edit("params.yaml", "epochs: 1", "epochs: 0")
    lock = author.lock()
    lock["stages"]["train"]["params"]["params.yaml"]["epochs"] = 0
    author.forge(lock)
    author.dvc("commit", "--quiet", "--force")  # and now the run cache says so, too
    author.commit("A forged run cache")
    assert list((author.root / ".dvc" / "cache" / "runs").glob("*/*"))
    found = review()
    assert not found.passed and found.trained


RESTORES = "azure: {verify: restore}\n"


def test_weights_of_others_are_kept_where_the_base_says_so(author: Tiny, review: Review) -> None:
    author.write("params.yaml", PARAMS + RESTORES)
    author.on_main("Weights are made elsewhere")
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    author.dvc("repro", "--quiet")
    author.commit("Two epochs, on a GPU")
    found = review()
    assert found.passed, found
    assert not found.trained
    assert "weights not reproduced; made by A Student in " in found.text
    assert found.report["verdict"] == "better"


@pytest.mark.prove
def test_who_made_the_weights_is_the_job_that_their_commit_names(
    author: Tiny, review: Review
) -> None:
    author.write("params.yaml", PARAMS + RESTORES)
    author.on_main("Weights are made elsewhere")
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    author.dvc("repro", "--quiet")
    author.commit("Two epochs\n\nJob: digits-1")
    author.edit("dvc.lock", "schema: '2.0'", "schema: '2.0' # by a bot")
    author.commit("And the lock again")
    assert "made by digits-1 of A Student in " in review().text


@pytest.mark.prove
def test_weights_of_others_have_the_metrics_that_main_finds(author: Tiny, review: Review) -> None:
    author.write("params.yaml", PARAMS + RESTORES)
    author.on_main("Weights are made elsewhere")
    author.edit("params.yaml", "epochs: 1", "epochs: 0")
    author.dvc("repro", "--quiet")
    author.write(METRICS, GOOD)
    lock = author.lock()
    lock["stages"]["evaluate"]["outs"][0] |= {"md5": md5(GOOD), "size": len(GOOD)}
    author.forge(lock)
    author.commit("A forged accuracy")
    found = review()
    assert not found.passed and not found.trained
    assert "mnist accuracy 0.5 is below its limit 0.9" in found.error


def test_an_author_cannot_say_that_his_weights_are_kept(author: Tiny, review: Review) -> None:
    author.write("params.yaml", PARAMS.replace("epochs: 1", "epochs: 0") + RESTORES)
    lock = author.lock()
    lock["stages"]["train"]["params"]["params.yaml"]["epochs"] = 0
    author.forge(lock)
    author.commit("Weights of one's own")
    found = review()
    assert not found.passed and found.trained


def test_a_forged_seed_variance_has_no_effect_and_is_named(author: Tiny, review: Review) -> None:
    def noise(deviation: float) -> str:
        figures = {"mean": 0.99, "deviation": deviation, "least": 0.98, "most": 1.0}
        data = {row["path"].split("/")[-1]: row["md5"] for row in lock["prepare"]["outs"]}
        trained = {"epochs": 2, "classes": ["0", "1"], "data": data}
        values = {"seeds": [1, 2, 3], "metrics": {"mnist": {"accuracy": figures}}}
        return json.dumps(values | {"trained": trained})

    lock = author.lock()["stages"]
    author.write("data/noise.json", noise(0.0001))
    author.on_main("Seed variance")
    author.write("data/noise.json", noise(0.5))  # nothing is beyond chance any more
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    author.dvc("repro", "--quiet")
    author.commit("A forged seed variance")
    found = review()
    assert found.passed, found
    assert found.report["verdict"] == "better"
    assert "data/noise.json is changed here, which has no effect" in found.text


def test_the_gate_of_the_base_is_that_of_today(author: Tiny, review: Review) -> None:
    """Main has become stricter since the branch began."""
    author.git("branch", "began")
    author.edit("params.yaml", "limit: 0.9,", "limit: 0.993,")
    author.on_main("A stricter gate")
    author.git("reset", "--quiet", "--hard", "began")
    author.edit("params.yaml", "classes:", "# As before.\nclasses:")
    author.commit("A comment")
    found = review()
    assert not found.passed
    assert "is below its limit 0.993" in found.error


def test_another_test_set_is_not_compared(author: Tiny, review: Review) -> None:
    author.write("data/raw.csv", "9,9,9\n")
    author.dvc("repro", "--quiet")
    author.commit("An easy test set")
    found = review()
    assert found.passed, found
    assert "not comparable: the test set changed" in found.text
    assert found.report["verdict"] == "unknown"
    assert found.report["metrics"][0]["before"] is None


def test_the_gate_of_the_base_judges_a_change_of_the_gate(author: Tiny, review: Review) -> None:
    author.edit("params.yaml", "epochs: 1", "epochs: 0")
    author.edit("params.yaml", "limit: 0.9, tolerance: 0.003", "limit: 0.1, tolerance: 0.9")
    author.dvc("repro", "--quiet")
    author.commit("A lower gate for a worse model")
    found = review()
    assert not found.passed
    assert "is below its limit 0.9" in found.error
    assert "section review of params.yaml changes together with what a stage reads" in found.error


def test_a_change_of_the_gate_alone_passes_and_is_named(author: Tiny, review: Review) -> None:
    author.write("params.yaml", PARAMS.replace("limit: 0.9,", "limit: 0.8,"))
    author.commit("A lower gate")
    found = review()
    assert found.passed, found
    assert "section review of params.yaml is changed; the base's is used instead" in found.text


def test_a_data_file_cannot_place_code(author: Tiny, review: Review) -> None:
    """A file *.dvc may name another folder: here a module that the stages then import."""
    evil = "open('pwned', 'w')\nraise SystemExit\n"
    author.write("data/labelled/x.csv", evil)
    author.dvc("add", "--quiet", "data/labelled/x.csv")  # its content is in the cache of main
    (author.root / "data/labelled/x.csv.dvc").unlink()
    out = f"- {{path: yaml.py, md5: {md5(evil)}, size: {len(evil)}, hash: md5}}"
    author.write("data/labelled/x.csv.dvc", f"wdir: ../..\nouts:\n{out}\n")
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    author.commit("Labelled digits")
    found = review()
    assert not Path("pwned").exists() and not Path("yaml.py").exists()
    assert not found.passed
    assert "x.csv.dvc: it has more than the one file" in found.error


def test_a_listing_cannot_place_code(author: Tiny, review: Review) -> None:
    """DVC 3.67.1 follows a path that leads out of a folder when it checks that folder out."""
    evil = "open('pwned', 'w')\nraise SystemExit\n"
    author.forge_listing("data/labelled/more", evil, "../../../yaml.py")
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    author.commit("Labelled digits")
    found = review()
    assert not Path("pwned").exists() and not Path("yaml.py").exists()
    assert not found.passed
    assert "'../../../yaml.py' is not below the folder" in found.error


EVIL = "open('pwned', 'w')\nraise SystemExit\n"


def test_dvc_lock_cannot_place_code(author: Tiny, review: Review) -> None:
    """An entry of dvc.lock may list files with any path; with `restore` that of train is kept."""
    author.write("params.yaml", PARAMS + RESTORES)
    author.on_main("Weights are made elsewhere")
    author.write("data/labelled/x.csv", EVIL)
    author.dvc("add", "--quiet", "data/labelled/x.csv")  # its content is in the cache of main
    (author.root / "data/labelled/x.csv.dvc").unlink()
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    lock = author.lock()
    lock["stages"]["train"]["params"]["params.yaml"]["epochs"] = 2
    files = [{"relpath": "../../../yaml.py", "md5": md5(EVIL), "size": len(EVIL)}]
    path = lock["stages"]["train"]["outs"][0]["path"]
    lock["stages"]["train"]["outs"][0] = {"path": path, "hash": "md5", "files": files}
    author.forge(lock)
    author.commit("Two epochs, on a GPU")
    found = review()
    assert not Path("pwned").exists() and not Path("yaml.py").exists()
    assert not found.passed
    assert f"dvc.lock: '{path}' has more than the MD5 of DVC 3" in found.error


def test_a_listing_of_dvc_2_cannot_place_code(author: Tiny, review: Review) -> None:
    """Without `hash: md5` DVC looks for a listing in the folders of its version 2."""
    listing = json.dumps([{"md5": md5(EVIL), "relpath": "../../../yaml.py"}])
    for text, end in ((EVIL, ""), (listing, ".dir")):
        author.write(f".dvc/cache/{md5(text)[:2]}/{md5(text)[2:]}{end}", text)
    out = f"{{path: more, md5: {md5(listing)}.dir, size: {len(EVIL)}, nfiles: 1}}"
    author.write("data/labelled/more.dvc", f"outs:\n- {out}\n")
    author.write("data/labelled/.gitignore", "/more\n")
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    author.commit("Labelled digits")
    found = review()
    assert not Path("pwned").exists() and not Path("yaml.py").exists()
    assert not found.passed
    assert "more.dvc: 'hash'; write it with 'dvc add'" in found.error


@pytest.mark.parametrize("hash_", ["../../etc/passwd", 3, "d41d8cd98f00b204e9800998ecf8427e.dir2"])
def test_an_md5_that_is_a_path_is_refused(tmp_path: Path, hash_: object) -> None:
    lock = {"stages": {"a": {"cmd": "x", "outs": [{"path": "y", "hash": "md5", "md5": hash_}]}}}
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    with pytest.raises(DigitsError, match=r"dvc\.lock: .*; write it with 'dvc repro'"):
        dvc.refuse_files(tmp_path)


@pytest.mark.parametrize("text", ["stages: {a: {outs: 3}}", "stages: {a: {outs: [3]}}", "[", "3"])
def test_a_lock_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(DigitsError, match=r"dvc\.lock: .*; write it with 'dvc repro'"):
        dvc.refuse_files(tmp_path)


def test_a_listing_in_a_shared_cache_is_checked(
    author: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    author.dvc("config", "--local", "cache.dir", str(tmp_path / "cache"))
    monkeypatch.chdir(author.root)
    dvc.checkout("--quiet", "--allow-missing")
    path = tmp_path / "cache" / "files" / "md5" / "00" / "1.dir"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"md5": "0" * 32, "relpath": "../x.py"}]))
    with pytest.raises(DigitsError, match="is not below the folder"):
        dvc.checkout("--quiet", "--allow-missing")


@pytest.mark.parametrize("name", ["x.csv", pytest.param("more", marks=pytest.mark.prove)])
def test_an_honest_file_of_dvc_passes(author: Tiny, review: Review, name: str) -> None:
    """Of a file, and of a folder with its listing."""
    author.write(f"data/labelled/{name}" if name == "x.csv" else "data/labelled/more/x.csv", "4\n")
    author.dvc("add", "--quiet", f"data/labelled/{name}")
    author.dvc("repro", "--quiet")
    author.commit("Labelled digits")
    found = review()
    assert found.passed, found


@pytest.mark.parametrize(
    "name",
    ["dvc.lock", *(pytest.param(n, marks=pytest.mark.prove) for n in ("params.yaml", METRICS))],
)
def test_a_file_that_is_deleted_is_named(author: Tiny, review: Review, name: str) -> None:
    (author.root / name).unlink()
    author.commit("Less")
    found = review()
    assert not found.passed
    assert name in found.text + found.stale


def test_a_table_cannot_be_hidden_from_git(author: Tiny, review: Review) -> None:
    """Without metrics on main the next pull request would be compared with nothing."""
    (author.root / METRICS).unlink()
    author.write("data/evaluation/.gitignore", "metrics.json\n")
    author.commit("No metrics")
    found = review()
    assert not found.passed
    assert f"{METRICS}: a .gitignore hides this table" in found.error


@pytest.mark.prove
def test_data_in_no_cache_is_reported_with_the_commands_for_a_person(
    author: Tiny, review: Review
) -> None:
    author.write("data/labelled/devanagari_1.csv", "4,5\n")
    author.dvc("add", "--quiet", "data/labelled/devanagari_1.csv")
    author.dvc("repro", "--quiet")
    author.commit("Digits that nobody pushed")
    digest = md5("4,5\n")
    (author.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    found = review()
    assert not found.passed
    (reason,) = (row for row in found.report["gate"]["reasons"] if "failed at" in row)
    for part in ("data/labelled/devanagari_1.csv", "'dvc push --remote main'", "'dvc remove'"):
        assert part in reason, reason


@pytest.mark.prove
def test_a_second_lock_that_differs_names_the_stage_that_is_not_reproducible(
    author: Tiny, review: Review
) -> None:
    """The bot has committed what a run made; the next run makes other bytes."""
    blanks = 'str(params["epochs"]) + " " * __import__("random").randrange(10**6))'
    author.edit("stage.py", 'str(params["epochs"]))', blanks)
    author.edit("params.yaml", "epochs: 1", "epochs: 2")
    author.dvc("repro", "--quiet")
    author.git("add", "--all")
    bot = "--author=github-actions[bot] <bot@github.invalid>"
    author.git("commit", "--quiet", "--message", "dvc.lock and metrics", bot)
    found = review()
    assert not found.passed and found.trained
    assert "not reproducible: train" in found.error, found
