"""Generate images, each by its own seed: the same image whatever the batch size, and wherever it is made.

examples:
  python pipelines/sample.py                                       # from models:/ddpm-digits@champion
  python pipelines/sample.py mnist --model models:/ddpm-mnist@champion --num-images 10000 --sample.num-workers 2
  python pipelines/sample.py --model /path/to/checkpoints/step-00001000 --sample.sampler.name ancestral
  python pipelines/sample.py mnist --num-images 64 --out digits.gif
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import tyro

from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.data.sources.labels import few
from ddpm_core.diffusion.sampler_config import SamplerConfig, steps_taken
from ddpm_core.errors import InputError, nearest
from ddpm_core.model.config import read_model_config, read_sampler_config
from pipelines.cli.checks import check_sampling
from pipelines.cli.command import Outcome, as_recipe, changed_flags, run_command
from pipelines.cli.costs import sampling_time
from pipelines.cli.invocation import typed
from pipelines.cli.output import check_output, write_output
from pipelines.cluster.placement import for_sampling
from pipelines.datasets import dataset_of
from pipelines.housekeeping.lookup import weights_of
from pipelines.progress import say
from pipelines.recipes.config import SampleStage, as_named, default_store
from pipelines.recipes.files import find_recipe
from pipelines.tracking import default_model, open_server
from pipelines.tracking.registry import champion_of, champion_or_candidate, model_name
from pipelines.tracking.resolve import check_model

_OFTEN = (
    "model", "num_images", "out", "sample.first_seed", "classes", "sample.guidance", "sample.sampler.name",
    "sample.sampler.num_steps", "sample.num_workers", "sample.use_gpu", "store",
)  # fmt: skip
_NAMED = 20
"""Classes that an error names."""
_JUDGED = 256
"""Images, fewer of which have a distance that says little."""


@dataclass(frozen=True, kw_only=True)
class SampleArgs:
    """Whose images, how many, and how."""

    recipe: tyro.conf.Suppress[str] = ""
    file: tyro.conf.Suppress[str] = ""
    store: str = field(default_factory=default_store)
    """Where all artifacts go: a folder or s3://bucket/prefix."""
    model: str | None = None
    """Whose images: models:/NAME@ALIAS, models:/NAME/VERSION, or the URI of a checkpoint, a run or a diffusers folder.
    Default: the recipe's champion, or its candidate while there is no champion."""
    num_images: int | None = None
    """Images to generate, one a seed. Default: the recipe's number."""
    out: str | None = None
    """Also write the images there: FOLDER, a PNG a seed, or FILE.npz, or FILE.png, a grid, or FILE.gif or .webp, how they
    come to be; local or on S3."""
    classes: tuple[str, ...] = ()
    """Of a model with classes: which to draw, by their names, in turn by seed; --sample.labels takes their numbers."""
    sample: SampleStage = field(default_factory=SampleStage)

    def __post_init__(self) -> None:
        if self.num_images is not None:
            object.__setattr__(self, "sample", replace(self.sample, num_images=self.num_images))
            object.__setattr__(self, "num_images", None)


def check(args: SampleArgs) -> None:
    """That a block fits somewhere, and the images where they are to go."""
    check_sampling(args.sample)
    if args.classes and args.sample.labels:
        raise InputError("classes and sample.labels both say which classes to draw; expected one of them")
    if args.out:
        check_output(args.out)


def plan(args: SampleArgs) -> list[str]:
    """Whose images, and how."""
    sampler, first = args.sample.sampler, args.sample.first_seed
    steps, whose = sampler.num_steps or "all", args.model or champion_or_candidate(args.recipe)
    return [
        f"sample: {args.sample.num_images:,} images of {whose}, seeds from {first}, {sampler.name} in {steps} steps, "
        f"into {args.store}"
    ]


def cost(args: SampleArgs) -> list[str]:
    """What the images take, tried."""
    return sampling_time(as_recipe(args))


def told_otherwise(weights: Weights, asked: SamplerConfig) -> str:
    """A line that says where a request samples otherwise than the model's own folder says; empty if it does not.

    The number of steps is no difference: no folder says it.
    """
    own = read_sampler_config(weights.config)
    if own is None:
        return ""
    own, T = replace(own, num_steps=asked.num_steps), read_model_config(weights.config).schedule.num_timesteps
    if steps_taken(own, T) == steps_taken(asked, T):
        own = replace(own, spacing=asked.spacing)
    differing = [f.name for f in dataclasses.fields(SamplerConfig) if getattr(own, f.name) != getattr(asked, f.name)]
    said = ", ".join(f"sampler.{name} {getattr(own, name)}" for name in differing)
    taken = ", ".join(str(getattr(asked, name)) for name in differing)
    return f"sample: {weights.uri} says {said}; taken, as asked for: {taken}" if differing else ""


def numbers_of(wanted: Sequence[str], known: Sequence[str]) -> tuple[int, ...]:
    """The numbers of classes.

    Args:
        wanted: their names.
        known: those of the model's dataset, in the order of their numbers.

    Raises:
        InputError: for a name that is none of them, in one line with the nearest.
    """
    if not known:
        raise InputError(f"classes is {' '.join(wanted)}, and the model's dataset has no classes; expected none")
    if unknown := [name for name in wanted if name not in known]:
        names = ", ".join(known) if len(known) <= _NAMED else few(known)
        raise InputError(f"classes has {unknown[0]!r}; expected some of {names}{nearest(unknown[0], known)}")
    return tuple(map(known.index, wanted))


def labels_of(wanted: Sequence[str], weights: Weights, store: str) -> tuple[int, ...]:
    """The numbers of a model's classes.

    Raises:
        InputError: in one line: the model was not told of classes, its dataset is not found, or none is called so.
    """
    if not read_model_config(weights.config).unet.num_classes:
        raise InputError(
            f"classes is {' '.join(wanted)}, and the model was not told of classes; expected none, or a model trained with "
            "unet.num-classes"
        )
    try:
        known = dataset_of(weights, store).class_names
    except InputError:
        raise InputError(
            f"classes have their names from the dataset that the model at {weights.uri} was trained on, which is not found; "
            "expected their numbers: --sample.labels"
        ) from None
    return numbers_of(wanted, known)


def check_classes(args: SampleArgs) -> None:
    """That the model knows the classes, before Ray starts for half a minute.

    Raises:
        InputError: in one line.
    """
    named = args.model or default_model(open_server(args.store), model_name(champion_of(args.recipe)))
    weights = weights_of(named, args.store)
    labels_of(args.classes, weights, args.store)


def run(args: SampleArgs) -> Outcome:
    """Generate what is not there yet."""
    check_model(args.model or champion_of(args.recipe), args.store)  # not in check: --dry-run needs none
    if args.classes:
        check_classes(args)
    from pipelines.pipeline import open_pipeline

    with open_pipeline(as_recipe(args), for_sampling(args.sample)) as pipeline:
        weights = pipeline.find_weights(args.model)
        say(f"sample: of {weights.uri}{f', step {weights.step:,}' if weights.step else ''}")  # others' say none
        if note := told_otherwise(weights, args.sample.sampler):
            say(note)
        if args.classes:
            labels = labels_of(args.classes, weights, args.store)
            args = replace(args, classes=(), sample=replace(args.sample, labels=labels))
        sampled = replace(pipeline, recipe=as_recipe(args)).sample(weights)
    if args.out:
        write_output(sampled.samples, weights, args.sample, args.out)
    return Outcome(
        made={"samples": sampled.samples.set_uri, "grid": sampled.grid_uri, **({"out": args.out} if args.out else {})},
        metrics={"images": args.sample.num_images, "computed": sampled.num_new, "images_per_s": sampled.images_per_s},
        next=_next(args, weights, sampled.samples.set_uri),
    )


def _next(args: SampleArgs, weights: Weights, samples: str) -> str:
    """To judge them, where there are enough to judge, of all classes, and something to judge them against; else to look at them."""
    recipe, config = find_recipe(as_named(args)), args.sample
    if config.num_images < _JUDGED or config.labels or not weights.dataset_uri:
        return typed("show.py", samples, store=args.store)
    fewer = config.num_images < recipe.evaluate.num_images
    these = [
        *(["--model", args.model] if args.model else []),
        *changed_flags("sample", config, recipe.sample),
        *(["--evaluate.num-images", str(config.num_images)] if fewer else []),
    ]
    return typed("evaluate.py", as_named(args), *these, store=args.store)


if __name__ == "__main__":
    run_command(SampleArgs, __doc__, check=check, plan=plan, run=run, cost=cost, often=_OFTEN)
