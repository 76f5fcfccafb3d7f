"""A project of your own images: look at them, choose settings for them and this machine, and write both as a file, NAME.toml.

Every command takes the file where it takes a recipe's name. Its datasets, runs and models have the project's name. Up to 400 of the
images are decoded; of more, so many at even distances. What is chosen stands in the file with its reason, and what it costs here.

examples:
  python pipelines/new.py flowers --data.source photos/
  python pipelines/new.py flowers --data.source s3://raw/photos.tar.gz --use-gpu
  python pipelines/new.py flowers --data.source photos/ --dry-run          # the file, but for its costs
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

import os
from dataclasses import dataclass, field, replace

import torch
import tyro

from ddpm_core import storage
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sources import DIGITS, open_source, source_uri
from ddpm_core.errors import InputError
from pipelines.cli.checks import sources_in
from pipelines.cli.command import Outcome, run_command
from pipelines.cli.costs import sampling_time, training_cost
from pipelines.cli.invocation import typed
from pipelines.cli.parsing import parse_flags
from pipelines.naming import recipe_named_in
from pipelines.progress import progress, say
from pipelines.recipes.choosing import Chosen, Machine, choose
from pipelines.recipes.config import Recipe, default_store
from pipelines.recipes.files import SUFFIX, check_project, recipe_file
from pipelines.recipes.survey import MOST_LOOKED_AT, Survey, survey


@dataclass(frozen=True, kw_only=True)
class Images:
    """Whose images."""

    source: str = ""
    """Your images: a path or s3:// URI of a folder, tar or zip, parquet, ... (docs/data.md)."""


@dataclass(frozen=True, kw_only=True)
class NewArgs:
    """Which images, and which machine."""

    name: tyro.conf.Suppress[str] = ""
    data: Images = field(default_factory=Images)
    use_gpu: bool = field(default_factory=torch.cuda.is_available)
    """Choose for a GPU: larger images, a larger network. The default is what this machine has."""
    store: str = field(default_factory=default_store)
    """Where the command that comes next is to put all artifacts: a folder or s3://bucket/prefix."""

    @property
    def file(self) -> str:
        """What is written, in the working directory."""
        return f"{self.name}{SUFFIX}"


def read(args_type: type[NewArgs], argv: list[str], program: str, about: str) -> NewArgs:
    """NAME and flags.

    Raises:
        InputError: in one line.
    """
    named = bool(argv) and not argv[0].startswith("-")
    name = argv.pop(0) if named else ""
    if not named and not {"-h", "--help", "--help-all"} & set(argv):
        raise InputError(f"the project has no name; expected `{program} NAME --data.source FOLDER`")
    args = parse_flags(args_type, argv, args_type(name=name), f"{program} NAME", about)
    return replace(args, data=Images(source=args.data.source and source_uri(args.data.source)))


def check(args: NewArgs) -> None:
    """The name, that no file of it is there, and the source."""
    if args.name.endswith(SUFFIX):
        raise InputError(f"project is {args.name!r}; expected a name, of which the file is made: {args.name[:-5]!r}")
    check_project(args.name)
    if os.path.lexists(args.file):
        raise _is_there(args)
    if not args.data.source:
        raise InputError("data.source is empty; expected your images: --data.source FOLDER")
    open_source(args.data.source)
    _check_alone(args)


def _check_alone(args: NewArgs) -> None:
    """Refuse a name by which the store has other images: their models would be compared as if they were of one project."""
    for name, other in sources_in(args.store).items():
        if recipe_named_in(name) == args.name and other != args.data.source:
            raise InputError(
                f"project is {args.name!r}, a name by which {args.store} has images of {other}; expected another name, or --store"
            )


def _is_there(args: NewArgs) -> InputError:
    return InputError(f"there is a file {args.file} already, which stays as it is; expected another name")


def _chosen(args: NewArgs) -> tuple[Survey, Chosen]:
    """Look, and choose."""
    source = open_source(args.data.source)
    with progress("look", min(source.num_images, MOST_LOOKED_AT), "image") as bar:
        found = survey(source, DataConfig(), bar.set)
    if found is None:
        raise InputError(f"{args.data.source} has no image that can be read, of those that were looked at")
    return found, choose(args.name, args.data.source, found, Machine(cpus=os.cpu_count() or 1, gpu=args.use_gpu))


def _text(args: NewArgs, found: Survey, chosen: Chosen, costs: list[str]) -> str:
    """The file."""
    data = replace(chosen.recipe.data, source=_as_written(args.data.source))
    about = [
        f"{args.name}: a project, as `ddpm new` chose it, much like the recipe {chosen.like}. Any line may be changed, and any "
        "field added; a flag goes before the file, and what is not said is as in the paper. The rules: docs/projects.md.",
        *(f"Found: {line}." for line in found.lines()),
        *(f"Here: {line}." for line in costs),
    ]
    return recipe_file(replace(chosen.recipe, data=data), "\n".join(about), chosen.reasons)


def _as_written(source: str) -> str:
    """Relative to the working directory, where the file goes, if it lies below: both can then be moved together."""
    if source == DIGITS or storage.is_s3(source) or not Path(source).is_relative_to(Path.cwd()):
        return source
    return str(Path(source).relative_to(Path.cwd()))


def plan(args: NewArgs) -> list[str]:
    """The file, but for what it costs."""
    return [f"new: {args.file} would be", "", *_text(args, *_chosen(args), []).splitlines()]


def costs_here(recipe: Recipe) -> list[str]:
    """What the commands' --dry-run says, tried here for some seconds."""
    return [*training_cost(recipe), *sampling_time(recipe)]


def run(args: NewArgs) -> Outcome:
    """Look, choose, try what it costs, and write."""
    found, chosen = _chosen(args)
    for line in found.lines():
        print(line)
    if found.class_counts:
        print(f"the network is not told of the classes, unless {args.file} says so (num_classes) before it trains")
    say("new: trying what training and sampling cost here")
    costs = costs_here(chosen.recipe)
    for line in costs:
        print(line)
    if not storage.create_bytes(storage.absolute(args.file), _text(args, found, chosen, costs).encode()):
        raise _is_there(args)
    data, train = chosen.recipe.data, chosen.recipe.train
    return Outcome(
        made={"project": args.file},
        metrics={
            "like": chosen.like,
            "image_size": data.image_size,
            "channels": data.channels,
            "steps": train.steps,
            "images": found.num_images,
            "looked_at": found.num_looked_at,
            "unread": found.num_unread + found.num_lost,
            "duplicates": found.num_duplicates,
            "near_duplicates": found.num_near,
        },
        next=typed("workflow.py", args.file, store=args.store),
    )


if __name__ == "__main__":
    run_command(NewArgs, __doc__, check=check, plan=plan, run=run, read=read, store="leaves")
