"""Precision, recall, density and coverage against their definitions over all pairs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_core.evaluation.manifold import balls_around, held_by_balls, manifold, nearest_squared


def features(count: int, seed: int, dimensions: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator) * (1 + seed / 3) + seed / 5


def by_definition(real: Tensor, generated: Tensor, k: int, k_density: int) -> tuple[float, float, float, float]:
    """Image by image, each ball open."""

    def distance(a: Tensor, b: Tensor) -> float:
        return float(((a.double() - b.double()) ** 2).sum())

    def radius(images: Tensor, i: int, k: int) -> float:
        return sorted(distance(images[i], images[j]) for j in range(len(images)) if j != i)[k - 1]

    m, n = len(real), len(generated)
    precision = sum(any(distance(g, real[i]) < radius(real, i, k) for i in range(m)) for g in generated) / n
    recall = sum(any(distance(r, generated[j]) < radius(generated, j, k) for j in range(n)) for r in real) / m
    density = sum(distance(g, real[i]) < radius(real, i, k_density) for g in generated for i in range(m))
    covered = sum(any(distance(g, real[i]) < radius(real, i, k_density) for g in generated) for i in range(m))
    return precision, recall, density / (k_density * n), covered / m


def all_four(real: Tensor, generated: Tensor, **settings: int) -> tuple[float, float, float, float]:
    found = manifold(real, generated, **settings)
    return found.precision, found.recall, found.density, found.coverage


@pytest.mark.parametrize("block", [1, 5, 17, 100])
def test_is_its_definition_in_blocks_of_any_size(block: int) -> None:
    real, generated = features(17, 1), features(14, 2) + 1.5
    expected = by_definition(real, generated, 3, 5)
    assert len({*expected, 0.0, 1.0}) == 6  # none is trivial, no two are alike
    assert all_four(real, generated, block=block) == pytest.approx(expected, abs=1e-15)


def test_whole_numbers_have_many_ties() -> None:
    """What lies on a surface is outside."""
    generator = torch.Generator().manual_seed(1)
    real, generated = (torch.randint(3, (each, 3), generator=generator).float() for each in (20, 15))
    found = all_four(real, generated, k_precision_recall=4, k_density_coverage=6, block=4)
    assert found == pytest.approx(by_definition(real, generated, 4, 6), abs=1e-15)


@pytest.mark.parametrize("block", [7, 100])
def test_ties_of_features_that_no_float_holds(block: int) -> None:
    """Copies of real images among the generated: a real image's k-th neighbour lies on its surface, however it is rounded."""
    real = features(40, 1, 50) / 3 + 100.0
    generated = real[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    found = manifold(real, generated, k_precision_recall=1, k_density_coverage=5, block=block)
    assert found.precision == found.recall == found.coverage == 1.0
    assert found.density == pytest.approx(1.0, abs=1e-15)  # itself and 4 nearer than the fifth


def test_distances_of_copies_are_zero_and_small_ones_exact() -> None:
    x = features(6, 1, 100) + 1000.0
    x[4] = x[1]
    x[5] = x[2]
    x[5, 0] += 2.0**-10
    found = nearest_squared(x[:3], [x[:2], x[2:]], 1, first_row=0)[:, 0]
    assert found[1] == 0.0
    assert found[2] == 2.0**-20
    assert found[0] > 10.0


def test_a_set_of_copies_has_balls_that_hold_nothing() -> None:
    copies = torch.ones(6, 2) / 3
    assert all_four(copies, copies) == (0.0, 0.0, 0.0, 0.0)


def test_nearest_are_sorted_and_radii_of_several_k_come_at_once() -> None:
    rows, columns = features(5, 1), features(12, 2)
    squared = ((rows[:, None].double() - columns[None].double()) ** 2).sum(-1).sort(dim=1).values
    for size in (2, 5, 12):
        found = nearest_squared(rows, columns.split(size), 4)
        torch.testing.assert_close(found, squared[:, :4], rtol=1e-12, atol=0)


def test_counts_of_each_row() -> None:
    rows, columns = features(5, 1), features(12, 2)
    squared = ((rows[:, None].double() - columns[None].double()) ** 2).sum(-1)
    around, own = squared.median(dim=0).values * 1.01, squared.median(dim=1).values * 1.01
    radii = torch.stack([around, around * 0.6, around * 1.7], dim=1)
    assert torch.equal(balls_around(rows, columns.split(5), radii), (squared[:, :, None] < radii[None]).sum(1))
    assert torch.equal(held_by_balls(rows, own, columns.split(5)), (squared < own[:, None]).sum(1))


@pytest.mark.parametrize(("longer", "inside"), [(-1e-13, 0), (0.0, 0), (1e-13, 0), (1e-8, 1)])
def test_rounding_moves_nothing_across_a_surface(longer: float, inside: int) -> None:
    row, column = features(1, 1, 40), features(1, 2, 40)
    radius = nearest_squared(row, [column], 1)[:, 0] * (1 + longer)
    assert balls_around(row, [column], radius[:, None]).item() == inside
    assert held_by_balls(row, radius, [column]).item() == inside


def test_the_real_distribution_has_density_one() -> None:
    real, generated = (torch.randn(1500, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    found = manifold(real, generated)
    assert found.density == pytest.approx(1.0, abs=0.08)
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.02)  # Naeem et al. 2020, Lemma 2, for equal large sets


def test_refusals() -> None:
    x = features(4, 1)
    with pytest.raises(ValueError, match="k is 4 among 4 images; expected 1 or more, and fewer"):
        manifold(x, x, k_precision_recall=4, k_density_coverage=1)
    with pytest.raises(ValueError, match="k is 5 among 4 images"):
        nearest_squared(x, [x], 5)
    with pytest.raises(ValueError, match="k is 0 among 4 images"):
        nearest_squared(x, [x], 0)
    with pytest.raises(ValueError, match="of 3 and of 2 dimensions"):
        balls_around(x, iter([x[:, :2]]), torch.ones(4, 1))
    np.testing.assert_array_equal(nearest_squared(x, [x], 4)[:, 0], np.zeros(4))
