"""The Fréchet distance against closed forms and scipy's matrix square root."""

import mpmath
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


def by_fifty_digits(a: FeatureStats, b: FeatureStats) -> float:
    """The definition, with the eigenvalues of S_a^1/2 S_b S_a^1/2 in mpmath."""
    with mpmath.workdps(50):
        s_a, s_b = (mpmath.matrix(each.m2.tolist()) / (each.count - 1) for each in (a, b))
        eigenvalues, vectors = mpmath.eigsy(s_a)
        root = vectors * mpmath.diag([mpmath.sqrt(max(each, 0)) for each in eigenvalues]) * vectors.T
        product = root * s_b * root
        eigenvalues = mpmath.eigsy((product + product.T) / 2, eigvals_only=True)
        trace = sum(s_a[i, i] + s_b[i, i] for i in range(s_a.rows))
        cross = sum(mpmath.sqrt(max(each, 0)) for each in eigenvalues)
        moved = sum((mpmath.mpf(x) - mpmath.mpf(y)) ** 2 for x, y in zip(a.mean, b.mean, strict=True))
        return float(moved + trace - 2 * cross)


def graded(dimensions: int, smallest: float, seed: int) -> NDArray[np.float64]:
    """A covariance with eigenvalues from 1 down to the smallest."""
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(dimensions, dimensions)))[0]
    covariance = (vectors * np.geomspace(1.0, smallest, dimensions)) @ vectors.T
    return (covariance + covariance.T) / 2


@pytest.mark.parametrize(("dimensions", "smallest"), [(2, 1e-17), (9, 1e-8), (9, 1e-13), (9, 1e-17), (32, 1e-17)])
@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)])
def test_ill_conditioned_covariances_at_fifty_digits(dimensions: int, smallest: float, seeds: tuple[int, int]) -> None:
    a, b = (stats(np.full(dimensions, seed / 10), graded(dimensions, smallest, seed)) for seed in seeds)
    trace = np.trace(a.covariance + b.covariance)
    assert abs(frechet_distance(a, b) - by_fifty_digits(a, b)) < 1e-6 * trace


@pytest.mark.parametrize(("of_a", "of_b"), [(4, 200), (200, 4), (9, 12), (12, 12), (2, 2), (2, 200)])
def test_singular_covariances_at_fifty_digits(of_a: int, of_b: int) -> None:
    a = FeatureStats.from_features(random_features(of_a, 16, 5))
    b = FeatureStats.from_features(random_features(of_b, 16, 6))
    trace = np.trace(a.covariance + b.covariance)
    assert abs(frechet_distance(a, b) - by_fifty_digits(a, b)) < 1e-6 * trace


def test_singular_covariances_of_many_dimensions() -> None:
    """The trace of the root is the sum of the singular values of X Y^T, X and Y the centred features: no root is lost."""
    rows = [random_features(count, 300, seed) for count, seed in ((100, 1), (120, 2))]
    a, b = (FeatureStats.from_features(each) for each in rows)
    x, y = ((each - each.mean(0)).numpy() for each in rows)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt(99 * 119)
    trace = np.trace(a.covariance + b.covariance)
    expected = ((a.mean - b.mean) ** 2).sum() + trace - 2 * cross
    assert abs(frechet_distance(a, b) - expected) < 1e-11 * trace


def test_constant_features() -> None:
    a, b = stats(np.zeros(3), np.zeros((3, 3))), stats(np.ones(3), np.eye(3))
    assert frechet_distance(a, b) == frechet_distance(b, a) == 6.0
    assert frechet_distance(a, a) == 0.0


@pytest.mark.parametrize("parts", [1, 2, 7, 20, 64])
def test_parts_give_the_distance_of_the_whole(parts: int) -> None:
    features, reference = random_features(640, 24, 3), FeatureStats.from_features(random_features(500, 24, 4))
    whole = frechet_distance(FeatureStats.from_features(features), reference)
    merged = merge_all(FeatureStats.from_features(part) for part in features.tensor_split(parts))
    assert frechet_distance(merged, reference) == pytest.approx(whole, rel=1e-10)


def test_no_distance_to_itself() -> None:
    a = FeatureStats.from_features(random_features(300, 32, 6))
    assert frechet_distance(a, a) <= 1e-10 * np.trace(a.covariance)


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
