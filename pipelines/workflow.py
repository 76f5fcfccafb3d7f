"""The whole pipeline in one go: shard, train, sample, evaluate, promote. What is there already is skipped; killed, it goes on.

examples:
  python pipelines/workflow.py                                     # digits, in minutes
  python pipelines/workflow.py mnist --data.source /data/mnist
  python pipelines/workflow.py digits --store s3://bucket/ddpm
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here

import time
from typing import TYPE_CHECKING

from pipelines.cli.checks import check_data, check_sampling, check_training, data_summary, split_counts
from pipelines.cli.command import Outcome, run_command, typed, ui
from pipelines.cluster.placement import for_a_cpu, for_sampling, for_training
from pipelines.feature_weights import find_features
from pipelines.recipes.config import Recipe
from pipelines.tracking import TrackingError

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline


def check(recipe: Recipe) -> None:
    """Everything that any stage will need."""
    check_data(recipe)
    check_training(recipe)
    check_sampling(recipe.sample)
    find_features(recipe.evaluate, recipe.store)


def plan(recipe: Recipe) -> list[str]:
    """The stages."""
    train, sample = recipe.train, recipe.sample
    return [
        f"shard: {data_summary(recipe)}",
        f"train: {train.steps:,} steps of {train.batch_size} images on {train.num_workers} workers",
        f"sample: {sample.num_images:,} images",
        f"evaluate: the Fréchet distance to the training images, and a report; then promote, all in {recipe.store}",
    ]


def run(recipe: Recipe) -> Outcome:
    """Run the pipeline."""
    from pipelines.pipeline import open_pipeline

    asks = for_a_cpu("shard"), for_training(recipe.train), for_sampling(recipe.sample)
    with open_pipeline(recipe, *asks, reads_source=True) as pipeline:
        return _run(pipeline)


def _run(pipeline: "Pipeline") -> Outcome:
    took: dict[str, float] = {}
    clock = [time.perf_counter()]

    def done(stage: str, what: str) -> None:
        took[f"{stage}_s"] = round(time.perf_counter() - clock[0], 1)
        clock[0] = time.perf_counter()
        print(f"{stage:9} {took[f'{stage}_s']:7.1f} s   {what}", flush=True)

    index = pipeline.shard()
    done("shard", f"{split_counts(index.counts, index.own_splits)}, {index.num_rejected} left out")
    trained = pipeline.train(index)
    done("train", f"{trained.step:,} steps, {trained.images_per_s:,.0f} images/s")
    weights = pipeline.find_weights(trained.checkpoint_uri)
    sampled = pipeline.sample(weights)
    done("sample", f"{sampled.samples.num_images:,} images, {sampled.num_new:,} of them new")
    evaluated = pipeline.evaluate(weights, sampled, index)
    done("evaluate", evaluated.summary)
    try:
        version, promotion = pipeline.promote(weights, evaluated)
    except TrackingError as error:
        print(f"error: {error}", file=sys.stderr)
        return Outcome(made={"report": evaluated.page_uri, "grid": sampled.grid_uri}, metrics={**took}, exit_code=1)
    done("promote", f"version {version}: {promotion.reason}")
    return Outcome(
        made={
            "report": evaluated.page_uri,
            "grid": sampled.grid_uri,
            "model": f"models:/{pipeline.model_name}/{version}",
            "MLflow": f"{pipeline.tracker.shown_uri}   ({ui(pipeline.recipe.store)} shows it)",
        },
        metrics={
            **evaluated.metrics,
            **took,
            "promoted": promotion.promoted,
            "train_images_per_s": trained.images_per_s,
        },
        next=typed("sample.py", pipeline.recipe.recipe, "--num-images", "4096", store=pipeline.recipe.store),
    )


if __name__ == "__main__":
    run_command(Recipe, __doc__, check=check, plan=plan, run=run)
