"""Another task: params.yaml alone changes, and the whole pipeline follows."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Project, copy_tracked, python

from core.dataset import Digits, write_csv
from core.params import load

LETTERS = """
epochs: 2
seed: 3
image_size: 20
classes: [alpha, beta, gamma, delta]
mnist:
  source: letters
  reader: {format: csv, train: train.csv, test: test.csv}
foreign: []
prepare: {production_count: 40, validation_share: 0.2, foreign_share: 0.0}
"""


def letters(count: int, seed: int) -> Digits:
    """Return four patterns, distinguished by the quarter that holds the ink."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 4).astype(np.uint8)
    images = rng.integers(0, 60, (count, 20, 20), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10] += 150
    return Digits(images, labels, "mnist", False, 4)


@pytest.mark.prove
def test_four_letters_of_20_by_20_pixels(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    copy_tracked(project.root)
    write_csv(project.root / "letters" / "train.csv", letters(400, 1))
    write_csv(project.root / "letters" / "test.csv", letters(80, 2))
    production = (project.root / "params.yaml").read_text("utf-8")
    kept = production[production.index("\ntrain:") :]
    kept = kept.replace("requests_an_hour: 100.0", "requests_an_hour: 1.0")
    (project.root / "params.yaml").write_text(LETTERS + kept, "utf-8")
    assert set(load(project.root / "params.yaml")) >= {"train", "evaluate", "package"}

    project.git("init", "--quiet")
    ran = project.stages_run(project.dvc("repro"))
    assert ran == ["mnist", "prepare", "train", "evaluate", "package", "simulate", "monitor"]

    metrics = json.loads((project.root / "data/evaluation/metrics.json").read_text("utf-8"))
    assert list(metrics) == ["mnist"]
    assert metrics["mnist"]["accuracy"] > 0.9
    per_class = (project.root / "data/evaluation/per_class.csv").read_text("utf-8")
    assert "mnist,gamma," in per_class
    summary = (project.root / "data/package/_summary.txt").read_text("utf-8")
    assert "(None, 20, 20)" in summary
    assert "(None, 4)" in summary

    code = "import mlflow.pyfunc, numpy; model = mlflow.pyfunc.load_model('data/package')\n"
    code += "print(model.predict(numpy.zeros((1, 20, 20), 'uint8'))['digits'].shape)"
    assert "(1, 4)" in project.run(*python(code))
