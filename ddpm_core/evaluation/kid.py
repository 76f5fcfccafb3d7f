"""Kernel Inception Distance (Bińkowski et al. 2018): the unbiased MMD^2 of all images, and how far chance moves it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.errors import InputError
from ddpm_core.evaluation.blocks import facing, group_bounds, leave_out_self, row_blocks
from ddpm_core.random import Purpose, random_bits
from ddpm_core.types import Float, Int, Tensor

_BLOCK = 2048
NUM_SUBSETS, SUBSET_SIZE = 100, 1000
"""The customary ones."""
_Sums = NDArray[np.float64] | float
_Counts = NDArray[np.int64] | int


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelSums:
    """The kernel summed for each of n generated images x and m reference images y."""

    x_x: NDArray[np.float64]
    """[n]: over the other generated images."""
    x_y: NDArray[np.float64]
    """[n]: over the reference images."""
    y_y: NDArray[np.float64]
    """[m]: over the other reference images."""
    y_x: NDArray[np.float64]
    """[m]: over the generated images."""


@dataclass(frozen=True, kw_only=True)
class Kid:
    """The estimate and two variances of it, for two questions."""

    value: float
    """Unbiased; below 0 by chance where the two sets are hardly told apart."""
    variance: float
    """Over draws of generated and of reference images: how far `value` is from the distance of the distributions."""
    variance_generated: float
    """Over draws of generated images alone: how far `value` is from that of the model and these reference images."""


def kernel_row_sums(
    rows: Float[Tensor, "b d"], columns: Iterable[Float[Tensor, "_ e"]], *, first_row: int | None = None
) -> NDArray[np.float64]:
    """[b]: for each row the sum over all columns of k(x, y) = (x.y / d + 1)^3, in float64 on the rows' device.

    Args:
        rows: a block of one set.
        columns: all blocks of the other set, in order; memory holds b times a block's rows.
        first_row: where the columns are of the same set, the index of the first row in it: no image meets itself.

    Raises:
        InputError: if the dimensions differ.
    """
    rows = rows.double()
    total = rows.new_zeros(len(rows))
    for first_column, block in facing(rows, columns):
        kernel = (rows @ block.T).div_(rows.shape[1]).add_(1.0).pow_(3)
        leave_out_self(kernel, first_row, first_column, 0.0)
        total += kernel.sum(dim=1)
    sums: NDArray[np.float64] = total.cpu().numpy()
    return sums


def kernel_sums(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], block: int = _BLOCK) -> KernelSums:
    """All four by one process; workers that share the rows call `kernel_row_sums` and join its results in order."""
    return KernelSums(x_x=_within(x, block), x_y=_across(x, y, block), y_y=_within(y, block), y_x=_across(y, x, block))


def kid(sums: KernelSums) -> Kid:
    """The U-statistic over all images, and its variances by the delete-one jackknife, exact from the sums.

    The jackknife's first order is consistent (Arvesen 1969); what is of second order it counts twice, so that it errs
    upwards where the sets are hardly told apart: at equal distributions `variance` is about twice too large.

    Raises:
        InputError: if there are fewer than 3 generated or reference images.
    """
    n, m = len(sums.x_x), len(sums.y_y)
    if min(n, m) < 3:
        raise InputError(f"KID of {n} generated and {m} reference images; expected 3 or more of each")
    x_x, x_y, y_y = sums.x_x.sum(), sums.x_y.sum(), sums.y_y.sum()
    without_x = _mmd2(x_x - 2 * sums.x_x, x_y - sums.x_y, y_y, n - 1, m)
    without_y = _mmd2(x_x, x_y - sums.y_x, y_y - 2 * sums.y_y, n, m - 1)
    of_x, of_y = ((n - 1) * without_x.var(), (m - 1) * without_y.var())
    return Kid(value=float(_mmd2(x_x, x_y, y_y, n, m)), variance=float(of_x + of_y), variance_generated=float(of_x))


def sums_in_groups(x: Float[Tensor, "n d"], groups: int, block: int = _BLOCK) -> NDArray[np.float64]:
    """[n]: the kernel summed for each generated image over the others of its own group (`blocks.group_bounds`).

    Raises:
        InputError: if there are fewer than 2 groups, or fewer images than groups.
    """
    parts = [x[first:end] for first, end in group_bounds(len(x), groups)]
    return np.concatenate([_within(part, block) for part in parts])


def kid_without_groups(sums: KernelSums, in_groups: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """[groups]: KID without each group of generated images, for `intervals.jackknife` and `intervals.difference`.

    Args:
        in_groups: [n], of `sums_in_groups` with as many groups.

    Raises:
        InputError: if there are fewer than 2 groups, or too few images for them.
    """
    n, m = len(sums.x_x), len(sums.y_y)
    bounds = group_bounds(n, groups)
    starts = [first for first, _ in bounds]
    left = n - np.array([end - first for first, end in bounds])
    if left.min() < 2:
        raise InputError(f"KID of {left.min()} images, {n} without a group, was asked for; expected 2 or more")
    of_group, across, within = (np.add.reduceat(each, starts) for each in (sums.x_x, sums.x_y, in_groups))
    # Pairs with one or both ends in the group go; those with both were taken twice.
    x_x = sums.x_x.sum() - 2 * of_group + within
    return _mmd2(x_x, sums.x_y.sum() - across, sums.y_y.sum(), left, m)


def kid_of_subset(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], which: int, *, size: int = SUBSET_SIZE, seed: int = 0
) -> float:
    """KID of a random subset of each set. The customary figure is the mean over the first 100 subsets of 1,000.

    Their deviation is that of a subset, neither a standard error nor an interval: `kid` has those.

    Args:
        which: the subset's number; with the seed it decides which images are in it.

    Raises:
        InputError: if a set has fewer than `size` images, or size < 2.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise InputError(f"subsets of {size} out of {len(x)} and {len(y)} images; expected 2 to the smaller number")
    a, b = (each[_subset(len(each), size, seed, 2 * which + side)] for side, each in enumerate((x, y)))
    a_a, a_b, b_b = _within(a, size).sum(), _across(a, b, size).sum(), _within(b, size).sum()
    return float(_mmd2(a_a, a_b, b_b, size, size))


def _subset(count: int, size: int, seed: int, step: int) -> Int[Tensor, " size"]:
    """Indices without replacement: those of the smallest 63-bit words."""
    drawn = random_bits(seed, Purpose.SUBSET, torch.arange(count), 2, step=step)
    return (drawn[:, 0] << 31 | drawn[:, 1] >> 1).argsort(stable=True)[:size]


def _within(x: Float[Tensor, "n d"], block: int) -> NDArray[np.float64]:
    rows = row_blocks(x, block)
    columns = [part for _, part in rows]
    return np.concatenate([kernel_row_sums(part, columns, first_row=first) for first, part in rows])


def _across(x: Float[Tensor, "n d"], y: Float[Tensor, "m e"], block: int) -> NDArray[np.float64]:
    columns = [part for _, part in row_blocks(y, block)]
    return np.concatenate([kernel_row_sums(part, columns) for _, part in row_blocks(x, block)])


def _mmd2(x_x: _Sums, x_y: _Sums, y_y: _Sums, n: _Counts, m: int) -> NDArray[np.float64]:
    """Of sums over ordered pairs, no image with itself (Gretton et al. 2012, Eq. 3)."""
    return np.asarray(x_x / (n * (n - 1)) - 2 * x_y / (n * m) + y_y / (m * (m - 1)))
