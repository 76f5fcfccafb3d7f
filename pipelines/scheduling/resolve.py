"""A scheduled command: checked when the schedule is added, pinned when a tick is begun, which decides its output."""

import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from ddpm_core import storage
from ddpm_core.api import loading
from ddpm_core.artifacts.checkpoint_store import find_checkpoint
from ddpm_core.errors import InputError
from pipelines.recipes.files import SUFFIX, find_recipe
from pipelines.scheduling.jobs import as_process
from pipelines.tracking import open_tracking, resolve_model
from pipelines.tracking.registry import champion_of
from pipelines.tracking.resolve import no_model, places

SEEDS_PER_TICK = 1_000_000
"""A tick's seeds start at its Unix minute times this: ticks are a minute apart or more, so no two share a seed."""
DEFAULT_COMMAND = ("python", "pipelines/sample.py", "digits")

_DOOR = "pipelines/sample.py"
_SEED = "--sample.first-seed"


def check_command(command: Sequence[str]) -> tuple[str, ...]:
    """The command in the form that every machine understands: python pipelines/sample.py ...

    Raises:
        InputError: one line, if it is another command, says what the schedule says, or asks for too many seeds.
    """
    arguments = _arguments(command)
    for flag in ("--store", "--dry-run", "--help", "-h"):
        if _value(arguments, flag) is not None:
            raise InputError(f"the command after -- has {flag}; expected it before --, among the schedule's own flags")
    count = _value(arguments, "--num-images") or _value(arguments, "--sample.num-images") or ""  # as sample.py has it
    if count.isdecimal() and int(count) > SEEDS_PER_TICK and _value(arguments, _SEED) is None:
        raise InputError(f"{count} images a tick; expected at most {SEEDS_PER_TICK}, or {_SEED} given")
    return ("python", _DOOR, *_from_anywhere(arguments))


def _from_anywhere(arguments: Sequence[str]) -> list[str]:
    """The same places, though a tick has another working directory."""
    file = arguments[:1] if arguments and arguments[0].endswith(SUFFIX) else []
    rest = list(arguments[len(file) :])
    out, model = _take(rest, "--out"), _take(rest, "--model")
    if model is not None:  # a path, or the name of a registered one or of a run
        rest += ["--model", storage.absolute(model) if Path(model).exists() else model]
    if out is not None:
        rest += ["--out", storage.absolute(out) + "/" * out.endswith("/")]
    return [*map(storage.absolute, file), *rest]


def _arguments(command: Sequence[str]) -> Sequence[str]:
    """What stands behind `python pipelines/sample.py` or `ddpm sample`."""
    program, *more = [Path(command[0]).name, *command[1:]] if command else [""]
    if program == "ddpm" and more[:1] == ["sample"]:
        return more[1:]
    if re.fullmatch(r"python[\d.]*", program) and more and Path(more[0]).parts[-2:] == tuple(_DOOR.split("/")):
        return more[1:]
    given = " ".join(command) or "empty"
    raise InputError(
        f"the command after -- is {given!r}; expected python {_DOOR} [RECIPE] [flags], or ddpm sample ...: only that may be "
        "scheduled"
    )


def pin_command(command: Sequence[str], tick: datetime, store: str, resolve: Callable[[str], str]) -> tuple[str, ...]:
    """The command with all that decides its output: the model's version, the store, the first seed of the tick.

    Args:
        command: as check_command returns it.
        resolve: names the one model that a URI means now.

    Raises:
        InputError: if there is no such model.
    """
    start, arguments = command[:2], [argument for argument in command[2:] if argument != "--json"]
    champion = champion_of(recipe_of(command))  # no candidate, as sample.py has
    named = _take(arguments, "--model")
    try:
        model = resolve(named or champion)
    except InputError as error:
        if named:
            raise
        raise InputError(
            f"{error}; a schedule draws the champion's images: make one the champion (by workflow, or registry promote "
            "MODEL --reason WORDS), or name another by --model"
        ) from None
    seed = [] if _value(arguments, _SEED) is not None else [_SEED, str(first_seed(tick))]
    return (*start, *arguments, "--model", model, "--store", store, *seed, "--json")


def pin(store: str, command: Sequence[str], tick: datetime) -> tuple[str, ...]:
    """The command of a tick in a store, its model resolved by MLflow and the store."""
    return pin_command(command, tick, store, partial(resolved, store, recipe_of(command)))


def first_seed(tick: datetime) -> int:
    """The Unix minute of a tick times SEEDS_PER_TICK."""
    return int(tick.timestamp()) // 60 * SEEDS_PER_TICK


def recipe_of(command: Sequence[str]) -> str:
    """The name of the recipe, or of the file's, that a checked command names."""
    named = command[2] if len(command) > 2 and not command[2].startswith("-") else "digits"
    return find_recipe(named).recipe if named.endswith(SUFFIX) else named


def resolved(store: str, recipe: str, model: str) -> str:
    """The name that a model keeps: models:/NAME/VERSION, or its checkpoint's URI.

    Raises:
        InputError: if there is no such model.
        TrackingError: if MLflow fails.
    """
    if model.startswith("models:/"):
        found = resolve_model(open_tracking(store, f"ddpm-{recipe}"), model)
        return f"models:/{found.name}/{found.version}"
    for place in places(model, store):
        if loading.is_model(place):
            return find_checkpoint(place) or place  # of a run its newest; a folder that diffusers wrote has no other
    raise no_model(model)


def rehearse(command: Sequence[str], ray_address: str | None) -> None:
    """Let the command check itself with --dry-run, so that a mistake shows now and not at night; nothing is tried out.

    Args:
        command: as pin returns it.
        ray_address: of the cluster that will do it; this machine's own size is then not asked.

    Raises:
        InputError: with the command's own line.
    """
    environment = {"RAY_ADDRESS": ray_address} if ray_address else {}
    tried = subprocess.run(**as_process([*command, "--dry-run"], **environment), capture_output=True, text=True)
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        raise InputError(f"the command after -- was tried with --dry-run: {said.removeprefix('error: ')}")


def _take(arguments: list[str], flag: str) -> str | None:
    """Take a flag out; its value, None if it is not there.

    An underscore is as good as a dash, as the commands have it.
    """
    value = None
    for place, argument in reversed([*enumerate(arguments)]):
        name, equals, typed = argument.partition("=")
        if name.replace("_", "-") == flag:
            value = typed if equals else "".join(arguments[place + 1 : place + 2])
            del arguments[place : place + (1 if equals else 2)]
    return value


def _value(arguments: Sequence[str], flag: str) -> str | None:
    return _take([*arguments], flag)
