"""Figures see what a model leaves out: real digits stand in for its samples, some of them withheld."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ddpm_core.evaluation.features.random_conv import extract
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance
from ddpm_core.evaluation.manifold import Manifold, manifold
from ddpm_core.types import Tensor


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Features of 900 that were trained on; of 600 others, and their labels."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[order, None]
    features = extract(torch.from_numpy(images[:1500]))
    return features[:900], features[900:], torch.from_numpy(found.target[order[900:1500]])


def figures(real: Tensor, generated: Tensor) -> tuple[Manifold, float]:
    distance = frechet_distance(FeatureStats.from_features(generated), FeatureStats.from_features(real))
    return manifold(real[: len(generated)], generated), distance


def test_three_classes_left_out(digits: tuple[Tensor, Tensor, Tensor]) -> None:
    real, others, labels = digits
    count = int((labels < 7).sum())
    whole, distance = figures(real, others[:count])
    left, further = figures(real, others[labels < 7])
    assert left.recall < whole.recall - 0.1
    assert left.coverage < whole.coverage - 0.1
    assert left.precision > whole.precision - 0.05  # what there is looks as good as before
    assert further > 2 * distance


def test_one_image_repeated(digits: tuple[Tensor, Tensor, Tensor]) -> None:
    real, others, _ = digits
    whole, distance = figures(real, others)
    left, further = figures(real, others[:1].expand(600, -1))
    assert left.recall < 0.05
    assert left.coverage < 0.05 < 0.8 < whole.coverage
    assert further > 10 * distance
