"""The training images nearest to generated ones, in pixel space: whether a model repeats what it saw."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.errors import InputError
from ddpm_core.types import Int, Tensor, UInt8

_CHUNK_NUMBERS = 2**24
"""Pixels converted at once: 128 MiB in float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The k images nearest to each of q queries so far, nearest first; of equals the lower index first."""

    squared: Int[Tensor, "q k"]
    """Squared distances in 8-bit levels, exact."""
    indices: Int[Tensor, "q k"]
    """Where each neighbour stands in the set that was searched."""
    images: UInt8[Tensor, "q k c h w"]

    @property
    def distances(self) -> NDArray[np.float64]:
        """[q, k]: L2 distance over all pixels and channels, on pixels in [0, 1]."""
        squared: NDArray[np.int64] = self.squared.numpy()
        return np.sqrt(squared) / 255.0


def nearest(
    queries: UInt8[Tensor, "q c h w"], images: UInt8[Tensor, "n channels height width"], k: int, *, first_index: int = 0
) -> Neighbours:
    """The k nearest of one batch, or all n if there are fewer; on the CPU.

    Args:
        first_index: index of the batch's first image in the whole set.

    Raises:
        InputError: if queries and images differ in shape.
    """
    if queries.shape[1:] != images.shape[1:]:
        raise InputError(
            f"queries are {_shape(queries)} and images {_shape(images)} (channels, height, width); expected the same"
        )
    squared = _squared_distances(queries, images)
    order = squared.argsort(dim=1, stable=True)[:, :k].cpu()
    return Neighbours(squared=squared.cpu().gather(1, order), indices=order + first_index, images=images.cpu()[order])


def merge(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    """The k nearest of two disjoint parts of a set, in whichever order the parts come."""
    squared, indices, images = (
        torch.cat([getattr(a, name), getattr(b, name)], dim=1) for name in ("squared", "indices", "images")
    )
    by_index = indices.argsort(dim=1)
    by_distance = squared.gather(1, by_index).argsort(dim=1, stable=True)
    order = by_index.gather(1, by_distance)[:, :k]
    rows = torch.arange(len(order))[:, None]
    return Neighbours(squared=squared[rows, order], indices=indices[rows, order], images=images[rows, order])


def _squared_distances(queries: UInt8[Tensor, "q c h w"], images: UInt8[Tensor, "n c h w"]) -> Int[Tensor, "q n"]:
    """|q|^2 + |i|^2 - 2 q.i on 8-bit levels. All sums are integers below 2^53: float64 holds them exactly."""
    asked = queries.flatten(1).double()
    parts = []
    for chunk in torch.split(images.flatten(1), max(1, _CHUNK_NUMBERS // asked.shape[1])):
        real = chunk.double()
        parts.append((asked**2).sum(1)[:, None] + (real**2).sum(1)[None, :] - 2.0 * asked @ real.T)
    return torch.cat(parts, dim=1).long()


def _shape(images: Tensor) -> str:
    return "x".join(str(size) for size in images.shape[1:])
