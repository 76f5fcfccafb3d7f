"""The training images nearest to generated ones, in pixel space: whether a model repeats what it saw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.data.pixels import on_white
from ddpm_core.errors import InputError
from ddpm_core.types import Float, Int, Tensor, UInt8

_CHUNK_NUMBERS = 2**22
"""Pixels converted and distances held at once: 32 MiB in float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighbourIndices:
    """Which k images are nearest to each of q queries so far, nearest first; of equals the lower index first."""

    squared: Int[Tensor, "q k"]
    """Squared distances in 8-bit levels, exact."""
    indices: Int[Tensor, "q k"]
    """Where each neighbour stands in the set that was searched."""

    @property
    def distances(self) -> NDArray[np.float64]:
        """[q, k]: L2 distance over all pixels and channels, on pixels in [0, 1]."""
        squared: NDArray[np.int64] = self.squared.numpy()
        return np.sqrt(squared) / 255.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours(NeighbourIndices):
    """The k nearest images themselves too; for a few queries."""

    images: UInt8[Tensor, "q k c h w"]


def nearest(
    queries: UInt8[Tensor, "q c h w"], images: UInt8[Tensor, "n channels height width"], k: int, *, first_index: int = 0
) -> Neighbours:
    """The k nearest of one batch, or all n if there are fewer; on the CPU. Images with alpha are compared on white.

    Args:
        first_index: index of the batch's first image in the whole set.

    Raises:
        InputError: if queries and images differ in shape.
    """
    found = nearest_indices(queries, images, k)
    return Neighbours(squared=found.squared, indices=found.indices + first_index, images=images.cpu()[found.indices])


def nearest_indices(
    queries: UInt8[Tensor, "q c h w"], images: UInt8[Tensor, "n channels height width"], k: int, *, first_index: int = 0
) -> NeighbourIndices:
    """As `nearest`, without the images: for any number of queries, in blocks of bounded memory.

    Args:
        first_index: index of the batch's first image in the whole set.

    Raises:
        InputError: if queries and images differ in shape.
    """
    if queries.shape[1:] != images.shape[1:]:
        raise InputError(
            f"queries are {_shape(queries)} and images {_shape(images)} (channels, height, width); expected the same"
        )
    queries, images = on_white(queries), on_white(images)
    side = max(1, min(_CHUNK_NUMBERS // queries.shape[1:].numel(), math.isqrt(_CHUNK_NUMBERS)))
    rows = [_nearest_of_block(block, images, k, side) for block in torch.split(queries.flatten(1), side)]
    found = _joined(rows, dim=0)
    return NeighbourIndices(squared=found.squared, indices=found.indices + first_index)


def merge(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    """The k nearest of two disjoint parts of a set, in whichever order the parts come."""
    both, images = _joined([a, b], dim=1), torch.cat([a.images, b.images], dim=1)
    order = _order(both, k)
    rows = torch.arange(len(order))[:, None]
    return Neighbours(squared=both.squared[rows, order], indices=both.indices[rows, order], images=images[rows, order])


def merge_indices(a: NeighbourIndices, b: NeighbourIndices, k: int) -> NeighbourIndices:
    """As `merge`, without the images."""
    both = _joined([a, b], dim=1)
    order = _order(both, k)
    return NeighbourIndices(squared=both.squared.gather(1, order), indices=both.indices.gather(1, order))


def _joined(parts: Sequence[NeighbourIndices], dim: int) -> NeighbourIndices:
    squared, indices = (torch.cat([getattr(part, name) for part in parts], dim) for name in ("squared", "indices"))
    return NeighbourIndices(squared=squared, indices=indices)


def _order(found: NeighbourIndices, k: int) -> Int[Tensor, "q k"]:
    by_index = found.indices.argsort(dim=1)
    by_distance = found.squared.gather(1, by_index).argsort(dim=1, stable=True)
    return by_index.gather(1, by_distance)[:, :k]


def _nearest_of_block(
    queries: UInt8[Tensor, "q d"], images: UInt8[Tensor, "n c h w"], k: int, side: int
) -> NeighbourIndices:
    """The k nearest of all images, `side` of them at a time."""
    found: NeighbourIndices | None = None
    asked = queries.double()
    for number, chunk in enumerate(torch.split(images.flatten(1), side)):
        squared = _squared_distances(asked, chunk.double())
        # The place is the last digit of the key: no two are equal, and of equal distances the lower place is smaller.
        places = torch.arange(len(chunk), device=squared.device)
        keys = (squared * len(chunk) + places).topk(min(k, len(chunk)), largest=False).values.cpu()
        near = NeighbourIndices(squared=keys // len(chunk), indices=keys % len(chunk) + number * side)
        found = merge_indices(found, near, k) if found else near
    assert found is not None
    return found


def _squared_distances(queries: Float[Tensor, "q d"], images: Float[Tensor, "n d"]) -> Int[Tensor, "q n"]:
    """|q|^2 + |i|^2 - 2 q.i on 8-bit levels. All sums are integers below 2^53: float64 holds them exactly."""
    return ((queries**2).sum(1)[:, None] + (images**2).sum(1)[None, :] - 2.0 * queries @ images.T).long()


def _shape(images: Tensor) -> str:
    return "x".join(str(size) for size in images.shape[1:])
