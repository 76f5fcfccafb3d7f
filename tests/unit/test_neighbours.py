"""Nearest neighbours against brute force, and their merge in any order."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_core.evaluation.neighbours import Neighbours, merge, merge_indices, nearest, nearest_indices


def random_images(count: int, seed: int, levels: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (count, 3, 5, 5), generator=generator, dtype=torch.uint8)


def assert_equal(a: Neighbours, b: Neighbours) -> None:
    for name in ("squared", "indices", "images"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_agrees_with_brute_force() -> None:
    queries, images = random_images(4, 1), random_images(50, 2)
    found = nearest(queries, images, 3)
    difference = queries.numpy()[:, None] / 255.0 - images.numpy()[None] / 255.0
    expected = np.sqrt((difference**2).sum(axis=(2, 3, 4)))
    np.testing.assert_array_equal(found.indices.numpy(), expected.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(found.distances, np.sort(expected, axis=1)[:, :3])
    assert torch.equal(found.images, images[found.indices])


def test_a_copy_is_found_at_distance_zero() -> None:
    images = random_images(20, 3)
    found = nearest(images[7:8], images, 2)
    assert found.indices[0, 0] == 7
    assert found.distances[0, 0] == 0.0 < found.distances[0, 1]


def test_parts_in_any_order_give_the_whole_even_with_ties() -> None:
    queries, images = random_images(3, 4, levels=2), random_images(12, 5, levels=2)
    images[[2, 5, 9]] = images[0].clone()
    whole = nearest(queries, images, 5)
    starts = (0, 2, 6, 10)  # the first and the last part have fewer images than are asked for
    ends = (*starts[1:], 12)
    parts = [nearest(queries, images[a:b], 5, first_index=a) for a, b in zip(starts, ends, strict=True)]
    for order in itertools.permutations(parts):
        found = order[0]
        for part in order[1:]:
            found = merge(found, part, 5)
        assert_equal(found, whole)


def test_fewer_images_than_neighbours() -> None:
    assert nearest(random_images(2, 6), random_images(3, 7), 5).squared.shape == (2, 3)


def test_distances_of_large_images_are_exact() -> None:
    """float32 sums would lose the last difference: 256 x 256 x 3 pixels at full contrast, but one level."""
    white = torch.full((1, 3, 256, 256), 255, dtype=torch.uint8)
    black = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)
    black[1, 0, 0, 0] = 1
    found = nearest(white, black, 2)
    full = 3 * 256 * 256 * 255**2
    assert found.squared.tolist() == [[full - 255**2 + 254**2, full]]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, images = random_images(3, 8), random_images(17, 9)
    whole = nearest(queries, images, 4)
    monkeypatch.setattr("ddpm_core.evaluation.neighbours._CHUNK_NUMBERS", 3 * 75)
    assert_equal(nearest(queries, images, 4), whole)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="queries are 3x5x5 and images 3x4x4"):
        nearest(random_images(1, 10), random_images(1, 11)[:, :, :4, :4].contiguous(), 1)


def test_indices_alone_are_those_of_the_neighbours() -> None:
    """In any number of blocks of queries and images."""
    queries, images = random_images(7, 12, levels=2), random_images(17, 13, levels=2)
    whole = nearest(queries, images, 4)
    parts = [nearest_indices(queries, part, 4, first_index=start) for start, part in ((6, images[6:]), (0, images[:6]))]
    found = merge_indices(*parts, 4)
    assert torch.equal(found.squared, whole.squared)
    assert torch.equal(found.indices, whole.indices)


@pytest.mark.parametrize("numbers", [1, 2 * 75, 3 * 75])
def test_blocks_of_queries_do_not_show(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, images = random_images(7, 14, levels=2), random_images(17, 15, levels=2)
    whole = nearest(queries, images, 4)
    monkeypatch.setattr("ddpm_core.evaluation.neighbours._CHUNK_NUMBERS", numbers)
    assert_equal(nearest(queries, images, 4), whole)


def test_none_asked_for_or_none_to_search() -> None:
    assert nearest(random_images(0, 16), random_images(3, 17), 2).images.shape == (0, 2, 3, 5, 5)
    assert nearest(random_images(2, 18), random_images(0, 19), 2).squared.shape == (2, 0)
