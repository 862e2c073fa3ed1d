"""The training loop against what its parts are said to be, and what stops it."""

import dataclasses
import os
import re
import signal
import subprocess

import frozen
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import Project, environment, mnist_part, random_digits

from core import params
from core.dataset import Digits, write_split
from core.errors import DigitsError
from digits.model import network as model
from digits.model import training
from digits.model.training import TrainConfig, fit, one_cycle

pytestmark = pytest.mark.slow

VALUES = frozen.values()
CONFIG = frozen.section(TrainConfig, "train")
TASK = dataclasses.replace(params.task(VALUES), epochs=1)
STAGE = ["train", "--training", "data/prepared/training.npz"]
STAGE += ["--validation", "data/prepared/validation.npz"]
STAGE += ["--out", "data/again", "--curves", "data/again/curves.csv"]


def some_digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    digits = mnist_part("train", count)
    return digits.images, digits.labels.astype(np.int32)


def a_network() -> keras.Model:
    """Return a small network of this file's own, whatever layers the project's has."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(8, 5, 3, use_bias=False, kernel_initializer="he_uniform"),
            model.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 3, 2, use_bias=False, kernel_initializer="he_uniform"),
            model.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    own = dataclasses.replace(CONFIG, peak_learning_rate=0.5, warmup_share=0.25)
    rates, power1, power2 = one_cycle(8, own).T
    np.testing.assert_allclose(rates, [0.25, 0.5, 5 / 12, 1 / 3, 0.25, 1 / 6, 1 / 12, 0], atol=1e-7)
    np.testing.assert_allclose(power1, training.BETA1 ** np.arange(1, 9), rtol=1e-6)
    np.testing.assert_allclose(power2, training.BETA2 ** np.arange(1, 9), rtol=1e-6)


def test_steps_are_those_of_keras_adamw() -> None:
    """Three steps, the last at rate zero, against Keras' optimizer and loss on the same halves."""
    own = dataclasses.replace(CONFIG, batch_size=32, outlier_exposure_share=0.0, warmup_share=0.5)
    still = dataclasses.replace(own.distortion, **dict.fromkeys(vars(own.distortion), 0.0))
    own = dataclasses.replace(own, distortion=still)
    images, classes = some_digits(96)
    keras.utils.set_random_seed(1)
    network = a_network()
    expected = keras.models.clone_model(network)
    expected.set_weights(network.get_weights())

    next(training.epochs(network, (images, classes), TASK, own))

    rng = np.random.default_rng(TASK.seed)
    order = rng.permutation(training.sample_hard_examples(rng, np.full(96, np.inf), 96))
    optimizer = keras.optimizers.AdamW(
        weight_decay=own.weight_decay, beta_1=0.9, beta_2=0.99, epsilon=1e-7
    )
    optimizer.exclude_from_weight_decay(var_names=["scale", "offset", "bias"])
    for step, picked in enumerate(order.reshape(3, 32)):
        optimizer.learning_rate = own.peak_learning_rate * (2 / 3, 2 / 3, 0)[step]
        with tf.GradientTape() as tape:
            goal = keras.ops.one_hot(classes[picked], 10)
            loss = keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=own.label_smoothing
            )
            halves = [slice(16), slice(16, 32)]
            parts = [loss(goal[h], expected(images[picked][h], training=True)) for h in halves]
            mean = (parts[0] + parts[1]) / 2
        gradients = tape.gradient(mean, expected.trainable_variables)
        optimizer.apply_gradients(zip(gradients, expected.trainable_variables, strict=True))
    for ours, theirs in zip(network.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-5)


def test_hard_digits_are_chosen_rather_than_easy_ones() -> None:
    rng = np.random.default_rng(1)
    losses = np.linspace(0, 1, 1000)
    times = np.zeros(1000)
    for _ in range(200):
        chosen = training.sample_hard_examples(rng, losses, 500)
        assert len(set(chosen)) == 500
        times[chosen] += 1
    tenths = times.reshape(10, 100).mean(axis=1) / 200  # the share of draws that each is in
    assert (np.diff(tenths) > 0).all()
    assert tenths[0] < 0.1 < 0.9 < tenths[-1]


def test_digits_of_one_loss_have_one_chance() -> None:
    rng = np.random.default_rng(1)
    times = np.zeros(100)
    for _ in range(400):
        times[training.sample_hard_examples(rng, np.full(100, np.inf), 25)] += 1
    assert 60 < times.min() < times.max() < 140


def test_later_epochs_are_shorter() -> None:
    digits = some_digits(640)
    spec = dataclasses.replace(CONFIG, outlier_exposure_share=0.0, full_epochs=1, hard_share=0.5)
    task = dataclasses.replace(TASK, epochs=3)
    done = [row[2] for row in training.epochs(model.build(28, 10), digits, task, spec)]
    np.testing.assert_allclose(done, [0.5, 0.75, 1])


def test_normalisation_is_that_of_keras() -> None:
    rng = np.random.default_rng(1)
    ours = model.BatchNormalization()
    theirs = keras.layers.BatchNormalization(momentum=model.MOMENTUM, epsilon=model.EPSILON)
    for _ in range(3):
        batch = rng.normal(3, 2, (16, 5, 5, 4)).astype(np.float32)
        np.testing.assert_allclose(
            ours(batch, training=True), theirs(batch, training=True), atol=1e-5
        )
    np.testing.assert_allclose(ours(batch), theirs(batch), atol=1e-4)


def test_folding_changes_no_probability() -> None:
    images, classes = some_digits(640)
    network = model.build(28, 10)
    fit(network, (images, classes), (images, classes), TASK, CONFIG)
    plain = model.fold(network)
    assert not any(isinstance(layer, model.BatchNormalization) for layer in plain.layers)
    logits = model.predict(network, images)
    np.testing.assert_allclose(model.predict(plain, images), logits, rtol=1e-4, atol=1e-4)
    assert np.ptp(logits) > 1


def test_the_configuration_hash_is_that_of_the_layers_not_of_weights_or_code() -> None:
    first, second, other = model.build(28, 10), model.build(28, 10), model.build(28, 20)
    first.set_weights([weight + 1 for weight in first.get_weights()])
    assert model.configuration_hash(first) == model.configuration_hash(second)
    assert model.configuration_hash(first) != model.configuration_hash(other)


def test_a_batch_larger_than_the_data_is_reported() -> None:
    images, classes = some_digits(10)
    with pytest.raises(DigitsError, match=r"batch_size: expected at most 10 .*, found 64"):
        fit(model.build(28, 10), (images, classes), (images, classes), TASK, CONFIG)


@pytest.mark.prove
def test_a_loss_that_is_no_number_stops_and_keeps_nothing(project: Project) -> None:
    project.edit("params.yaml", "peak_learning_rate: 0.01", "peak_learning_rate: 1.0e+30")
    output = project.run("python", "src", *STAGE, code=1)
    found = re.search(r"train: the loss is \S+ at step (\d+); no model was saved", output)
    assert found, output
    assert 1 < int(found[1]) <= 15
    assert "Traceback" not in output
    assert not (project.root / "data" / "again").exists()


@pytest.mark.prove
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["python", "src", *STAGE], id="stage"),
        pytest.param(["dvc", "repro", "train"], id="repro"),
    ],
)
def test_an_interrupt_stops_and_keeps_nothing(project: Project, command: list[str]) -> None:
    path = project.root / "params.yaml"
    path.write_text(re.sub(r"^epochs: \d+", "epochs: 9000", path.read_text("utf-8"), flags=re.M))
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        assert any(line.startswith("epoch 2 of 9000") for line in process.stdout or ())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode not in (0, None)
    assert "train: stopped" in output
    assert "Traceback" not in output
    assert not (project.root / "data" / "again").exists()
    assert not list(project.root.rglob("*.partial"))
    if command[0] == "dvc":
        assert not (project.root / "data" / "model" / "model.keras").exists()
        project.git("checkout", "--quiet", "params.yaml")
        assert project.stages_run(project.dvc("repro")) == []  # what there was is there again
        assert project.git("status", "--porcelain") == ""


@pytest.mark.prove
def test_a_script_that_training_lacks_is_reported(project: Project) -> None:
    pools = project.root / "data" / "prepared"
    known = random_digits(20)
    write_split(pools / "other.npz", [Digits(known.images, known.labels, "klingon", False, 10)])
    command = ("python", "src", "train", "--training", "data/prepared/training.npz")
    rest = ("--validation", "data/prepared/other.npz", "--out", "out", "--curves", "out/curves.csv")
    output = project.run(*command, *rest, code=1)
    assert "other.npz: has digits of klingon" in output
    assert not (project.root / "out").exists()
