"""A figure as it is printed: what it was measured on, and how sure it is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_core.evaluation.intervals import Interval, jackknife


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of an evaluation; plain JSON."""

    name: str
    value: float
    of: str
    """Such as `512 generated images against 1,455 training images`."""
    note: str = ""
    low: float | None = None
    """Of the 95% interval, where one holds: of what the figure would be over other images of the same model."""
    high: float | None = None
    left_out: tuple[float, ...] = ()
    """The figure without each group of generated images in turn: two models of the same seeds are compared by these."""
    headline: bool = False
    """Whether it stands at the top of the report too, not in the table alone."""

    @property
    def text(self) -> str:
        """Four significant digits, and the interval as far as there is one."""
        return number(self.value) + (f" (95%: {self.interval})" if self.interval else "")

    @property
    def interval(self) -> str:
        """`2.9 to 3.4`; empty where there is none."""
        return "" if self.low is None or self.high is None else f"{number(self.low)} to {number(self.high)}"


def sure(found: Interval, **rest: Any) -> Figure:
    """A figure with an interval, and its other fields."""
    return Figure(value=found.value, low=found.low, high=found.high, **rest)


def jackknifed(value: float, left_out: NDArray[np.float64], **rest: Any) -> Figure:
    """A figure with the interval that follows from leaving out groups of images; none of these, no interval."""
    if not len(left_out):
        return Figure(value=value, **rest)
    return sure(jackknife(value, left_out), left_out=tuple(left_out.tolist()), **rest)


def number(value: float) -> str:
    """Four significant digits, without an exponent for what people compare by eye."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
