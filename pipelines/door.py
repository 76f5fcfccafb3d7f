"""What all doors share: RECIPE and flags in, one line for a user's mistake, the plan on --dry-run, and what was made at the end."""

import contextlib
import difflib
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from ddpm_core import storage
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sources import check_source, open_source, source_uri
from ddpm_core.data.writer import plan_dataset
from ddpm_core.diffusion.losses import check_objective
from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.model.unet import UNet
from ddpm_core.plain import to_json
from pipelines.cluster.address import cluster_address
from pipelines.cluster.failures import last_words, raised_by_us
from pipelines.cluster.placement import check_here, for_sampling, for_training
from pipelines.cluster.session import Terminated
from pipelines.progress import shown
from pipelines.recipes import RECIPES, Recipe, SampleStage, default_store, make

A = TypeVar("A")

_INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended,"""
_TERMINATED = 143
"""and of one that SIGTERM ended."""
_EVERYWHERE = """\
  --dry-run  print the resolved config and the plan, touch nothing
  --json     print what was made (with --dry-run: the config) as one JSON object, last line of stdout"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a door made."""

    made: dict[str, str]
    """What it is and where it lies, in the order to show."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Numbers for --json."""
    next: str = ""
    """The command that comes next."""
    exit_code: int = 0
    """1 if some of it failed, which was told already."""


def open_door(
    args_type: type[A],
    about: str,
    *,
    check: Callable[[A], None],
    plan: Callable[[A], list[str]],
    run: Callable[[A], Outcome],
    read: Callable[[type[A], list[str], str, str], A] | None = None,
    argv: list[str] | None = None,
) -> None:
    """Parse the command line, check it, and run the stage.

    Args:
        args_type: the door's flags, a dataclass with a `store`; fields named as the recipe's take their values from it.
        about: the first lines of --help.
        check: refuses what cannot work before anything starts (ValueError, one line).
        plan: says what will be done, for --dry-run.
        run: does it. Imports the line by itself: with it come Ray and MLflow, for seconds, which no mistake needs to wait for.
        read: makes the flags of the command line, as `parse` does, for a door without a recipe.

    Exits:
        0 when done, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM, 1 if a process or a node was lost once too
        often, and with a traceback for a mistake of ours.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    program = f"python pipelines/{Path(sys.argv[0]).name}"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    as_json, dry_run = _take(argv, "--json"), _take(argv, "--dry-run")
    try:
        args = (read or parse)(args_type, argv, program, about)
        check(args)
        lines = plan(args) if dry_run else []
        if not dry_run:
            _check_store(args.store)  # type: ignore[attr-defined]
    except BrokenPipeError:  # --help | head: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit()
    except (ValueError, OSError) as error:
        sys.exit(_mistake(error))
    if dry_run:
        print(json.dumps(to_json(args), indent=None if as_json else 2))
        print("" if as_json else "\n".join(lines), end="" if as_json else "\n")
        return
    try:
        outcome = run(args)
    except (ValueError, OSError) as error:
        if not raised_by_us(error):
            raise
        sys.exit(_mistake(error))
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(_TERMINATED if isinstance(error, Terminated) else _INTERRUPTED)
    except Exception as error:
        line = last_words(error)
        if line is None:
            raise
        print(f"error: {shown(line)}", file=sys.stderr)
        sys.exit(1)
    _show(outcome, as_json)
    if outcome.exit_code:
        sys.exit(outcome.exit_code)


def _check_store(store: str) -> None:
    """Try it by really writing; on a cluster a folder may be one of another machine, so it is asked there."""
    if storage.is_s3(store) or cluster_address() is None:
        storage.check_store(store)


def parse(args_type: type[A], argv: list[str], program: str, about: str) -> A:
    """RECIPE and dotted flags to the door's arguments.

    Raises:
        ValueError: for a misspelt recipe or flag, or a value that is none; one line with the nearest match.
        SystemExit: with 0, after --help.
    """
    name = argv.pop(0) if argv and not argv[0].startswith("-") else "digits"
    if name not in RECIPES:
        raise ValueError(
            f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}{_nearest(name, list(RECIPES))}"
        )
    recipe = make(name)
    of_recipe = {f.name for f in fields(Recipe)}
    default = args_type(**{f.name: getattr(recipe, f.name) for f in fields(args_type) if f.name in of_recipe})  # type: ignore[arg-type]
    return parse_flags(args_type, argv, default, f"{program} [RECIPE]", f"{about}\n\n{_recipes()}")


def parse_flags(args_type: type[A], argv: list[str], default: A, program: str, about: str) -> A:
    """Dotted flags to a dataclass; what they leave out is as in the default.

    Raises:
        ValueError: for a misspelt flag, or a value that is none; one line with the nearest match.
        SystemExit: with 0, after --help.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            parsed = tyro.cli(
                args_type, args=argv, default=default, prog=program, description=f"{about}\n\n{_EVERYWHERE}"
            )
    except SystemExit as exit_:  # tyro ends the process; here the caller does
        if exit_.code == 0:
            raise
        raise ValueError(_one_line(told.getvalue())) from None
    return _anchored(parsed)


def _anchored(args: A) -> A:
    """The arguments with absolute paths: workers have other working directories."""
    anchored: dict[str, Any] = {}
    for f in fields(args):  # type: ignore[arg-type]
        value = getattr(args, f.name)
        if f.name == "store":
            anchored["store"] = storage.absolute(value)
        if isinstance(value, DataConfig) and value.source != "digits":
            anchored[f.name] = replace(value, source=storage.absolute(value.source))
    return replace(args, **anchored)  # type: ignore[type-var]


def _recipes() -> str:
    width = max(map(len, RECIPES))
    recipes = "\n".join(
        f"  {name:{width}}  {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()
    )
    return f"RECIPE (default: digits; any flag below overrides its field):\n{recipes}"


def _one_line(box: str) -> str:
    """tyro's box as one line: what, the value, what was expected, the nearest match."""
    _title, inside = re.sub(r"^╰.*$|│", " ", box.strip(), flags=re.M).split("\n", 1)
    parts = (" ".join(part.split()) for part in re.split(r"^\s*[-─]{5,}\s*$", inside, flags=re.M))
    said, *more = (part for part in parts if part)  # where no lines can be drawn, a rule of dashes follows the title
    said = re.sub(r"^Error parsing (?!-)\w+: ", "", said).rstrip(".?")
    rest = " ".join(more)
    match = re.search(r"Perhaps you meant: (--[\w.-]+)", rest) or re.search(r"Argument helptext: (--[\w.-]+ \S+)", rest)
    hint = ""
    if match:
        hint = f"; did you mean {match.group(1)}?" if "Perhaps" in rest else f"; expected {match.group(1)}"
    return f"{said}{hint} (all flags: --help)"


def _nearest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _take(argv: list[str], flag: str) -> bool:
    found = flag in argv
    if found:
        argv.remove(flag)
    return found


def _mistake(error: Exception) -> int:
    print(f"error: {shown(' '.join(str(error).split()))}", file=sys.stderr)
    return 2


def typed(script: str, *args: str, store: str) -> str:
    """A command that runs as printed, in the shell that ran this one.

    Args:
        script: a file of this folder, as sample.py; or a module, as -m pipelines.tracking.
        args: what follows it.
        store: named in the command unless it is the default one.
    """
    python = shutil.which("python")
    ours = python is not None and Path(python).parent.samefile(Path(sys.executable).parent)
    file = [] if script.startswith("-m ") else [_from_here(Path(__file__).with_name(script))]
    words = ["python" if ours else _from_here(Path(sys.executable)), *(file or script.split()), *args]
    return shlex.join([*words, *([] if store == default_store() else ["--store", store])])


def ui(store: str) -> str:
    """The command that shows MLflow's pages of a store."""
    return "make ui" if store == default_store() else typed("-m pipelines.tracking", store=store)


def _from_here(path: Path) -> str:
    """As a person would type it: short where it lies below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _show(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**outcome.made, **outcome.figures}))
        return
    width = max(map(len, outcome.made), default=0)
    for what, where in outcome.made.items():
        print(f"{what:{width}}  {where}")
    if outcome.next:
        print(f"{'next':{width}}  {outcome.next}")


def as_recipe(door: Any) -> Recipe:
    """The recipe behind a door's flags: its fields where the door has them, the recipe's own elsewhere."""
    of_recipe = {f.name for f in fields(Recipe)}
    return replace(make(door.recipe), **{f.name: getattr(door, f.name) for f in fields(door) if f.name in of_recipe})


def check_data(recipe: Recipe) -> None:
    """Refuse a source that cannot be used.

    Raises:
        ValueError: in one line.
    """
    check_source(recipe.data.source)


def data_summary(config: DataConfig) -> str:
    """What sharding would do, in one line."""
    source = open_source(source_uri(config.source))
    plans = plan_dataset(source.num_images, config)
    train, heldout = (sum(len(plan.indices) for plan in plans if plan.split == split) for split in ("train", "heldout"))
    classes = f"{len(source.class_names)} classes" if source.class_names else "no classes"
    return (
        f"{source.num_images:,} images of {classes} in {config.source}: {train:,} to train on, {heldout:,} held out, "
        f"in {len(plans):,} shards of up to {config.samples_per_shard:,}"
    )


def named_source(recipe: Recipe) -> list[str]:
    """The flag that names the raw images, where the recipe does not name them itself."""
    named = source_uri(make(recipe.recipe).data.source)
    return [] if recipe.data.source == named else ["--data.source", recipe.data.source]


def check_training(recipe: Recipe) -> None:
    """Refuse more workers than can be placed, and a network that cannot be built.

    Raises:
        ValueError: in one line.
    """
    check_here(for_training(recipe.train))
    check_objective(recipe.loss, recipe.reverse)
    check_prediction(recipe.reverse, make_schedule(recipe.schedule))
    with torch.device("meta"):
        UNet(recipe.unet, image_size=recipe.data.image_size, channels=recipe.data.channels)


def check_sampling(sample: SampleStage) -> None:
    """Refuse what no node can hold.

    Raises:
        ValueError: in one line.
    """
    check_here(for_sampling(sample))
