"""Charts of a search over settings: each trial a line, coloured by its figure, the lower the better."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullFormatter

from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.evaluation.plots import dress, empty_figure, inks, plain_numbers, png

_MOST_NAMES = 12
_PAPER = {False: "#fbfaf7", True: "#16161a"}
"""Of a light and of a dark page."""


def parallel_coordinates(
    rows: Sequence[Mapping[str, float | str]], values: Sequence[float], name: str, *, dark: bool = False
) -> bytes:
    """A line a trial through an axis for each field and, last, its figure; a field that a trial does not read leaves a gap.

    Args:
        rows: of each trial, the values of its fields: numbers, or words in any order.
        values: the figures, more than 0.
        name: of the figure.
    """
    ink, _ = inks(dark)
    axes_names = [*dict.fromkeys(key for row in rows for key in row), name]
    figure = empty_figure(max(5.2, 1.9 * len(axes_names)), 3.8)
    panels = figure.subplots()
    full = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
    scales = [_scale([row[key] for row in full if key in row]) for key in axes_names]
    colour, norm = _colours(values, dark)
    for row, value in sorted(zip(full, values, strict=True), key=lambda pair: -pair[1]):
        heights = [
            scale(row[key]) if key in row else np.nan for key, (scale, _) in zip(axes_names, scales, strict=True)
        ]
        panels.plot(
            range(len(axes_names)), heights, color=colour(norm(value)), linewidth=1.6, marker="o", markersize=3.5
        )
    for place, (_, ticks) in enumerate(scales):
        panels.axvline(place, color=ink, alpha=0.35, linewidth=0.8)
        for height, text in ticks:
            said = panels.annotate(
                text, (place, height), (5, 6), textcoords="offset points", color=ink, fontsize=8, va="center"
            )
            said.set_path_effects([withStroke(linewidth=3, foreground=_PAPER[dark])])  # lines pass below it
    panels.set_xticks(range(len(axes_names)), axes_names, color=ink, fontsize=9)
    panels.set_yticks([])
    panels.set_xlim(-0.1, len(axes_names) - 0.55)
    panels.spines[:].set_visible(False)
    panels.tick_params(length=0)
    return png(figure)


def coloured_schedules(
    schedules: Sequence[NoiseSchedule], values: Sequence[float], name: str, *, dark: bool = False
) -> bytes:
    """alpha_bar and log SNR of each trial's noise schedule over t / (T - 1), coloured by its figure."""
    ink, _ = inks(dark)
    figure = empty_figure(10.4, 3.5)
    left, right = figure.subplots(1, 2)
    colour, norm = _colours(values, dark)
    for schedule, value in sorted(zip(schedules, values, strict=True), key=lambda pair: -pair[1]):
        t = np.linspace(0, 1, schedule.num_timesteps)
        left.plot(t, schedule.alpha_bar.numpy(), color=colour(norm(value)), linewidth=1.5)
        right.plot(t, schedule.log_snr.clamp(min=-30).numpy(), color=colour(norm(value)), linewidth=1.5)
    dress(left, ink, "t / (T - 1)", "ᾱ")
    dress(right, ink, "t / (T - 1)", "log SNR")
    right.set_ylim(bottom=-16)
    bar = figure.colorbar(ScalarMappable(norm, colour), ax=[left, right], pad=0.01)
    bar.set_label(name, color=ink)
    bar.ax.tick_params(colors=ink, which="both", labelsize=8)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.outline.set_visible(False)
    return png(figure)


def learning_curves(courses: Sequence[Mapping[int, float]], name: str, *, dark: bool = False) -> bytes:
    """Each trial's figure over its steps; the best two are named by their places.

    Args:
        courses: by step, best trial first.
    """
    ink, accent = inks(dark)
    figure = empty_figure(8.4, 3.6)
    axes = figure.subplots()
    for course in reversed(courses[1:]):
        axes.plot(list(course), list(course.values()), color=ink, alpha=0.45, linewidth=1.1, marker="o", markersize=4)
    axes.plot(list(courses[0]), list(courses[0].values()), color=accent, linewidth=2.0, marker="o", markersize=4)
    for course, words, colour, up in zip(courses, ("1", "2"), (accent, ink), (-3, 7), strict=False):
        last = max(course)
        at = (last, course[last])
        axes.annotate(words, at, (6, up), textcoords="offset points", color=colour, fontsize=9)
    if len({step for course in courses for step in course}) > 1:
        axes.set_xscale("log")
    axes.set_yscale("log")
    steps = sorted({step for course in courses for step in course})
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain_numbers(axes.yaxis)
    dress(axes, ink, "step", name)
    return png(figure)


def importance_bars(importance: Mapping[str, float], *, dark: bool = False) -> bytes:
    """The share of the figures' variation that each field explains."""
    ink, accent = inks(dark)
    figure = empty_figure(5.2, 0.7 + 0.4 * len(importance))
    axes = figure.subplots()
    names = sorted(importance, key=lambda name: importance[name])
    axes.barh(names, [importance[name] for name in names], color=accent, height=0.6)
    dress(axes, ink, "share of the variation", "")
    axes.set_xlim(0, 1)
    return png(figure)


def front(
    points: Mapping[str, tuple[float, float]], best: Sequence[str], x: str, y: str, *, dark: bool = False
) -> bytes:
    """Two figures of each trial, less of both is better; those that none other beats in both are joined."""
    ink, accent = inks(dark)
    figure = empty_figure(6.4, 3.8)
    axes = figure.subplots()
    for name, (across, up) in points.items():
        colour, alpha = (accent, 1.0) if name in best else (ink, 0.5)
        axes.plot(across, up, color=colour, alpha=alpha, marker="o", linewidth=0)
    joined = sorted(points[name] for name in best)
    axes.plot(*zip(*joined, strict=True), color=accent, linewidth=1.2)
    for name in best:
        axes.annotate(name, points[name], (6, 4), textcoords="offset points", color=ink, fontsize=8)
    for scaled, at in ((axes.set_xscale, 0), (axes.set_yscale, 1)):
        values = [point[at] for point in points.values()]
        if min(values) > 0 and max(values) > 3 * min(values):
            scaled("log")
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    dress(axes, ink, x, y)
    return png(figure)


def _colours(values: Sequence[float], dark: bool) -> tuple[Colormap, Normalize]:
    """Light lines for what is worst on a dark page, and dark ones for what is best on a light one: the best stand out."""
    low, high = min(values), max(values)
    high = high if high > low else low * 1.01
    norm = LogNorm(low, high) if low > 0 and high > 3 * low else Normalize(low, high)
    return colormaps["viridis_r" if dark else "viridis"], norm


def _word(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _scale(values: Sequence[float | str]) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """A height in [0, 1] for each value, and the heights with their texts."""
    if any(isinstance(value, str) for value in values) or len(set(values)) <= 1:
        words = sorted(set(map(_word, values)))
        heights = {word: (place + 0.5) / len(words) for place, word in enumerate(words)}
        return (lambda value: heights[_word(value)]), [(heights[word], word) for word in words[:_MOST_NAMES]]
    numbers = np.array(values, dtype=float)
    low, high = float(numbers.min()), float(numbers.max())
    if low > 0 and high > 3 * low:
        middle = float(f"{(low * high) ** 0.5:.2g}")
        span = np.log(high / low)
        return (lambda value: float(np.log(value / low) / span)), [
            (float(np.log(each / low) / span), _plain(each)) for each in (low, middle, high)
        ]
    ends = [(low, 0.0), (float(f"{(low + high) / 2:.3g}"), 0.5), (high, 1.0)]
    return (lambda value: (value - low) / (high - low)), [(height, _plain(value)) for value, height in ends]


def _plain(value: float) -> str:
    """Without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
