"""Results to a ranking: who goes on at a rung, who won, and whether by more than training again changes.

Every rule here is a function of the figures alone, with ties broken by the trials' numbers; so an interrupted sweep that goes on
comes to the same table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ddpm_core.evaluation.figures import number
from ddpm_core.evaluation.intervals import Interval, difference_over_seeds, of_mean
from pipelines.sweeping.record import TrialResult
from pipelines.sweeping.setting import Setting, key_of, words_of

SPEED = {"passes": "network passes an image", "sample_s": "seconds an image"}
"""What is measured beside figures, in words."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A setting in its place."""

    number: int
    """Of the trial, from 1, in the order in which settings were drawn."""
    setting: Setting
    step: int
    """How far it went."""
    metrics: Mapping[str, float]
    """At that step, with the sweep's own seed."""
    course: Mapping[int, float] = field(default_factory=dict)
    """The ranking figure at each rung."""
    repeats: tuple[float, ...] = ()
    """The ranking figure of each fresh training seed."""
    train_s: float = 0.0
    """Its training took, without repeats."""
    failed: str = ""
    """Why it was given up."""

    @property
    def words(self) -> str:
        """The setting as a person reads it."""
        return words_of(self.setting)

    @property
    def figures(self) -> str:
        """Its figures as a person reads them, or why there are none."""
        if self.failed:
            return f"failed: {self.failed[:60]}"
        shown = [f"{name} {number(value):>7}" for name, value in self.metrics.items() if name not in SPEED]
        if self.interval:
            shown.append(
                f"again {number(self.interval.value)} ({number(self.interval.low)} to {number(self.interval.high)})"
            )
        return "  ".join(shown)

    @property
    def interval(self) -> Interval | None:
        """Of the mean over fresh seeds, from two on."""
        return of_mean(self.repeats) if len(self.repeats) > 1 else None


def best(results: Sequence[TrialResult], settings: Sequence[Setting], metric: str, step: int, count: int) -> list[int]:
    """The indices into the settings of the `count` best at a step, best first; of equals the one that was drawn first."""
    values = _values(results, metric, step)
    found = [(values[key], place) for place, key in enumerate(map(key_of, settings)) if key in values]
    return [place for _, place in sorted(found)[:count]]


def rank(results: Sequence[TrialResult], settings: Sequence[Setting], metric: str, seed: int) -> list[Ranked]:
    """All settings that were measured, best first; those that failed at the end.

    Finalists, by the mean over fresh seeds; then who went further; at the same step, whose figure is less. So who was stopped
    early is never held against a longer training.

    Args:
        seed: the sweep's own; figures of other seeds are repeats.
    """
    own: dict[str, list[TrialResult]] = {}
    repeats: dict[str, list[TrialResult]] = {}
    for result in results:
        (own if result.seed == seed else repeats).setdefault(key_of(result.setting), []).append(result)
    rows = []
    for place, setting in enumerate(settings, 1):
        mine = sorted(own.get(key_of(setting), ()), key=lambda result: result.step)
        if not mine:
            continue
        again = sorted(repeats.get(key_of(setting), ()), key=lambda result: result.seed)
        measured = [result for result in mine if not result.failed]
        rows.append(
            Ranked(
                number=place,
                setting=setting,
                step=measured[-1].step if measured else mine[-1].step,
                metrics=measured[-1].metrics if measured else {},
                course={result.step: result.metrics[metric] for result in measured},
                repeats=tuple(result.metrics[metric] for result in again if not result.failed),
                train_s=sum(result.train_s for result in mine),
                failed=mine[-1].failed,
            )
        )
    return sorted(rows, key=lambda row: _order(row, metric))


def verdict(ranking: Sequence[Ranked], metric: str) -> str:
    """Whether the winner's lead over the next is larger than what training again changes, in a sentence."""
    standing = [row for row in ranking if not row.failed]
    if len(standing) < 2:
        return ""
    first, second = standing[:2]
    if len(first.repeats) < 2 or len(second.repeats) < 2:
        return "no setting was tried again with fresh seeds: what chance did for the winner is not known"
    apart = difference_over_seeds(second.repeats, first.repeats)
    reach = f"{number(apart.value)} less (95% interval {number(apart.low)} to {number(apart.high)})"
    over = f"over {min(len(first.repeats), len(second.repeats))} fresh training seeds each"
    if apart.low > 0:
        return f"{first.words} is better than {second.words}, more than chance explains: {metric} {reach} {over}"
    return f"{first.words} and {second.words} are not distinguishable: {metric} {reach} {over}"


def pareto(ranking: Sequence[Ranked], metrics: Sequence[str]) -> list[Ranked]:
    """Those that went furthest and of which no other is as good in all of these metrics, and better in one; less is better."""
    furthest = max((row.step for row in ranking if not row.failed), default=0)
    rows = [row for row in ranking if not row.failed and row.step == furthest]
    points = [tuple(row.metrics[name] for name in metrics) for row in rows]
    return [row for row, point in zip(rows, points, strict=True) if not any(_beats(each, point) for each in points)]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _values(results: Sequence[TrialResult], metric: str, step: int) -> dict[str, float]:
    return {key_of(each.setting): each.metrics[metric] for each in results if each.step == step and not each.failed}


def _order(row: Ranked, metric: str) -> tuple[bool, bool, float, float, int]:
    repeated = len(row.repeats) > 1
    figure = row.metrics.get(metric, float("inf"))
    mean = sum(row.repeats) / len(row.repeats) if repeated else figure
    return bool(row.failed), not repeated, 0 if repeated else -row.step, mean, row.number
