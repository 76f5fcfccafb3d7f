"""KID, precision, recall, density and coverage, from all pairs of features; a block of rows a task."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.figures import Figure, number, sure
from ddpm_core.evaluation.intervals import GROUPS, interval, of_mean
from ddpm_core.evaluation.kid import (
    NUM_SUBSETS,
    SUBSET_SIZE,
    KernelSums,
    kernel_row_sums,
    kid,
    kid_of_subset,
    kid_without_groups,
    sums_in_groups,
)
from ddpm_core.evaluation.manifold import (
    K_DENSITY_COVERAGE,
    K_PRECISION_RECALL,
    Manifold,
    balls_around,
    held_by_balls,
    nearest_squared,
)
from ddpm_core.types import Tensor
from pipelines.cluster.placement import for_a_cpu
from pipelines.cluster.tasks import gather
from pipelines.progress import progress

Array = NDArray[np.float32]
_Side = Literal["generated", "real"]
_BLOCK = 1024
_K = max(K_PRECISION_RECALL, K_DENSITY_COVERAGE)
SMALLEST = _K + 1
"""Images of each side that there must be, for each to have its neighbours."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """What all pairs of generated and real images tell."""

    kernel: KernelSums
    manifold: Manifold
    balls: NDArray[np.int64]
    """[n, k]: in how many real images' balls each generated one lies, of radius 1 to k."""
    curve: NDArray[np.float64]
    """[k, 2]: precision and recall by balls of radius 1 to k."""


def measure_pairs(generated: Array, real: Array) -> Pairs:
    """Of features [n, d] and [m, d], SMALLEST or more; the same figures, whoever did which block."""
    sets = ray.put(generated), ray.put(real)
    blocks: list[tuple[_Side, int]] = [("generated", first) for first in range(0, len(generated), _BLOCK)]
    blocks += [("real", first) for first in range(0, len(real), _BLOCK)]
    end = -(-len(generated) // _BLOCK)
    with progress("measure pairs", 2 * len(blocks), "block") as shown:
        found = gather(_within_and_across, blocks, for_a_cpu("evaluate"), *sets, on_done=shown.set)
        (x_x, x_y, of_x), (y_y, y_x, of_y) = (_joined(found[:end]), _joined(found[end:]))
        found = gather(
            _balls, blocks, for_a_cpu("evaluate"), *sets, of_x, of_y, on_done=lambda n: shown.set(len(blocks) + n)
        )
    (balls,), (reached, covered) = _joined(found[:end]), _joined(found[end:])
    curve = np.stack([(balls > 0).mean(axis=0), (reached > 0).mean(axis=0)], axis=1)
    precision, recall = curve[K_PRECISION_RECALL - 1].tolist()
    return Pairs(
        kernel=KernelSums(x_x=x_x, x_y=x_y, y_y=y_y, y_x=y_x),
        manifold=Manifold(
            precision=precision,
            recall=recall,
            density=float(balls[:, K_DENSITY_COVERAGE - 1].mean()) / K_DENSITY_COVERAGE,
            coverage=float((covered > 0).mean()),
        ),
        balls=balls,
        curve=curve,
    )


def _joined(found: list[tuple[NDArray[Any], ...]]) -> list[NDArray[Any]]:
    """Each of the arrays that the blocks of a side gave, whole."""
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _within_and_across(block: tuple[_Side, int], generated: Array, real: Array) -> tuple[NDArray[Any], ...]:
    """In a task: the kernel's sums over a block's own set and over the other; squared distances to its neighbours."""
    torch.set_num_threads(1)
    side, first = block
    own, other = (generated, real) if side == "generated" else (real, generated)
    rows = _rows(own, first)
    return (
        kernel_row_sums(rows, _blocks(own), first_row=first),
        kernel_row_sums(rows, _blocks(other)),
        nearest_squared(rows, _blocks(own), _K, first_row=first).numpy(),
    )


def _balls(
    block: tuple[_Side, int],
    generated: Array,
    real: Array,
    of_generated: NDArray[np.float64],
    of_real: NDArray[np.float64],
) -> tuple[NDArray[Any], ...]:
    """In a task: how many balls of the other set each of a block's images lies in; for real ones, how many it holds."""
    torch.set_num_threads(1)
    side, first = block
    radii = {"generated": torch.from_numpy(of_real.copy()), "real": torch.from_numpy(of_generated.copy())}[side]
    if side == "generated":
        return (balls_around(_rows(generated, first), _blocks(real), radii).numpy(),)
    rows, own = _rows(real, first), torch.from_numpy(of_real[first : first + _BLOCK, K_DENSITY_COVERAGE - 1].copy())
    return (
        balls_around(rows, _blocks(generated), radii).numpy(),
        held_by_balls(rows, own, _blocks(generated)).numpy(),
    )


def _blocks(features: Array) -> Iterator[Tensor]:
    return (_rows(features, first) for first in range(0, len(features), _BLOCK))


def _rows(features: Array, first: int) -> Tensor:
    return torch.from_numpy(features[first : first + _BLOCK].copy())  # Ray's memory is read-only, torch would warn


def pair_figures(pairs: Pairs, generated: Array, real: Array, features: Features) -> list[Figure]:
    """KID, precision, recall, density and coverage, with intervals where they hold."""
    of, named = f"{len(generated):,} generated and {len(real):,} training images", features.named
    precise = of_mean((pairs.balls[:, K_PRECISION_RECALL - 1] > 0).astype(np.float64))
    dense = of_mean(pairs.balls[:, K_DENSITY_COVERAGE - 1] / K_DENSITY_COVERAGE)
    tight, wide = f"k = {K_PRECISION_RECALL}", f"k = {K_DENSITY_COVERAGE}"
    recall = Figure(
        name=named("recall"),
        value=pairs.manifold.recall,
        of=of,
        note=f"share of real images in the ball of a generated one, {tight}",
    )
    coverage = Figure(
        name=named("coverage"),
        value=pairs.manifold.coverage,
        of=of,
        note=f"share of real images with a generated one in their ball, {wide}",
    )
    return [
        _kid(pairs.kernel, generated, named("kid"), of),
        *_customary_kid(named("kid_subsets"), generated, real),
        sure(
            precise,
            name=named("precision"),
            of=of,
            note=f"share of generated images in the ball of a real one, {tight}",
        ),
        recall,
        sure(
            dense,
            name=named("density"),
            of=of,
            note=f"balls of real images that a generated one lies in, over k, {wide}",
        ),
        coverage,
    ]


def _kid(kernel: KernelSums, generated: Array, name: str, of: str) -> Figure:
    n, estimate = len(generated), kid(kernel)
    left_out: tuple[float, ...] = ()
    if n >= 2 * GROUPS:
        within = sums_in_groups(torch.from_numpy(generated), GROUPS)
        left_out = tuple(kid_without_groups(kernel, within, GROUPS).tolist())
    found = interval(estimate.value, float(np.sqrt(estimate.variance_generated)), n - 1)
    return sure(found, name=name, of=of, left_out=left_out, note="unbiased, lower is closer; below 0 by chance")


def _customary_kid(name: str, generated: Array, real: Array) -> list[Figure]:
    """As other code prints it; none where there are fewer images than a subset has."""
    if min(len(generated), len(real)) < SUBSET_SIZE:
        return []
    sets = ray.put(generated), ray.put(real)
    with progress("measure KID", NUM_SUBSETS, "subset") as shown:
        found = gather(_subset, range(NUM_SUBSETS), for_a_cpu("evaluate"), *sets, on_done=shown.set)
    note = f"the customary mean over subsets; their standard deviation is {number(float(np.std(found)))}"
    of = f"{NUM_SUBSETS} subsets of {SUBSET_SIZE:,} images"
    return [Figure(name=name, value=float(np.mean(found)), of=of, note=note)]


def _subset(which: int, generated: Array, real: Array) -> float:
    """In a task."""
    torch.set_num_threads(1)
    return kid_of_subset(torch.from_numpy(generated.copy()), torch.from_numpy(real.copy()), which)
