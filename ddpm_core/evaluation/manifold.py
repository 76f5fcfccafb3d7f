"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), from balls around images.

An image's ball reaches to its k-th nearest neighbour in its own set. As in the package prdc, what lies on its surface is
outside (Kynkäänniemi et al. 2019, Eq. 1, and torch-fidelity have it inside). Unlike there, squared distances are exact
to some 1e-9 of themselves, those of copies are 0, and what differs by less than that is equal: the figures depend
neither on blocks nor on how a product of matrices is rounded.

Against reference images that are held, precision and density are means over generated images: `intervals.of_mean` of
what each adds has their interval. Recall and coverage are none; a jackknife's interval is too wide for them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.errors import InputError
from ddpm_core.evaluation.blocks import facing, leave_out_self, row_blocks
from ddpm_core.types import Float, Int, Tensor

K_PRECISION_RECALL, K_DENSITY_COVERAGE = 3, 5
"""As published."""
_BLOCK = 2048
_CANCELLED = 1e-4
"""Of |x|^2 + |y|^2: below it, |x - y|^2 is computed from the differences."""
_EQUAL = 1e-9
"""Of a squared radius: a distance that falls short of it by less lies on the surface."""
_AT_ONCE = 2**22
"""Differences held at once."""


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """How generated images lie among real ones."""

    precision: float
    """Share of generated images within the ball of a real one; in [0, 1]."""
    recall: float
    """Share of real images within the ball of a generated one; in [0, 1]."""
    density: float
    """Mean number of real balls that a generated image lies in, over k; 1 is expected of the real distribution."""
    coverage: float
    """Share of real balls that hold a generated image; in [0, 1]."""


def nearest_squared(
    rows: Float[Tensor, "b d"], columns: Iterable[Float[Tensor, "_ e"]], k: int, *, first_row: int | None = None
) -> Float[Tensor, "b k"]:
    """Squared distances of each row to its k nearest columns, the nearest first; column k - 1 is the k-th radius squared.

    Args:
        rows: a block of one set.
        columns: all blocks of the other set; memory holds b times a block's rows.
        first_row: where the columns are of the same set, the index of the first row in it: an image is not its own
            neighbour, but a copy of it is, at 0.

    Raises:
        InputError: if there are fewer than k others, or the dimensions differ.
    """
    nearest, seen = rows.new_empty((len(rows), 0), dtype=torch.float64), 0
    for first_column, block in facing(rows, columns):
        squared = _squared_distances(rows.double(), block)
        leave_out_self(squared, first_row, first_column, float("inf"))
        candidates = torch.cat([nearest, squared], dim=1)
        nearest = candidates.topk(min(k, candidates.shape[1]), dim=1, largest=False).values
        seen += len(block)
    if not 1 <= k <= seen - (first_row is not None):
        raise InputError(f"k is {k} among {seen} images; expected 1 or more, and fewer than the images")
    return nearest.cpu()


def balls_around(
    rows: Float[Tensor, "b d"],
    columns: Iterable[Float[Tensor, "_ d"]],
    squared_radii: Float[Tensor, "n k"],
) -> Int[Tensor, "b k"]:
    """For each row and each of k radii, how many of the balls around the n columns it lies in: precision, density, recall.

    Raises:
        InputError: if the dimensions differ.
    """
    radii = squared_radii.to(rows.device)
    found = torch.zeros((len(rows), radii.shape[1]), dtype=torch.int64, device=rows.device)
    for first, block in facing(rows, columns):
        squared = _squared_distances(rows.double(), block)
        for k, each in enumerate(radii[first : first + len(block)].T):
            found[:, k] += _inside(squared, each[None]).sum(dim=1)
    return found.cpu()


def held_by_balls(
    rows: Float[Tensor, "b d"], squared_radii: Float[Tensor, " b"], columns: Iterable[Float[Tensor, "_ e"]]
) -> Int[Tensor, " b"]:
    """For each row, how many of the columns lie in its ball: coverage.

    Raises:
        InputError: if the dimensions differ.
    """
    radii = squared_radii.to(rows.device)[:, None]
    found = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for _, block in facing(rows, columns):
        found += _inside(_squared_distances(rows.double(), block), radii).sum(dim=1)
    return found.cpu()


def manifold(
    real: Float[Tensor, "m d"],
    generated: Float[Tensor, "n d"],
    *,
    k_precision_recall: int = K_PRECISION_RECALL,
    k_density_coverage: int = K_DENSITY_COVERAGE,
    block: int = _BLOCK,
) -> Manifold:
    """All four by one process; workers that share the rows join results of the functions above in order.

    Raises:
        InputError: if a k is below 1 or not below the number of images, or the dimensions differ.
    """
    k = max(k_precision_recall, k_density_coverage)
    of_real, of_generated = (_radii(each, k, block) for each in (real, generated))
    r, g = ([part for _, part in row_blocks(each, block)] for each in (real, generated))
    tight, wide = of_real[:, [k_precision_recall - 1]], of_real[:, [k_density_coverage - 1]]
    reached = of_generated[:, [k_precision_recall - 1]]
    return Manifold(
        precision=_share(balls_around(part, r, tight) for part in g),
        recall=_share(balls_around(part, g, reached) for part in r),
        density=float(_joined(balls_around(part, r, wide) for part in g).mean()) / k_density_coverage,
        coverage=_share(
            held_by_balls(part, wide[first : first + block, 0], g) for first, part in row_blocks(real, block)
        ),
    )


def _radii(features: Float[Tensor, "n d"], k: int, block: int) -> Float[Tensor, "n k"]:
    blocks = row_blocks(features, block)
    columns = [part for _, part in blocks]
    return torch.cat([nearest_squared(part, columns, k, first_row=first) for first, part in blocks])


def _joined(counts: Iterable[Int[Tensor, " b"]]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = torch.cat(list(counts)).numpy()
    return found


def _share(counts: Iterable[Int[Tensor, " b"]]) -> float:
    return float((_joined(counts) > 0).mean())


def _inside(squared: Float[Tensor, "b c"], squared_radii: Tensor) -> Tensor:
    return squared < squared_radii * (1.0 - _EQUAL)


def _squared_distances(rows: Float[Tensor, "b d"], columns: Float[Tensor, "c d"]) -> Float[Tensor, "b c"]:
    """|x|^2 + |y|^2 - 2 x.y, and where most of that cancels, sum (x - y)^2."""
    size = rows.square().sum(1)[:, None] + columns.square().sum(1)[None, :]
    squared = size - 2.0 * rows @ columns.T
    row, column = (squared <= _CANCELLED * size).nonzero(as_tuple=True)
    at_once = max(1, _AT_ONCE // rows.shape[1])
    for i, j in zip(torch.split(row, at_once), torch.split(column, at_once), strict=True):
        squared[i, j] = (rows[i] - columns[j]).square().sum(1)
    return squared
