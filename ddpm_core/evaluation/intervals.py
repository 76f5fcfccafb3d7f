"""95% intervals of figures: over generated images by leaving out groups of them, and over training seeds."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpm_core.errors import InputError

GROUPS = 20
"""Groups of generated images that are left out in turn."""

# fmt: off
_QUANTILES = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
)
# fmt: on
_NORMAL = 1.959963984540054

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the range that holds what it estimates in 95 of 100 repetitions."""

    value: float
    standard_error: float
    low: float
    high: float


def t_quantile(degrees: int) -> float:
    """The 97.5% point of Student's t, to 6 digits.

    Args:
        degrees: of freedom, 1 or more.
    """
    if degrees <= len(_QUANTILES):
        return _QUANTILES[degrees - 1]
    # Abramowitz and Stegun 1964, 26.7.5.
    z = _NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + first / degrees + second / degrees**2 + third / degrees**3)


def interval(value: float, standard_error: float, degrees: int) -> Interval:
    """value -+ t standard errors.

    Args:
        degrees: of freedom that the standard error was estimated with, 1 or more.
    """
    reach = t_quantile(degrees) * standard_error
    return Interval(value=value, standard_error=standard_error, low=value - reach, high=value + reach)


def jackknife(value: float, left_out: NDArray[np.float64]) -> Interval:
    """The interval of a figure of all images about its expectation at this number of images (Tukey 1958).

    What the figure is biased by at any number of images, it does not take away. The standard error is right where
    images nearly add up, as in KID, FD and the Inception score; where they act together, as in recall and coverage, it is
    too large (Efron and Stein 1981): there the interval holds more often than it says.

    Args:
        value: the figure of all images.
        left_out: [g], the figures without one group each; groups of equal numbers of independent images.

    Raises:
        InputError: if g < 2.
    """
    g = len(left_out)
    if g < 2:
        raise InputError(f"a jackknife over {g} groups; expected 2 or more")
    return interval(value, math.sqrt((g - 1) * float(left_out.var())), g - 1)


def difference(a: float, a_left_out: NDArray[np.float64], b: float, b_left_out: NDArray[np.float64]) -> Interval:
    """The interval of a - b in pairs: what both figures share, the noise of the same seeds, goes.

    Args:
        a: the figure of one model, all images.
        a_left_out: [g], its figures without one group each.
        b: that of the other, against the same reference.
        b_left_out: [g], without the groups of the same seeds.

    Raises:
        InputError: if the numbers of groups differ, or are below 2.
    """
    if len(a_left_out) != len(b_left_out):
        raise InputError(f"figures of {len(a_left_out)} and {len(b_left_out)} groups; expected the same groups")
    return jackknife(a - b, a_left_out - b_left_out)


def difference_of_independent(
    a: float, a_left_out: NDArray[np.float64], b: float, b_left_out: NDArray[np.float64]
) -> Interval:
    """The interval of a - b where the two share no seeds; wide rather than narrow, with the fewer degrees of freedom.

    Args:
        a: the figure of one model, all images.
        a_left_out: [g], its figures without one group each.
        b: that of the other, against the same reference.
        b_left_out: [h], likewise.

    Raises:
        InputError: if there are fewer than 2 groups of either.
    """
    errors = (jackknife(value, left_out).standard_error for value, left_out in ((a, a_left_out), (b, b_left_out)))
    return interval(a - b, math.hypot(*errors), min(len(a_left_out), len(b_left_out)) - 1)


def of_mean(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """The mean of independent values, of images or of training seeds, with Student's t interval.

    Raises:
        InputError: if there are fewer than 2 values.
    """
    n = len(values)
    if n < 2:
        raise InputError(f"an interval over {n} values; expected 2 or more")
    return interval(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n), n - 1)


def difference_over_seeds(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The difference of two means over training seeds; wide rather than narrow, with the fewer degrees of freedom.

    Raises:
        InputError: if there are fewer than 2 values of either.
    """
    one, other = of_mean(a), of_mean(b)
    error = math.hypot(one.standard_error, other.standard_error)
    return interval(one.value - other.value, error, min(len(a), len(b)) - 1)


def leave_one_out(parts: Sequence[T], merge: Callable[[T, T], T]) -> Iterator[T]:
    """For each part, all others merged, by about 3 merges a part.

    Args:
        parts: sums of groups of equal numbers of images, 2 or more. As many again are held in memory.
        merge: of their kind, as `FeatureStats.merge`.
    """
    # suffixes[i] are parts i + 1 and later, merged.
    suffixes = list(accumulate(reversed(parts[1:]), lambda later, part: merge(part, later)))[::-1]
    before: T | None = None
    for part, later in zip(parts, [*suffixes, None], strict=True):
        others = later if before is None else before if later is None else merge(before, later)
        assert others is not None
        yield others
        before = part if before is None else merge(before, part)
