"""The Fréchet distance that endless images would have (Chong and Forsyth 2020), from the distances of growing sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ddpm_core.errors import InputError
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance

POINTS = 15


@dataclass(frozen=True, kw_only=True, eq=False)
class Extrapolation:
    """The line FD = value + slope / N through the distances of sets of N generated images."""

    value: float
    """At 1 / N = 0."""
    slope: float
    counts: NDArray[np.int64]
    """[points]: N of each set."""
    distances: NDArray[np.float64]
    """[points]: its distance."""


def frechet_infinity(
    parts: Sequence[FeatureStats], reference: FeatureStats, *, smallest: int, points: int = POINTS
) -> Extrapolation:
    """The intercept of a least-squares line through FD against 1 / N, of nested sets of generated images.

    The bias that falls as 1 / N goes; what falls faster stays, and bends the line downwards if the smallest set is
    small. Of Gaussians, 16 dimensions, 640 images, true distance 1.28: FD is 0.169 too high; this is 0.024 +- 0.007 too
    low from a smallest set of 2 images a dimension, and 0.000 +- 0.006 from 8. At 64, 6,400 and 5.12: 0.214 too high;
    0.036 +- 0.012 too low from 2, 0.007 +- 0.010 too high from 20. Its deviation is 1.3 times that of FD. What few
    reference images add stays too.

    Args:
        parts: of groups of generated images that share none, in an order that does not depend on what they show; one
            part is the finest step between the sets.
        reference: what they are held against, all of it each time.
        smallest: images in the smallest set, twice the dimension or more; rounded up to whole parts.
        points: sets, evenly spaced up to all parts; fewer if there are not as many parts.

    Raises:
        InputError: if the smallest set has fewer images than twice the dimension, or there are fewer than 2 sets.
    """
    dimension = len(reference.mean)
    if smallest < 2 * dimension:
        raise InputError(
            f"the smallest set has {smallest} images of {dimension} features; expected {2 * dimension} or more: "
            "below twice the dimension the distance is no line in 1 / N"
        )
    counts = np.cumsum([part.count for part in parts])
    sets = _spaced(int(np.searchsorted(counts, smallest)) + 1, len(parts), points)
    if len(sets) < 2:
        raise InputError(
            f"{len(parts)} groups of {counts[-1]} images make {len(sets)} sets of {smallest} or more; expected 2 or more"
        )
    grown = (stats for number, stats in enumerate(accumulate(parts, FeatureStats.merge), 1) if number in sets)
    distances = np.array([frechet_distance(stats, reference) for stats in grown])
    counts_of_sets = counts[np.array(sets) - 1]
    slope, value = np.polynomial.polynomial.polyfit(1.0 / counts_of_sets, distances, 1)[::-1]
    return Extrapolation(value=float(value), slope=float(slope), counts=counts_of_sets, distances=distances)


def _spaced(first: int, last: int, points: int) -> list[int]:
    """Whole numbers from first to last, evenly spaced but for rounding, no number twice; none if first > last."""
    if first > last:
        return []
    return sorted({round(place) for place in np.linspace(first, last, points).tolist()})
