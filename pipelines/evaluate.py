"""Judge a model's samples against the images it was trained on: the Fréchet distance, neighbours, and a report to look at.

examples:
  python pipelines/evaluate.py                                     # models:/ddpm-digits@champion
  python pipelines/evaluate.py mnist --model models:/ddpm-mnist@candidate --evaluate.num-images 2048
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here

from dataclasses import dataclass, field

import tyro

from ddpm_core.evaluation.config import EvaluateConfig
from pipelines.cli.checks import check_sampling
from pipelines.cli.command import Outcome, as_recipe, run_command, ui
from pipelines.cluster.placement import for_a_cpu, for_sampling
from pipelines.feature_weights import find_features
from pipelines.recipes.config import SampleStage, default_store
from pipelines.tracking.resolve import dataset_of, find_dataset


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Whose samples to judge, and how."""

    recipe: tyro.conf.Suppress[str] = ""
    store: str = field(default_factory=default_store)
    """Where all artifacts go: a folder or s3://bucket/prefix."""
    model: str | None = None
    """Whose samples: models:/NAME@ALIAS, models:/NAME/VERSION, or the URI of a checkpoint or run.
    Default: the recipe's champion, or its candidate while there is no champion."""
    dataset: str | None = None
    """Judge against this dataset: its URI, or the name of its folder in the store. Default: what the model was trained on."""
    sample: SampleStage = field(default_factory=SampleStage)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def check(args: EvaluateArgs) -> None:
    """That a block fits somewhere, the features' weights, and the dataset."""
    check_sampling(args.sample)
    find_features(args.evaluate, args.store)
    if args.dataset is not None:
        find_dataset(args.dataset, args.store)


def plan(args: EvaluateArgs) -> list[str]:
    """What would be measured."""
    whose = args.model or f"models:/ddpm-{args.recipe}@champion"
    return [
        f"sample: {args.sample.num_images:,} images of {whose}, unless they are there",
        f"evaluate: the first {args.evaluate.num_images:,} of them against the model's dataset, into {args.store}",
    ]


def run(args: EvaluateArgs) -> Outcome:
    """Sample what is not there yet, then evaluate."""
    from pipelines.pipeline import open_pipeline

    with open_pipeline(as_recipe(args), for_sampling(args.sample), for_a_cpu("evaluate")) as pipeline:
        weights = pipeline.find_weights(args.model)
        index = find_dataset(args.dataset, args.store) if args.dataset else dataset_of(weights, args.store)
        evaluated = pipeline.evaluate(weights, pipeline.sample(weights), index)
    return Outcome(
        made={"figure": evaluated.summary, "report": evaluated.page_uri},
        metrics=evaluated.metrics,
        next=ui(args.store),
    )


if __name__ == "__main__":
    run_command(EvaluateArgs, __doc__, check=check, plan=plan, run=run)
