"""The whole pipeline in one go: shard, train, sample, evaluate, promote. What is there already is skipped; killed, it goes on.

examples:
  python pipelines/workflow.py                                     # digits, in minutes
  python pipelines/workflow.py mnist --data.source /data/mnist
  python pipelines/workflow.py digits --store s3://bucket/ddpm
  python pipelines/workflow.py digits --seeds 3                    # three trainings, the median one judged
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.errors import InputError
from ddpm_core.evaluation.figures import number
from ddpm_core.evaluation.intervals import of_mean
from pipelines.cli.checks import (
    check_data,
    check_evaluation,
    check_sampling,
    check_training,
    data_summary,
    prepare_evaluation,
    split_counts,
    warn_of_young_average,
)
from pipelines.cli.command import Outcome, as_recipe, run_command
from pipelines.cli.costs import evaluation_cost, sampling_cost, sampling_time, training_cost
from pipelines.cli.invocation import typed, ui
from pipelines.cluster.placement import for_a_cpu, for_sampling, for_training
from pipelines.progress import counted
from pipelines.recipes.config import Recipe, as_named
from pipelines.subject import of_model
from pipelines.tracking import TrackingError, is_server
from pipelines.training.run import check_standing_run

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline
    from pipelines.stages.evaluate import Evaluated
    from pipelines.stages.sample import Sampled
    from pipelines.stages.train import Trained


_OFTEN = (
    "data.source", "data.image_size", "data.channels", "dataset", "train.steps", "train.num_workers", "train.use_gpu",
    "sample.num_images", "evaluate.features", "seeds", "name", "store",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WorkflowArgs(Recipe):
    """A recipe, and how often it is trained.

    Raises:
        InputError: if a field is out of its range.
    """

    seeds: int = 1
    """Trainings, by train.seed and the seeds after it. Figures get an interval over them, and the median one is promoted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise InputError(f"seeds is {self.seeds}; expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One training, and what came of it."""

    trained: "Trained"
    weights: Weights
    sampled: "Sampled"
    evaluated: "Evaluated"


def check(args: WorkflowArgs) -> None:
    """Everything that any stage will need."""
    check_data(args)
    check_training(args)
    check_standing_run(args)
    warn_of_young_average(args.train, args.train.steps, f"train.steps is {args.train.steps:,}")
    check_sampling(args.sample)
    check_evaluation(args)


def plan(args: WorkflowArgs) -> list[str]:
    """The stages."""
    train, T = args.train, args.schedule.num_timesteps
    again = f", {args.seeds} times" if args.seeds > 1 else ""
    return [
        f"shard: {data_summary(args)}",
        f"train: {train.steps:,} steps of {train.batch_size} images on {counted(train.num_workers, 'worker')}{again}, "
        f"{train.steps * train.batch_size:,} network passes, forth and back",
        f"sample: {sampling_cost(args.sample, T)}{again}",
        f"evaluate: {evaluation_cost(args.evaluate, T)}{again}; a report; then promote, all in {args.store}",
    ]


def cost(args: WorkflowArgs) -> list[str]:
    """What training and sampling take, once."""
    return [*training_cost(args), *sampling_time(args)]


def run(args: WorkflowArgs) -> Outcome:
    """Run the pipeline."""
    from pipelines.pipeline import open_pipeline

    prepare_evaluation(args)
    asks = for_a_cpu("shard"), for_training(args.train), for_sampling(args.sample)
    with open_pipeline(as_recipe(args), *asks, reads_source=True) as pipeline:
        return _run(pipeline, args.seeds)


def _run(pipeline: "Pipeline", seeds: int) -> Outcome:
    clock = Clock()
    index = pipeline.shard()
    clock.done("shard", f"{split_counts(index.counts, index.own_splits)}, {index.num_rejected} left out")
    lines = [_line(_seeded(pipeline, number) if seeds > 1 else pipeline, index, clock) for number in range(seeds)]
    figures = [line.evaluated.figures[0] for line in lines]
    line = sorted(lines, key=lambda line: line.evaluated.figures[0].value)[(seeds - 1) // 2]
    trainings = [figure.value for figure in figures] if seeds > 1 else []
    made = {"report": line.evaluated.page_uri, "grid": line.sampled.grid_uri}
    metrics: dict[str, Any] = {**line.evaluated.metrics, "train_images_per_s": line.trained.images_per_s}
    if trainings:
        over = of_mean(trainings)
        interval = f"95%: {number(over.low)} to {number(over.high)}"
        made = {"figure": f"{figures[0].name} {number(over.value)} over {seeds} trainings ({interval})", **made}
        metrics |= {"trainings": trainings, "mean": over.value, "low": over.low, "high": over.high}
    try:
        version, promotion = pipeline.promote(line.weights, line.evaluated, trainings)
    except TrackingError as error:
        print(f"error: {error}", file=sys.stderr)
        return Outcome(made=made, metrics={**metrics, **clock.took}, exit_code=1)
    clock.done("promote", f"version {version}: {promotion.reason}")
    shown = pipeline.tracker.shown_uri
    return Outcome(
        made={**made, "model": f"models:/{pipeline.model_name}/{version}", "MLflow": shown},
        metrics={**metrics, **clock.took, "promoted": promotion.promoted},
        notes={} if is_server(shown) else {"pages": ui(pipeline.recipe.store)},
        next=typed("sample.py", as_named(pipeline.recipe), "--num-images", "4096", store=pipeline.recipe.store),
    )


def _seeded(pipeline: "Pipeline", number: int) -> "Pipeline":
    """The pipeline with another training seed; a run that was given a name gets the seed behind it."""
    recipe = pipeline.recipe
    seed = recipe.train.seed + number
    name = f"{recipe.name}-seed{seed}" if recipe.name else None
    return replace(pipeline, recipe=replace(recipe, name=name, train=replace(recipe.train, seed=seed)))


def _line(pipeline: "Pipeline", index: DatasetIndex, clock: "Clock") -> Line:
    trained = pipeline.train(index)
    clock.done("train", f"{trained.step:,} steps, {trained.images_per_s:,.0f} images/s")
    weights = pipeline.find_weights(trained.checkpoint_uri)
    sampled = pipeline.sample(weights)
    clock.done("sample", f"{sampled.samples.num_images:,} images, {sampled.num_new:,} of them new")
    evaluated = pipeline.evaluate(of_model(weights, sampled.samples), index)
    clock.done("evaluate", evaluated.summary)
    return Line(trained=trained, weights=weights, sampled=sampled, evaluated=evaluated)


class Clock:
    """Tells what each stage took, and keeps it."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        """Seconds by STAGE_s, over all trainings."""
        self._last = time.perf_counter()

    def done(self, stage: str, what: str) -> None:
        """A stage has ended."""
        seconds = time.perf_counter() - self._last
        self._last += seconds
        self.took[f"{stage}_s"] = round(self.took.get(f"{stage}_s", 0.0) + seconds, 1)
        print(f"{stage:9} {seconds:7.1f} s   {what}", flush=True)


if __name__ == "__main__":
    run_command(WorkflowArgs, __doc__, check=check, plan=plan, run=run, cost=cost, often=_OFTEN)
