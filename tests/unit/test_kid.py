"""KID against its definition over all pairs, and its variances and groups against leaving images out."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_core.evaluation.kid import (
    KernelSums,
    kernel_row_sums,
    kernel_sums,
    kid,
    kid_of_subset,
    kid_without_groups,
    sums_in_groups,
)


def features(count: int, seed: int, dimensions: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator) * (1 + seed / 10) + seed / 5


def by_definition(x: Tensor, y: Tensor) -> float:
    """Gretton et al. 2012, Eq. 3, pair by pair."""

    def k(a: Tensor, b: Tensor) -> float:
        return float((sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    same_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    same_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same_x + same_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def without(x: Tensor, index: int | list[int]) -> Tensor:
    kept = torch.ones(len(x), dtype=torch.bool)
    kept[index] = False
    return x[kept]


@pytest.mark.parametrize("block", [1, 4, 13, 100])
def test_is_its_definition_in_blocks_of_any_size(block: int) -> None:
    x, y = features(13, 1), features(9, 2)
    assert kid(kernel_sums(x, y, block)).value == pytest.approx(by_definition(x, y), rel=1e-12)


def test_a_set_against_itself_meets_itself() -> None:
    x = features(9, 1)
    assert kid(kernel_sums(x, x, 4)).value == pytest.approx(by_definition(x, x), rel=1e-12)


def test_rows_that_workers_share_are_those_of_one() -> None:
    """Blocks of rows and of columns need not meet; a copy of an image counts, the image itself does not."""
    x = features(11, 3)
    x[7] = x[2]
    columns = [x[:3], x[3:10], x[10:]]
    parts = [kernel_row_sums(x[a:b], columns, first_row=a) for a, b in ((0, 5), (5, 6), (6, 11))]
    kernel = (x.double() @ x.double().T / 6 + 1) ** 3
    np.testing.assert_allclose(np.concatenate(parts), (kernel.sum(1) - kernel.diagonal()).numpy(), rtol=1e-13)


def test_variances_are_those_of_leaving_each_image_out() -> None:
    x, y = features(10, 1), features(8, 2)
    found = kid(kernel_sums(x, y))
    of_x = 9 * np.var([by_definition(without(x, i), y) for i in range(10)])
    of_y = 7 * np.var([by_definition(x, without(y, j)) for j in range(8)])
    assert found.variance_generated == pytest.approx(of_x, rel=1e-9)
    assert found.variance == pytest.approx(of_x + of_y, rel=1e-9)


def repeated(draw: Callable[[int], tuple[Tensor, Tensor]]) -> list[KernelSums]:
    return [kernel_sums(*draw(seed)) for seed in range(400)]


@pytest.mark.parametrize("held", [False, True])
def test_variances_are_those_of_repetition(held: bool) -> None:
    """400 draws tell a variance to 7%."""
    reference = 0.5 + 1.2 * features(100, 0)

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(60, 6, generator=generator)
        return x, reference if held else 0.5 + 1.2 * torch.randn(100, 6, generator=generator)

    found = [kid(sums) for sums in repeated(draw)]
    told = np.mean([each.variance_generated if held else each.variance for each in found])
    assert told == pytest.approx(np.var([each.value for each in found]), rel=0.25)


@pytest.mark.parametrize("groups", [2, 5, 20])
def test_without_groups(groups: int) -> None:
    x, y = features(23, 1), features(9, 2)
    found = kid_without_groups(kernel_sums(x, y), sums_in_groups(x, groups), groups)
    bounds = [23 * group // groups for group in range(groups + 1)]
    expected = [by_definition(without(x, list(range(a, b))), y) for a, b in pairwise(bounds)]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def kid_subsets(x: Tensor, y: Tensor, count: int, size: int, seed: int = 0) -> tuple[float, float]:
    """Mean and deviation over the first few."""
    found = [kid_of_subset(x, y, which, size=size, seed=seed) for which in range(count)]
    return float(np.mean(found)), float(np.std(found))


def test_subsets_of_all_are_the_figure_of_all() -> None:
    x, y = features(20, 1), features(20, 2)
    mean, deviation = kid_subsets(x, y, 3, 20)
    assert mean == pytest.approx(by_definition(x, y), rel=1e-11)
    assert deviation < 1e-12


def test_subsets_are_drawn_by_the_seed_without_replacement() -> None:
    x, y = features(60, 1), features(70, 2)
    found = kid_subsets(x, y, 60, 30)
    assert found == kid_subsets(x, y, 60, 30)
    assert found != kid_subsets(x, y, 60, 30, seed=1)
    # Every image comes in: the mean of many subsets is the figure of all images, to 4 standard errors.
    assert abs(found[0] - kid(kernel_sums(x, y)).value) < 4 * found[1] / np.sqrt(60)


def test_no_image_is_drawn_twice_into_a_subset() -> None:
    """Images far apart: of one with a copy of itself k is 12,978, of any other two 1, so that a copy would raise KID."""
    x = 30 * torch.eye(40)
    y = -30 * torch.eye(40)
    mean, deviation = kid_subsets(x, y, 20, 20)
    across = (380 + 20 * (1 - 900 / 40) ** 3) / 400
    assert mean <= 2 - 2 * across + 1e-9
    assert deviation < 0.5 * abs(2 - 2 * across)


def test_refusals() -> None:
    x, y = features(5, 1), features(4, 2)
    with pytest.raises(ValueError, match="KID of 2 generated and 4 reference images; expected 3"):
        kid(kernel_sums(x[:2], y))
    with pytest.raises(ValueError, match="of 6 and of 3 dimensions"):
        kernel_row_sums(x, [y[:, :3]])
    with pytest.raises(ValueError, match="subsets of 5 out of 5 and 4 images"):
        kid_of_subset(x, y, 0, size=5)
    with pytest.raises(ValueError, match="6 groups of 5 images"):
        sums_in_groups(x, 6)
    two = np.ones(2)
    with pytest.raises(ValueError, match="KID of 1 images, 2 without a group"):
        kid_without_groups(KernelSums(x_x=two, x_y=two, y_y=two, y_x=two), two, 2)
