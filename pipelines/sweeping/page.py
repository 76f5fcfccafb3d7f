"""A sweep's record as one page."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.evaluation.figures import number
from ddpm_core.evaluation.sweep_page import Front, Shown, SweepContent, SweepRow, render_sweep
from pipelines.recipes.config import Recipe
from pipelines.sweeping.proposals import importance
from pipelines.sweeping.ranking import SPEED, Ranked, pareto
from pipelines.sweeping.record import SweepRecord, Trial
from pipelines.sweeping.setting import apply, shown
from pipelines.sweeping.space import Space


def sweep_page(
    record: SweepRecord,
    ranking: Sequence[Ranked],
    recipe: Recipe,
    index: DatasetIndex,
    space: Space,
    metric: str,
    *,
    state: str,
    verdict: str,
    measured: str,
    winner: str,
) -> str:
    """The page's HTML.

    Args:
        ranking: best first.
        metric: what ranks.
        measured: on what the figures are, in a sentence.
        winner: as a recipe file.
    """
    names = dict.fromkeys(name for row in ranking for name in row.metrics)
    others = tuple(name for name in names if name not in (metric, *SPEED))
    counts = ", ".join(f"{count:,} for {split}" for split, count in index.counts.items() if count)
    return render_sweep(
        SweepContent(
            title=f"Sweep of {recipe.recipe}",
            created_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            metric=metric,
            others=others,
            verdict=verdict,
            state=state,
            dataset=f"{index.digest[:12]}, {counts}",
            measured=measured,
            searched={path: " ".join(words) for path, words in space.words.items()},
            rows=[_row(row, recipe, others) for row in ranking],
            samples=_samples(record, [row for row in ranking if not row.failed], recipe.train.seed),
            importance=importance(record.results(), space, metric),
            fronts=_fronts(ranking, metric, names),
            winner=winner,
        )
    )


def _row(row: Ranked, recipe: Recipe, others: Sequence[str]) -> SweepRow:
    interval = row.interval
    again = f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})" if interval else ""
    return SweepRow(
        number=row.number,
        words=row.words,
        fields={
            path.rpartition(".")[2] if path.rpartition(".")[2] != "name" else path: float(value)
            if isinstance(value, int | float) and not isinstance(value, bool)
            else shown(value)
            for path, value in row.setting.items()
        },
        step=row.step,
        course=row.course,
        others=tuple(row.metrics.get(name) for name in others),
        again=again,
        failed=row.failed,
        schedule=make_schedule(apply(recipe, row.setting).schedule),
    )


def _samples(record: SweepRecord, standing: Sequence[Ranked], seed: int) -> list[Shown]:
    """Of the winner where it ended; of the best, the middle and the worst at the first rung, where all compare."""
    if not standing:
        return []
    first = min(min(row.course) for row in standing)
    by_first = sorted((row for row in standing if first in row.course), key=lambda row: row.course[first])
    wanted = [("the winner", standing[0], standing[0].step)] if standing[0].step > first else []
    places = {"best": 0, "middle": len(by_first) // 2, "worst": len(by_first) - 1}
    where = " at the first rung" if any(len(row.course) > 1 for row in standing) else ""
    wanted += [(f"{word}{where}", by_first[place], first) for word, place in places.items()]
    found = []
    for word, row, step in wanted:
        uri = record.samples_uri(Trial(setting=row.setting, seed=seed), step)
        if storage.exists(uri):
            figure = number(row.course[step])
            found.append(Shown(png=storage.read_bytes(uri), words=f"{word}, step {step:,}: {row.words} ({figure})"))
    return found


def _fronts(ranking: Sequence[Ranked], metric: str, names: Mapping[str, None]) -> list[Front]:
    """The ranking figure against the other ones, and against speed where settings differ in it."""
    fronts = []
    for other in names:
        rows = [row for row in ranking if not row.failed and other in row.metrics and metric in row.metrics]
        furthest = [row for row in rows if row.step == max(each.step for each in rows)]
        if other == metric or other == "sample_s" or len({row.metrics[other] for row in furthest}) < 2:
            continue
        fronts.append(
            Front(
                x=SPEED.get(other, other),
                y=metric,
                points={row.words: (row.metrics[other], row.metrics[metric]) for row in furthest},
                best=tuple(row.words for row in pareto(furthest, (other, metric))),
            )
        )
    return fronts
