"""Intervals against scipy's t, closed forms and plain leaving out."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_core.evaluation.frechet import FeatureStats
from ddpm_core.evaluation.intervals import (
    GROUPS,
    difference,
    difference_of_independent,
    difference_over_seeds,
    interval,
    jackknife,
    leave_one_out,
    of_mean,
    t_quantile,
)


@pytest.mark.parametrize("degrees", [*range(1, 45), 100, 1000, 10**6])
def test_quantiles_are_scipys(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=1e-6)


def test_twenty_groups_have_2_093_standard_errors() -> None:
    found = interval(5.0, 2.0, GROUPS - 1)
    assert (found.low, found.high) == pytest.approx((5 - 4.186, 5 + 4.186), abs=1e-3)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=20)
    left_out = (values.sum() - values) / 19
    found = jackknife(values.mean(), left_out)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(20), rel=1e-12)
    assert found.value == values.mean()
    expected = scipy.stats.t.interval(0.95, 19, values.mean(), found.standard_error)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-6)


def test_a_difference_loses_what_both_share() -> None:
    rng = np.random.default_rng(2)
    shared, own = rng.normal(size=20), 0.01 * rng.normal(size=(2, 20))
    a, b = 1.0 + (shared + own[0]) / 19, (shared + own[1]) / 19
    found = difference(1.0, a, 0.0, b)
    assert found == jackknife(1.0, a - b)
    assert found.value == 1.0
    assert found.standard_error < 0.05 * jackknife(1.0, a).standard_error


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_of_a_mean_it_is_students_interval(values: list[float]) -> None:
    found = of_mean(values)
    error = scipy.stats.sem(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.standard_error == pytest.approx(error, abs=1e-12)
    reach = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    assert found.high - found.value == pytest.approx(reach, rel=1e-5, abs=1e-9)
    assert found.value - found.low == pytest.approx(reach, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 4, 20])
def test_each_part_is_left_out_in_turn(count: int) -> None:
    features = torch.randn(10 * count, 3, generator=torch.Generator().manual_seed(count)).double()
    parts = [FeatureStats.from_features(each) for each in features.split(10)]
    found = list(leave_one_out(parts, FeatureStats.merge))
    assert len(found) == count
    for number, stats in enumerate(found):
        expected = FeatureStats.from_features(
            torch.cat([*features.split(10)[:number], *features.split(10)[number + 1 :]])
        )
        assert stats.count == 10 * (count - 1)
        np.testing.assert_allclose(stats.mean, expected.mean, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(stats.m2, expected.m2, rtol=1e-12, atol=1e-12)


def test_order_is_kept_and_merges_do_not_grow_with_the_square_of_the_parts() -> None:
    merges = []

    def merge(a: str, b: str) -> str:
        merges.append(a + b)
        return a + b

    letters = "abcdefghijklmnopqrst"
    assert list(leave_one_out(letters, merge)) == [letters.replace(each, "") for each in letters]
    assert len(merges) < 3 * len(letters)


def test_refusals() -> None:
    two, three = np.ones(2), np.ones(3)
    with pytest.raises(ValueError, match="figures of 2 and 3 groups"):
        difference(1.0, two, 1.0, three)
    with pytest.raises(ValueError, match="a jackknife over 1 groups"):
        jackknife(1.0, two[:1])
    with pytest.raises(ValueError, match="over 1 values"):
        of_mean([1.0])


def test_independent_differences_add_their_errors() -> None:
    rng = np.random.default_rng(3)
    a, b = 1 + 0.1 * rng.normal(size=20), 2 + 0.2 * rng.normal(size=20)
    found = difference_of_independent(1.0, a, 2.0, b)
    errors = [jackknife(0.0, each).standard_error for each in (a, b)]
    assert found.value == -1.0
    assert found.standard_error == pytest.approx(np.hypot(*errors))
    assert found.high - found.value == pytest.approx(2.093024 * np.hypot(*errors))


def test_trainings_are_compared_by_their_means() -> None:
    found = difference_over_seeds([1.0, 2.0, 3.0], [5.0, 5.0, 8.0, 6.0])
    assert found.value == pytest.approx(-4.0)
    assert found.standard_error == pytest.approx(np.sqrt(1 / 3 + 2 / 4))
    assert found.high - found.value == pytest.approx(4.302653 * found.standard_error)
