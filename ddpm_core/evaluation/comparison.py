"""Models side by side: their figures, and which differences chance does not explain."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_core.evaluation.figures import Figure, number
from ddpm_core.evaluation.intervals import Interval, difference
from ddpm_core.evaluation.pages import render


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure of several models."""

    name: str
    of: str
    values: tuple[Figure, ...]
    """A model each."""
    apart: tuple[Interval | None, ...]
    """Each model's less the first one's; None where no interval is known, and for the first itself."""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Each difference in words: its interval, and whether it exceeds the noise."""
        return tuple(_verdict(apart) for apart in self.apart)


def compare(models: Sequence[Sequence[Figure]]) -> tuple[Compared, ...]:
    """The figures that all models have, in the order of the first one.

    Args:
        models: each one's figures, of images of the same seeds against the same reference.
    """
    named = [{figure.name: figure for figure in figures} for figures in models]
    shared = [name for name in named[0] if all(name in figures for figures in named)]
    return tuple(
        Compared(
            name=name,
            of=named[0][name].of,
            values=tuple(figures[name] for figures in named),
            apart=(None, *(_apart(figures[name], named[0][name]) for figures in named[1:])),
        )
        for name in shared
    )


def render_comparison(title: str, names: Sequence[str], rows: Sequence[Compared], grids: Mapping[str, str]) -> str:
    """The comparison as one page.

    Args:
        names: of the models.
        grids: for each model a data: URI of some of its images.
    """
    return render("comparison.html.j2", title=title, names=names, rows=rows, grids=grids)


def _apart(one: Figure, first: Figure) -> Interval | None:
    """By groups of the same seeds where they are known; else from the two intervals, as if they were independent."""
    if one.left_out and len(one.left_out) == len(first.left_out):
        return difference(one.value, np.array(one.left_out), first.value, np.array(first.left_out))
    if one.low is None or one.high is None or first.low is None or first.high is None:
        return None
    reach = math.hypot((one.high - one.low) / 2, (first.high - first.low) / 2)
    apart = one.value - first.value
    return Interval(value=apart, standard_error=reach / 1.96, low=apart - reach, high=apart + reach)


def _verdict(apart: Interval | None) -> str:
    if apart is None:
        return ""
    chance = "within noise" if apart.low <= 0 <= apart.high else "beyond noise"
    return f"{number(apart.value)} ({number(apart.low)} to {number(apart.high)}), {chance}"
