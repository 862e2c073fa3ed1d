"""How foreign an image looks: the distance is Mahalanobis', and the same on any machine."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, environment, mnist_part, python
from scipy.spatial.distance import cdist

from digits.evaluation import metrics
from digits.model import network as model
from digits.model import ood
from digits.pipeline.train import build_ood_score

pytestmark = pytest.mark.slow


def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Return correlated vectors float32 (2000, 12) of three classes, and these."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 2000)
    mixed = rng.normal(size=(2000, 12)) @ rng.normal(size=(12, 12))
    return (mixed + 5 * classes[:, None]).astype(np.float32), classes


def test_the_fit_gives_mahalanobis_distance_to_the_nearest_class() -> None:
    points, classes = vectors()
    kernel, offset, means, lengths = ood.fit(points, classes)
    z = points @ kernel + offset
    found = (z**2).sum(axis=1) - 2 * (z @ means + lengths).max(axis=1)
    centres = np.stack([points[classes == label].mean(axis=0) for label in range(3)])
    residuals = (points - centres[classes]).astype(np.float64)
    covariance = residuals.T @ residuals / len(points)
    covariance += ood.SHRINKAGE * covariance.trace() / 12 * np.eye(12)
    metric = np.linalg.inv(covariance)
    expected = cdist(points, centres, "mahalanobis", VI=metric).min(axis=1) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


FIT = """
import sys, hashlib, numpy
from digits.model import ood
given = numpy.load(sys.argv[1])
parts = ood.fit(given["vectors"], given["classes"])
print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""


ILLEGAL = -4  # SIGILL, as subprocess reports it


@pytest.mark.prove
def test_the_fit_has_the_same_bytes_with_other_kernels(tmp_path: Path) -> None:
    points, classes = vectors()
    np.savez(tmp_path / "given.npz", vectors=points, classes=classes)
    found = []
    for kernel, threads in {"Haswell": "1", "Prescott": "2", "SkylakeX": "2"}.items():
        env = environment() | {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": threads}
        env |= {"PYTHONPATH": str(ROOT / "src")}
        command = python(FIT, str(tmp_path / "given.npz"))
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode == ILLEGAL:  # a processor without AVX512 has not that one
            continue
        found.append(done.stdout.strip())
    assert len(found) >= 2
    assert len(set(found)) == 1
    assert len(found[0]) == 64


def test_one_in_a_hundred_known_digits_looks_foreign_and_noise_does() -> None:
    """Even an untrained network's features tell digits from noise."""
    digits = mnist_part("train", 4000)
    model.make_deterministic(1)
    network = model.fold(model.build(28, 10))
    training = digits.images[:3000], digits.labels[:3000].astype(np.int32)
    foreign = build_ood_score(network, training, digits.images[3000:])
    whole = model.calibrate(network, 1.0, ["mnist"], foreign)
    known = model.predict(whole, digits.images[3000:])["ood_score"]
    assert ((known >= 0) & (known <= 1)).all()
    assert (known > 0.5).mean() == pytest.approx(ood.FALSE_ALARM_RATE, abs=0.002)
    noise = np.random.default_rng(0).integers(0, 256, (200, 28, 28), np.uint8)
    assert metrics.auroc(-known, -model.predict(whole, noise)["ood_score"]) > 0.99


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
def test_a_model_has_the_same_bytes_whatever_was_built_before(tmp_path: Path) -> None:
    images = mnist_part("train", 200).images
    classes = np.arange(len(images)) % 10
    written = []
    for name in ("first", "second"):
        model.make_deterministic(1)
        folded = model.fold(model.build(28, 10))
        calibrated = model.calibrate(
            folded, 1.5, ["mnist"], build_ood_score(folded, (images, classes), images)
        )
        model.save(calibrated, tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
