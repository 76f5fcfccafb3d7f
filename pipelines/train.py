"""Train a DDPM on a recipe's images, on as many workers as there are; run it again and it goes on where it was.

examples:
  python pipelines/train.py
  python pipelines/train.py mnist --data.source /data/mnist --train.num-workers 2
  python pipelines/train.py digits --name tuned --init-from models:/ddpm-digits@champion --train.steps 500
  ray job submit --working-dir . -- python pipelines/train.py
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

from dataclasses import dataclass

from ddpm_core.artifacts.looks import PROGRESS
from pipelines.cli.checks import check_data, check_training, data_summary, warn_of_young_average
from pipelines.cli.command import Outcome, run_command
from pipelines.cli.costs import training_cost
from pipelines.cli.invocation import typed
from pipelines.cluster.placement import for_a_cpu, for_training
from pipelines.progress import counted
from pipelines.recipes.config import Recipe, as_named
from pipelines.tracking.resolve import check_model
from pipelines.training.run import check_standing_run

_OFTEN = (
    "data.source", "data.image_size", "data.channels", "dataset", "train.steps", "train.batch_size", "train.learning_rate",
    "train.num_workers", "train.use_gpu", "train.seed", "name", "init_from", "store",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainArgs(Recipe):
    """A recipe, and where its weights begin."""

    init_from: str | None = None
    """Start from these weights instead of noise: the URI of a checkpoint, a run or a diffusers folder, or
    models:/NAME@ALIAS."""


def check(args: TrainArgs) -> None:
    """Source and workers."""
    check_data(args)
    check_training(args)
    if args.init_from is None:
        check_standing_run(args)
    warn_of_young_average(args.train, args.train.steps, f"train.steps is {args.train.steps:,}")


def plan(args: TrainArgs) -> list[str]:
    """The two stages."""
    train = args.train
    return [
        f"shard: {data_summary(args)}, unless it is there",
        f"train: {train.steps:,} steps of {train.batch_size} images on {counted(train.num_workers, 'worker')}, into {args.store}",
    ]


def run(args: TrainArgs) -> Outcome:
    """Shard unless it is done, then train."""
    if args.init_from:
        check_model(args.init_from, args.store)
    from pipelines.pipeline import open_pipeline

    with open_pipeline(args, for_a_cpu("shard"), for_training(args.train), reads_source=True) as pipeline:
        weights = pipeline.find_weights(args.init_from) if args.init_from else None
        trained = pipeline.train(pipeline.shard(), weights)
        name = pipeline.model_name
    return Outcome(
        made={
            "checkpoint": trained.checkpoint_uri,
            "course": trained.verdict.words or "too few looks at it to say",
            "progress": f"{trained.run_uri}/{PROGRESS}",
            **({"model": f"models:/{name}/{trained.version}"} if trained.version else {}),
        },
        metrics={
            "step": trained.step,
            "images_per_s": trained.images_per_s,
            "run": trained.name,
            "ailments": [each.name for each in trained.verdict.ailments],
        },
        next=typed("sample.py", as_named(args), "--model", trained.checkpoint_uri, store=args.store),
    )


if __name__ == "__main__":
    run_command(TrainArgs, __doc__, check=check, plan=plan, run=run, cost=training_cost, often=_OFTEN)
