"""How a run goes, as one page: what to think of it, its losses, and samples of the same seeds. It carries its pictures."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from ddpm_core.artifacts.looks import Look
from ddpm_core.evaluation.pages import png_uri, render, themed, webp_uri
from ddpm_core.evaluation.plots import look_curves, loss_curve

_SHOWN = 6
"""Grids of samples."""
_WIDEST = 720
"""Pixels; what is larger is made smaller, or the page of large images would weigh tens of megabytes."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """All that the page says."""

    run: str
    """Its name."""
    step: int
    steps: int
    """In all."""
    looks: Sequence[Look]
    lines: Sequence[str]
    """What to think of it: the course of it first."""
    history: Sequence[Mapping[str, int | float]] = ()
    grids: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    """PNG of the samples, by step."""
    refresh_s: int | None = None
    """After so many seconds the page looks for a newer one; None: it is the last."""
    written: str = ""
    """When, of a page that looks for a newer one: who was killed writes none."""
    stopped: bool = False
    """Before its last step, by a person or an error."""


def render_progress(content: Progress) -> str:
    """The whole page; everything that came from outside is escaped."""
    chosen = chosen_steps(sorted(content.grids))
    return render(
        "progress.html.j2",
        content=content,
        looks=themed(partial(look_curves, content.looks)) if content.looks else {},
        curves=themed(partial(loss_curve, content.history)) if content.history else {},
        grids=[(step, _grid_uri(content.grids[step])) for step in reversed(chosen)],
    )


def chosen_steps(steps: Sequence[int]) -> list[int]:
    """Of the samples those that are shown: the first, the last, and some evenly between."""
    if len(steps) <= _SHOWN:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (_SHOWN - 1))] for place in range(_SHOWN)]


def _grid_uri(png: bytes) -> str:
    image: Image.Image = Image.open(io.BytesIO(png))
    if image.width <= _WIDEST:
        return png_uri(png)
    return webp_uri(image.resize((_WIDEST, round(image.height * _WIDEST / image.width)), Image.Resampling.LANCZOS))
