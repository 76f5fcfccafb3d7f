"""The page of a search over settings: who won and by how much, what decides, and images of the best, the middle and the worst."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.evaluation.pages import png_uri, render, themed
from ddpm_core.evaluation.sweep_plots import (
    coloured_schedules,
    front,
    importance_bars,
    learning_curves,
    parallel_coordinates,
)


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """A setting in its place."""

    number: int
    words: str
    fields: Mapping[str, float | str]
    """Its values, by field."""
    step: int
    course: Mapping[int, float]
    """The ranking figure at each rung that it came to."""
    others: tuple[float | None, ...] = ()
    """Further figures, in the order of the page's `others`."""
    again: str = ""
    """Its mean over fresh seeds, with the interval, in words."""
    failed: str = ""
    schedule: NoiseSchedule | None = None

    @property
    def value(self) -> float | None:
        """The ranking figure where it ended."""
        return self.course[max(self.course)] if self.course else None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Images of a trial."""

    png: bytes
    words: str


@dataclass(frozen=True, kw_only=True)
class Front:
    """Two figures that may be at odds."""

    x: str
    y: str
    points: Mapping[str, tuple[float, float]]
    best: tuple[str, ...]
    """Those that none other beats in both."""


@dataclass(frozen=True, kw_only=True)
class SweepContent:
    """All that the page shows."""

    title: str
    created_at: str
    metric: str
    """What ranks."""
    others: tuple[str, ...]
    verdict: str
    state: str
    dataset: str
    """In words."""
    measured: str
    """On what the figures are, in words."""
    searched: Mapping[str, str]
    """The space, by field."""
    rows: Sequence[SweepRow]
    """Best first."""
    samples: Sequence[Shown] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    """Of each field, from 30 trials on."""
    fronts: Sequence[Front] = ()
    winner: str = ""
    """As a recipe file."""


def render_sweep(content: SweepContent) -> str:
    """The whole page; everything that came from outside is escaped."""
    first = [row for row in content.rows if row.course]
    early = [row.course[min(row.course)] for row in first]
    step = min((min(row.course) for row in first), default=0)
    name = f"{content.metric} at step {step:,}" if step else content.metric
    fields = [row.fields for row in first]
    schedules = [row.schedule for row in first if row.schedule is not None]
    charts: dict[str, dict[str, str]] = {"parallel": {}, "schedules": {}, "learning": {}, "importance": {}}
    if len(first) > 1 and any(fields):
        charts["parallel"] = themed(partial(parallel_coordinates, fields, early, name))
    if len(first) > 1 and len(schedules) == len(first) and _differ(schedules):
        charts["schedules"] = themed(partial(coloured_schedules, schedules, early, name))
    if any(len(row.course) > 1 for row in first):
        charts["learning"] = themed(partial(learning_curves, [row.course for row in first], content.metric))
    if content.importance:
        charts["importance"] = themed(partial(importance_bars, content.importance))
    fronts = [(each, themed(partial(front, each.points, each.best, each.x, each.y))) for each in content.fronts]
    return render(
        "sweep.html.j2",
        content=content,
        charts=charts,
        name=name,
        fronts=fronts,
        samples=[(png_uri(each.png), each.words) for each in content.samples],
        furthest=max((row.step for row in content.rows), default=0),
    )


def _differ(schedules: Sequence[NoiseSchedule]) -> bool:
    return any(
        each.num_timesteps != schedules[0].num_timesteps or not each.betas.equal(schedules[0].betas)
        for each in schedules
    )
