"""FD-infinity against a line that is known, and its bias on Gaussians whose distance is known."""

import numpy as np
import pytest
import torch

from ddpm_core.evaluation import frechet_infinity as module
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all
from ddpm_core.evaluation.frechet_infinity import frechet_infinity


def parts_of(count: int, size: int, dimensions: int = 2, seed: int = 1, scale: float = 1.0) -> list[FeatureStats]:
    generator = torch.Generator().manual_seed(seed)
    return [
        FeatureStats.from_features(scale * torch.randn(size, dimensions, generator=generator)) for _ in range(count)
    ]


def exactly(variance: float, dimensions: int) -> FeatureStats:
    """A Gaussian's moments without any chance."""
    count = 10**9
    return FeatureStats(count=count, mean=np.zeros(dimensions), m2=variance * np.eye(dimensions) * (count - 1))


def test_the_line_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "frechet_distance", lambda a, b: 3.0 + 70.0 / a.count)
    found = frechet_infinity(parts_of(40, 10), exactly(1.0, 2), smallest=25)
    assert found.value == pytest.approx(3.0, rel=1e-12)
    assert found.slope == pytest.approx(70.0, rel=1e-12)
    assert len(found.counts) == 15
    assert (found.counts[0], found.counts[-1]) == (30, 400)
    steps = np.diff(found.counts)
    assert steps.max() - steps.min() <= 10


def test_distances_are_of_nested_sets() -> None:
    parts, reference = parts_of(5, 10), exactly(2.0, 2)
    found = frechet_infinity(parts, reference, smallest=20)
    assert found.counts.tolist() == [20, 30, 40, 50]
    expected = [frechet_distance(merge_all(parts[:number]), reference) for number in (2, 3, 4, 5)]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-12)
    slope, value = np.polyfit(1 / found.counts, expected, 1)
    assert (found.slope, found.value) == pytest.approx((slope, value), rel=1e-9)


def test_groups_may_differ_in_size() -> None:
    parts = [*parts_of(2, 10), *parts_of(2, 9, seed=1)]
    found = frechet_infinity(parts, exactly(2.0, 2), smallest=15)
    assert found.counts.tolist() == [20, 29, 38]
    assert found.distances[1] == pytest.approx(frechet_distance(merge_all(parts[:3]), exactly(2.0, 2)), rel=1e-12)


def test_most_of_the_bias_goes() -> None:
    """8 dimensions, 640 images, N(0, 1.21) against N(0, 1): 0.08. The mean of 60 is known to 0.004."""
    reference = exactly(1.0, 8)
    found = [frechet_infinity(parts_of(20, 32, 8, seed, 1.1), reference, smallest=64) for seed in range(60)]
    of_all = np.mean([each.distances[-1] for each in found])
    assert of_all - 0.08 > 0.03
    assert abs(np.mean([each.value for each in found]) - 0.08) < 0.012


def test_refusals() -> None:
    reference = exactly(1.0, 2)
    with pytest.raises(ValueError, match="smallest set has 3 images of 2 features; expected 4 or more"):
        frechet_infinity(parts_of(5, 10), reference, smallest=3)
    with pytest.raises(ValueError, match="5 groups of 50 images make 1 sets of 45 or more"):
        frechet_infinity(parts_of(5, 10), reference, smallest=45)
    with pytest.raises(ValueError, match="5 groups of 50 images make 0 sets of 60"):
        frechet_infinity(parts_of(5, 10), reference, smallest=60)
