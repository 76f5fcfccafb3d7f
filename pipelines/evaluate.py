"""Judge a model's samples against the images it was trained on: the Fréchet distance, neighbours, and a report to look at.

examples:
  python pipelines/evaluate.py                                     # models:/ddpm-digits@champion
  python pipelines/evaluate.py mnist --model models:/ddpm-mnist@candidate --evaluate.num-images 2048
  python pipelines/evaluate.py mnist --compare models:/ddpm-mnist/1 models:/ddpm-mnist/2
  python pipelines/evaluate.py --images samples.npz --dataset mnist-0123456789ab    # images that others made
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import tyro

from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.diffusion.sampler_config import SamplerConfig, SamplerName
from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.figures import number
from pipelines.cli.checks import check_counts, check_sampling
from pipelines.cli.command import Outcome, as_recipe, run_command
from pipelines.cli.invocation import ui
from pipelines.cluster.placement import for_a_cpu, for_sampling
from pipelines.datasets import dataset_of, find_dataset
from pipelines.feature_weights import check_features, find_features
from pipelines.measuring.image_sets import foreign_images
from pipelines.recipes.config import SampleStage, default_store
from pipelines.subject import Subject, of_model, of_others
from pipelines.tracking.registry import champion_of, champion_or_candidate
from pipelines.tracking.resolve import check_model

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline


_OFTEN = (
    "model", "images", "dataset", "compare", "steps", "evaluate.num_images", "evaluate.features", "evaluate.weights",
    "evaluate.resize", "sample.num_images", "store",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Whose samples to judge, and how."""

    recipe: tyro.conf.Suppress[str] = ""
    file: tyro.conf.Suppress[str] = ""
    store: str = field(default_factory=default_store)
    """Where all artifacts go: a folder or s3://bucket/prefix."""
    model: str | None = None
    """Whose samples: models:/NAME@ALIAS, models:/NAME/VERSION, or the URI of a checkpoint or run.
    Default: the recipe's champion, or its candidate while there is no champion."""
    images: str | None = None
    """Judge these images in place of a model's: a folder, tar, zip, .npz, parquet or idx file of the dataset's size and
    colour. Wants --dataset."""
    steps: tuple[int, ...] = ()
    """Draw the distance over these numbers of steps of each of the samplers, too; as many images are made for each."""
    samplers: tuple[SamplerName, ...] = ("ddim", "dpm_solver", "heun")
    """Those of --steps."""
    compare: tuple[str, ...] = ()
    """Judge these models (as --model names them) and set them side by side: which differences exceed their noise."""
    dataset: str | None = None
    """Judge against this dataset: its URI, or the name of its folder in the store. Default: what the model was trained on."""
    sample: SampleStage = field(default_factory=SampleStage)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def check(args: EvaluateArgs) -> None:
    """That a block fits somewhere, the features' weights, and the dataset."""
    check_sampling(args.sample)
    check_features(args.evaluate)
    index = None if args.dataset is None else find_dataset(args.dataset, args.store)
    if len(args.compare) == 1 or (args.compare and args.model is not None):
        raise InputError(f"compare is {' '.join(args.compare)}; expected two models or more, and no --model")
    if args.images is None:
        check_counts(args.sample.num_images, args.evaluate.num_images)
        return
    if args.model is not None or args.compare:
        raise InputError(f"images is {args.images} beside --model or --compare; expected images or models")
    if index is None:
        raise InputError(f"images is {args.images} without a dataset to hold them against; name one by --dataset")
    there = foreign_images(args.images, index).num_images
    if there < args.evaluate.num_images:
        raise InputError(
            f"{args.images} holds {there} images, evaluate.num-images is {args.evaluate.num_images}; lower it to {there}"
        )


def plan(args: EvaluateArgs) -> list[str]:
    """What would be measured."""
    count = f"{args.evaluate.num_images:,}"
    if args.images is not None:
        return [f"evaluate: the first {count} images of {args.images} against {args.dataset}, into {args.store}"]
    whose = args.model or champion_or_candidate(args.recipe)
    return [
        f"sample: {args.sample.num_images:,} images of {whose}, unless they are there",
        *(f"sample: as many by {name} in {steps} steps" for name in args.samplers for steps in args.steps),
        f"evaluate: the first {count} of them against the model's dataset, into {args.store}",
    ]


def _judged(pipeline: "Pipeline", args: EvaluateArgs) -> tuple[Subject, DatasetIndex]:
    """The images, and the dataset that they are held against."""
    if args.images is not None and args.dataset is not None:
        index = find_dataset(args.dataset, args.store)
        return of_others(foreign_images(args.images, index)), index
    weights = pipeline.find_weights(args.model)
    index = find_dataset(args.dataset, args.store) if args.dataset else dataset_of(weights, args.store)
    samples = pipeline.sample(weights).samples
    requests = [
        replace(args.sample, sampler=SamplerConfig(name=name, num_steps=steps))
        for name in args.samplers
        for steps in args.steps
    ]
    others = pipeline.sample_each(weights, requests)
    by_steps = tuple(
        (each.sampler.name, each.sampler.num_steps or 0, made) for each, made in zip(requests, others, strict=True)
    )
    return of_model(weights, samples, by_steps), index


def _compared(pipeline: "Pipeline", args: EvaluateArgs) -> Outcome:
    """Each model judged, then all side by side."""
    from pipelines.comparing import write_comparison

    judged = {}
    for model in args.compare:
        subject, index = _judged(pipeline, replace(args, model=model))
        judged[model] = pipeline.evaluate(subject, index)
    page, rows = write_comparison(args.store, judged)
    made = {
        row.name: "   ".join(
            f"{number(figure.value)}{f' [{verdict}]' if verdict else ''}"
            for figure, verdict in zip(row.values, row.verdicts, strict=True)
        )
        for row in rows
    }
    metrics = {row.name: [figure.value for figure in row.values] for row in rows}
    return Outcome(made={"models": "   ".join(args.compare), **made, "report": page}, metrics=metrics)


def run(args: EvaluateArgs) -> Outcome:
    """Sample what is not there yet, then evaluate."""
    from pipelines.pipeline import open_pipeline

    for model in () if args.images else args.compare or [args.model or champion_of(args.recipe)]:
        check_model(model, args.store)
    find_features(args.evaluate, args.store)  # minutes of fetching, and what may be wrong with it, before all else
    with open_pipeline(as_recipe(args), for_sampling(args.sample), for_a_cpu("evaluate")) as pipeline:
        if args.compare:
            return _compared(pipeline, args)
        evaluated = pipeline.evaluate(*_judged(pipeline, args))
    return Outcome(
        made={"figure": evaluated.summary, "report": evaluated.page_uri},
        metrics=evaluated.metrics,
        next=ui(args.store),
    )


if __name__ == "__main__":
    run_command(EvaluateArgs, __doc__, check=check, plan=plan, run=run, often=_OFTEN)
