"""Laws of the moments and of the distance, for any features."""

from random import Random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all

DIMENSIONS = 3


def feature_rows(smallest: int) -> st.SearchStrategy[torch.Tensor]:
    """Up to 12 rows of features."""
    values = st.floats(-100, 100, width=32)
    shapes = st.integers(smallest, 12).map(lambda count: (count, DIMENSIONS))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=values)).map(torch.from_numpy)


def assert_same(a: FeatureStats, b: FeatureStats) -> None:
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-9, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(st.lists(feature_rows(0), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_parts_in_any_order_merge_to_the_whole(parts: list[torch.Tensor], random: Random) -> None:
    whole = FeatureStats.from_features(torch.cat(parts))
    shuffled = list(parts)
    random.shuffle(shuffled)
    assert_same(merge_all(FeatureStats.from_features(part) for part in shuffled), whole)


@settings(deadline=None, max_examples=60)
@given(feature_rows(0), feature_rows(0), feature_rows(0))
def test_merge_is_associative(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    of_a, of_b, of_c = (FeatureStats.from_features(rows) for rows in (a, b, c))
    assert_same(of_a.merge(of_b).merge(of_c), of_a.merge(of_b.merge(of_c)))


@settings(deadline=None, max_examples=60)
@given(feature_rows(2), feature_rows(2))
def test_distance_is_symmetric_and_at_least_that_of_the_means(a: torch.Tensor, b: torch.Tensor) -> None:
    of_a, of_b = FeatureStats.from_features(a), FeatureStats.from_features(b)
    there, back = frechet_distance(of_a, of_b), frechet_distance(of_b, of_a)
    scale = 1e-6 * (1 + np.trace(of_a.covariance) + np.trace(of_b.covariance))
    assert abs(there - back) <= scale
    assert there >= ((of_a.mean - of_b.mean) ** 2).sum() - scale


@settings(deadline=None, max_examples=60)
@given(feature_rows(2), st.floats(-50, 50), st.floats(0.1, 4))
def test_a_shift_and_a_scale_have_their_closed_forms(rows: torch.Tensor, shift: float, scale: float) -> None:
    """x -> scale x + shift: commuting covariances, so Tr S (1 - scale)^2 plus the means' distance."""
    a, b = FeatureStats.from_features(rows), FeatureStats.from_features(scale * rows + shift)
    expected = ((b.mean - a.mean) ** 2).sum() + np.trace(a.covariance) * (1 - scale) ** 2
    assert abs(frechet_distance(a, b) - expected) <= 1e-6 * (1 + np.trace(a.covariance) + abs(expected))
