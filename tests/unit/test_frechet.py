"""The Fréchet distance against closed forms and scipy's matrix square root."""

import io

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all


def stats(mean: NDArray[np.float64], covariance: NDArray[np.float64], count: int = 100) -> FeatureStats:
    """Stats with exactly these moments."""
    return FeatureStats(count=count, mean=mean, m2=covariance * (count - 1))


def random_features(count: int, dimensions: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mixed + seed


def test_moments_are_numpys() -> None:
    features = random_features(50, 6, 1)
    found = FeatureStats.from_features(features)
    assert found.count == 50
    np.testing.assert_allclose(found.mean, features.numpy().mean(axis=0))
    np.testing.assert_allclose(found.covariance, np.cov(features.numpy(), rowvar=False))


def test_commuting_covariances_have_a_closed_form() -> None:
    """With common eigenvectors the trace term is the sum of (sqrt(lambda_a) - sqrt(lambda_b))^2."""
    rng = np.random.default_rng(2)
    vectors = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    of_a, of_b = rng.uniform(0.1, 9, 5), rng.uniform(0.1, 9, 5)
    mean_a, mean_b = rng.normal(size=5), rng.normal(size=5)
    a, b = stats(mean_a, vectors @ np.diag(of_a) @ vectors.T), stats(mean_b, vectors @ np.diag(of_b) @ vectors.T)
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(of_a) - np.sqrt(of_b)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_one_dimension() -> None:
    a, b = stats(np.array([3.0]), np.array([[4.0]])), stats(np.array([1.0]), np.array([[25.0]]))
    assert frechet_distance(a, b) == pytest.approx((3 - 1) ** 2 + (2 - 5) ** 2, rel=1e-14)


def test_agrees_with_scipys_matrix_square_root() -> None:
    a, b = (FeatureStats.from_features(random_features(200, 24, seed)) for seed in (3, 4))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    delta = a.mean - b.mean
    expected = delta @ delta + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances() -> None:
    """Fewer images than dimensions: the covariances have no inverse, and the distance is still exact."""
    rows = random_features(4, 10, 5)
    moved = rows + torch.arange(10.0, dtype=torch.float64)
    a, b = FeatureStats.from_features(rows), FeatureStats.from_features(moved)
    assert frechet_distance(a, b) == pytest.approx(285.0, rel=1e-6)  # 0 + 1 + 4 + ... + 81


def test_no_distance_to_itself() -> None:
    a = FeatureStats.from_features(random_features(300, 32, 6))
    assert frechet_distance(a, a) <= 1e-10 * np.trace(a.covariance)


def test_bytes_keep_every_bit() -> None:
    a = FeatureStats.from_features(random_features(10, 4, 7))
    back = FeatureStats.from_bytes(a.to_bytes())
    assert back.count == a.count
    assert back.mean.tobytes() == a.mean.tobytes()
    assert back.m2.tobytes() == a.m2.tobytes()


def test_pickles_are_refused() -> None:
    out = io.BytesIO()
    np.savez(out, count=np.int64(2), mean=np.array([{}], dtype=object), m2=np.zeros((1, 1)))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        FeatureStats.from_bytes(out.getvalue())


def test_float32_features_are_summed_in_float64() -> None:
    features = (1000 + torch.rand(2000, 2, generator=torch.Generator().manual_seed(8))).float()
    found = merge_all(FeatureStats.from_features(part) for part in features.split(100))
    np.testing.assert_allclose(found.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9)


def test_refusals_name_both_values() -> None:
    one, two, three = (FeatureStats.from_features(random_features(n, 3, 9)) for n in (1, 2, 3))
    other = FeatureStats.from_features(random_features(5, 4, 9))
    with pytest.raises(ValueError, match="covariance of 1 images was asked for; expected 2"):
        frechet_distance(one, three)
    with pytest.raises(ValueError, match="of 3 and of 4 dimensions"):
        frechet_distance(two, other)
    with pytest.raises(ValueError, match="of 3 and of 4 dimensions"):
        two.merge(other)
    with pytest.raises(ValueError, match="1 of 2 images have features that are not finite"):
        FeatureStats.from_features(torch.tensor([[1.0, float("nan")], [1.0, 2.0]]))
