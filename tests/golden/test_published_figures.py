"""KID, the Inception score, precision, recall, density and coverage against the packages torch-fidelity and prdc."""

import types
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from foreign_files import foreign
from prdc import compute_prdc
from torch import Tensor

from ddpm_core.evaluation.inception_score import ScoreSums, score_of_splits
from ddpm_core.evaluation.kid import kernel_sums, kid, kid_of_subset
from ddpm_core.evaluation.manifold import manifold


def features(count: int, seed: int, dimensions: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, dimensions, generator=generator) * (1 + seed / 20) + seed / 10).double()


def torch_fidelity(metric: str) -> types.ModuleType:
    return foreign("torch_fidelity", f"metric_{metric}", without="utils")


def test_kid_of_all_images_is_torch_fidelitys() -> None:
    x, y = features(200, 1), features(200, 2)
    theirs = torch_fidelity("kid").kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=200, verbose=False)
    expected = theirs["kernel_inception_distance_mean"]
    assert kid(kernel_sums(x, y, 64)).value == pytest.approx(expected, rel=1e-10)
    assert expected > 0.01


def test_kid_of_subsets_is_torch_fidelitys_but_for_the_draw() -> None:
    x, y = features(400, 1), features(500, 2)
    settings = {"kid_subsets": 100, "kid_subset_size": 100, "verbose": False}
    theirs = torch_fidelity("kid").kid_features_to_metric(x, y, **settings)
    found = [kid_of_subset(x, y, which, size=100) for which in range(100)]
    mean, deviation = np.mean(found), np.std(found)
    expected = theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"]
    assert abs(mean - expected[0]) < 4 * expected[1] * (2 / 100) ** 0.5
    assert deviation == pytest.approx(expected[1], rel=0.35)


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_is_torch_fidelitys(splits: int) -> None:
    logits = 3 * features(203, 1, 1008).float()
    theirs = torch_fidelity("isc").isc_features_to_metric(logits, splits=splits, shuffle=False)
    expected = theirs["inception_score_mean"], theirs["inception_score_std"]
    n = len(logits)
    edges = [split * n // splits for split in range(splits + 1)]
    parts = [ScoreSums.from_logits(logits[a:b]) for a, b in pairwise(edges)]
    assert score_of_splits(parts) == pytest.approx(expected, rel=1e-10, abs=1e-10)
    if splits == 1:
        assert ScoreSums.from_logits(logits).score == pytest.approx(expected[0], rel=1e-10)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_torch_fidelitys_where_nothing_ties(k: int) -> None:
    generated, real = features(150, 4, 6), features(170, 1, 6)
    theirs = torch_fidelity("prc").prc_features_to_metric(
        generated, real, prc_neighborhood=k, prc_batch_size=64, save_cpu_ram=False, verbose=False
    )
    found = manifold(real, generated, k_precision_recall=k, block=50)
    assert (found.precision, found.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("whole", [False, True])
def test_all_four_are_prdcs(k: int, whole: bool) -> None:
    """Whole numbers lie on surfaces and on one another; prdc has them exactly."""
    generated, real = features(150, 4, 6), features(170, 1, 6)
    if whole:
        generated, real = generated.round(), real.round()
    theirs = compute_prdc(real.numpy(), generated.numpy(), k)
    found = manifold(real, generated, k_precision_recall=k, k_density_coverage=k, block=50)
    assert asdict(found) == pytest.approx(theirs, abs=1e-12)
