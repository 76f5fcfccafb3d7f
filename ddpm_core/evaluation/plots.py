"""Charts: the course of training and the variational bound term by term as PNG bytes; the noise schedules."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ddpm_core.artifacts.looks import Look
from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.evaluation.bits_per_dim import BoundStats
from ddpm_core.evaluation.frechet_infinity import Extrapolation

_LIGHT, _DARK = ("#5a5750", "#9a5b13"), ("#b9b6ae", "#e0a458")
"""Ink and accent on a light and on a dark page."""
_HALF = (5.2, 3.6)
"""Inches of a chart that stands beside another."""
_NARROW = 8.0
"""A logarithmic axis whose ends are nearer than by this factor has few of 1, 2, 5 on it."""


def loss_curve(history: Sequence[Mapping[str, int | float]], *, dark: bool = False) -> bytes:
    """Loss, its running mean and the gradient norm over the steps; transparent behind.

    Args:
        history: rows with step, loss and grad_norm, as a checkpoint keeps them; values that are not finite leave gaps.
        dark: for a dark page.
    """
    ink, accent = inks(dark)
    figure = empty_figure(8.4, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    step = np.array([row["step"] for row in history], dtype=np.float64)
    for axes, key, name in ((upper, "loss", "loss"), (lower, "grad_norm", "gradient norm")):
        _draw_course(axes, step, np.array([row[key] for row in history], dtype=np.float64), accent)
        dress(axes, ink, "", name)
    lower.set_xlabel("step", color=ink)
    return png(figure)


def look_curves(looks: Sequence[Look], *, dark: bool = False) -> bytes:
    """The loss on fixed images over the steps: the averaged weights on images held out and trained on and the newest ones; and by
    bands of t."""
    ink, accent = inks(dark)
    figure = empty_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    step = [look.step for look in looks]
    courses = {
        "held out": (accent, "-", [look.validation for look in looks]),
        "trained on": (ink, "-", [look.train for look in looks]),
        "newest weights": (ink, ":", [look.newest for look in looks]),
    }
    for name, (color, style, losses) in courses.items():
        if all(losses):
            left.plot(step, [np.mean(each) for each in losses], style, color=color, linewidth=1.6, label=name)
    bands = looks[-1].bands
    for number, (first, last) in enumerate(bands):
        shade = 1.0 - 0.75 * number / max(1, len(bands) - 1)
        of_band = [look.judged[number] for look in looks]
        right.plot(step, of_band, color=accent, alpha=shade, linewidth=1.6, label=f"t {first} to {last}")
    for axes in (left, right):
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        dress(axes, ink, "step", "loss")
        axes.legend(frameon=False, labelcolor=ink, fontsize=9)
    return png(figure)


def bound_curves(stats: BoundStats, *, dark: bool = False) -> bytes:
    """The bound's terms over t, and the error of x_0_hat against the bits received (Ho et al. 2020, Fig. 5)."""
    ink, accent = inks(dark)
    figure = empty_figure(8.4, 3.2)
    left, right = figure.subplots(1, 2)
    known = np.flatnonzero(stats.seen)
    left.plot(known + 1, stats.mean_terms[known], color=accent, linewidth=1.8, marker="." if len(known) < 200 else None)
    left.set_xscale("log")
    left.set_yscale("log")
    dress(left, ink, "t + 1", "bits/dim of the step at t")
    right.plot(stats.received[known], stats.rmse[known], color=accent, linewidth=1.8)
    dress(right, ink, "bits/dim received", "RMSE of x̂₀ (0..255)")
    right.set_ylim(bottom=0)
    return png(figure)


def distance_curve(curve: Extrapolation, *, dark: bool = False) -> bytes:
    """The distance against one over the number of images, and the line to where endless images would be."""
    ink, accent = inks(dark)
    figure = empty_figure(*_HALF)
    axes = figure.subplots()
    per_image = 1.0 / curve.counts
    ends = np.array([0.0, per_image.max()])
    axes.plot(ends, curve.value + curve.slope * ends, color=ink, linewidth=1.0, linestyle="--")
    axes.plot(per_image, curve.distances, color=accent, linewidth=0, marker="o")
    dress(axes, ink, "1 / number of generated images", "Fréchet distance")
    axes.set_xlim(left=0)
    return png(figure)


def precision_recall_curve(points: NDArray[np.float64], *, dark: bool = False) -> bytes:
    """Precision over recall, [k, 2], by balls that reach to the 1st to k-th neighbour."""
    ink, accent = inks(dark)
    figure = empty_figure(*_HALF)
    axes = figure.subplots()
    axes.plot(points[:, 1], points[:, 0], color=accent, linewidth=1.4, marker="o")
    for k, (precision, recall) in enumerate(points.tolist(), 1):
        away = (0, -14 if k % 2 else 7)  # below and above in turn: in a corner the points lie close together
        axes.annotate(
            "k = 1" if k == 1 else str(k),
            (recall, precision),
            away,
            textcoords="offset points",
            color=ink,
            fontsize=8,
            ha="center",
        )
    dress(axes, ink, "recall", "precision")
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0, 1.05)
    return png(figure)


def steps_curve(points: Mapping[str, Sequence[tuple[int, float]]], *, dark: bool = False) -> bytes:
    """The distance over the steps of each sampler.

    Args:
        points: by sampler, (steps, distance).
    """
    ink, _ = inks(dark)
    figure = empty_figure(*_HALF)
    axes = figure.subplots()
    for name, each in points.items():
        steps, distances = zip(*sorted(each), strict=True)
        axes.plot(steps, distances, linewidth=1.4, marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    counts = sorted({steps for each in points.values() for steps, _ in each})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain_numbers(axes.yaxis)
    dress(axes, ink, "steps", "Fréchet distance")
    axes.legend(frameon=False, labelcolor=ink)
    return png(figure)


def schedule_curves(schedules: Mapping[str, NoiseSchedule]) -> Figure:
    """beta, alpha_bar and log SNR of some schedules over t, on white."""
    ink, _ = _LIGHT
    figure = empty_figure(11.0, 3.4)
    panels = figure.subplots(1, 3)
    for name, schedule in schedules.items():
        t = np.linspace(0, 1, schedule.num_timesteps)
        finite = schedule.log_snr.clamp(min=-30).numpy()
        for axes, values in zip(panels, (schedule.betas.numpy(), schedule.alpha_bar.numpy(), finite), strict=True):
            axes.plot(t, values, linewidth=1.5, label=name)
    for axes, name in zip(panels, ("β", "ᾱ", "log SNR"), strict=True):
        dress(axes, ink, "t / (T - 1)", name)
    panels[0].set_yscale("log")
    panels[2].set_ylim(bottom=-16)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, labelcolor=ink)
    return figure


class _Shown(Figure):
    """A notebook shows it without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self, transparent=False)


def inks(dark: bool) -> tuple[str, str]:
    """Ink and accent of a page."""
    return _DARK if dark else _LIGHT


def empty_figure(width: float, height: float) -> Figure:
    """Nothing in it yet; in inches."""
    figure = _Shown(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, ink: str, x: str, y: str) -> None:
    """Names of the axes, a faint grid, and no frame."""
    axes.set_xlabel(x, color=ink)
    axes.set_ylabel(y, color=ink)
    axes.tick_params(colors=ink, which="both", labelsize=9)
    axes.grid(color=ink, alpha=0.15, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)


def plain_numbers(axis: Axis) -> None:
    """0.1, 0.2, 0.5 and so on, where the axis is logarithmic, or round numbers where it spans too little for those."""
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        narrow = high < _NARROW * low
        axis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)) if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def png(figure: Figure, *, transparent: bool = True) -> bytes:
    """The picture's bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=transparent)
    return out.getvalue()


def _draw_course(axes: Axes, step: NDArray[np.float64], values: NDArray[np.float64], accent: str) -> None:
    """The values, faint, under their running mean; on a log scale where they span more than a factor of ten."""
    finite = np.where(np.isfinite(values), values, np.nan)
    positive = finite[finite > 0]
    axes.plot(step, finite, color=accent, alpha=0.3, linewidth=0.9, marker="." if len(step) == 1 else None)
    axes.plot(step, _running_mean(finite, max(1, len(step) // 25)), color=accent, linewidth=1.8)
    if len(positive) and positive.max() > 10 * positive.min():
        axes.set_yscale("log", nonpositive="mask")
        plain_numbers(axes.yaxis)


def _running_mean(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Mean over the finite ones of up to 2 radius + 1 values around each; the window shrinks at the ends."""
    present = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(present, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(present)])
    place = np.arange(len(values))
    low, high = (place - radius).clip(min=0), (place + radius + 1).clip(max=len(values))
    found = counts[high] - counts[low]
    mean: NDArray[np.float64] = np.where(found > 0, (sums[high] - sums[low]) / found.clip(min=1), np.nan)
    return mean
