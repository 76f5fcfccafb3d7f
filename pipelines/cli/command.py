"""How every command runs: one line for a user's mistake, the plan on --dry-run, and what was made at the end."""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Never

from ddpm_core import storage
from ddpm_core.data.sources import source_uri
from ddpm_core.errors import UserError
from ddpm_core.serialization import to_json
from pipelines.cli.invocation import program
from pipelines.cli.opening import take_away
from pipelines.cli.parsing import A, parse
from pipelines.cli.written import UnwrittenError, written
from pipelines.cluster.address import cluster_address
from pipelines.cluster.failures import last_words
from pipelines.cluster.session import Terminated
from pipelines.progress import shown
from pipelines.recipes.config import Recipe, as_named
from pipelines.recipes.files import find_recipe
from pipelines.tracking.store import check_place

_INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended,"""
_TERMINATED = 143
"""and of one that SIGTERM ended."""
Use = Literal["makes", "changes", "reads", "leaves"]
"""What a command does with its store: writes there, and makes it where there is none; writes into one that stands; reads one that
stands; or sees to it by itself."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command made."""

    made: dict[str, str]
    """What it is and where it lies, in the order to show."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Numbers for --json."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a person is told beside it, and a program is not."""
    next: str = ""
    """The command that comes next."""
    exit_code: int = 0
    """1 if some of it failed, which was told already."""


def run_command(
    args_type: type[A],
    about: str,
    *,
    check: Callable[[A], None] = lambda args: None,
    plan: Callable[[A], list[str]],
    run: Callable[[A], Outcome],
    cost: Callable[[A], list[str]] = lambda args: [],
    often: Sequence[str] = (),
    read: Callable[[type[A], list[str], str, str], A] | None = None,
    argv: list[str] | None = None,
    store: Use = "makes",
) -> None:
    """Parse the command line, check it, and run the stage.

    Args:
        args_type: the command's flags, a dataclass with a `store`; fields named as the recipe's take their values from it.
        about: the first lines of --help.
        check: refuses what cannot work before anything starts (InputError, one line).
        plan: says what will be done, for --dry-run.
        cost: tries what that costs, which may take seconds; for a person only, not with --json.
        run: does it. Imports the pipeline by itself: with it come Ray and MLflow, for seconds, which no mistake needs to wait for.
        often: the flags that most people use, for --help, dotted: train.steps.
        read: makes the flags of the command line, as `parse` does, for a command without a recipe.
        store: what it does with its store, which is tried first.

    Exits:
        0 when done, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM, 1 if a process or a node was lost once too
        often, and with a traceback for a mistake of ours; or as `written` does.
    """
    with written():
        _run(args_type, about, check, plan, run, cost, read or partial(parse, often=often), argv, store)


def _run(
    args_type: type[A],
    about: str,
    check: Callable[[A], None],
    plan: Callable[[A], list[str]],
    run: Callable[[A], Outcome],
    cost: Callable[[A], list[str]],
    read: Callable[[type[A], list[str], str, str], A],
    argv: list[str] | None,
    store: Use,
) -> None:
    take_away()
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    as_json, dry_run = _take(argv, "--json"), _take(argv, "--dry-run")
    try:
        args = read(args_type, argv, program(Path(sys.argv[0]).name), about)
        check(args)
        if store in ("changes", "reads"):
            storage.check_there(args.store)  # type: ignore[attr-defined]
        lines = plan(args) + ([] if as_json else cost(args)) if dry_run else []
        if store != "leaves" and not dry_run:
            storage.check_temporary()
            _check_store(args.store, writes=store != "reads")  # type: ignore[attr-defined]
    except (ValueError, OSError, UserError) as error:
        sys.exit(_mistake(error))
    if dry_run:
        print(json.dumps(to_json(args)) if as_json else "\n".join(lines))
        return
    outcome = _ended_in_a_line(lambda: run(args))
    _show(outcome, as_json)
    if outcome.exit_code:
        sys.exit(outcome.exit_code)


def _ended_in_a_line(work: Callable[[], Outcome]) -> Outcome:
    """What a command made; where it could not, the process ends in one line if there is one for it."""
    try:
        return work()
    except UserError as error:
        if os.environ.get("DDPM_TRACEBACK"):
            raise
        sys.exit(_mistake(error))
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        _end_now(_TERMINATED if isinstance(error, Terminated) else _INTERRUPTED)
    except Exception as error:
        line = last_words(error)
        if line is None:
            raise
        print(f"error: {shown(line)}", file=sys.stderr)
        sys.exit(1)


def _end_now(exit_code: int) -> Never:
    """End the process here.

    What was broken off in the middle (an import, a start of Ray) would hang or crash Python as it tidies up, and there is nothing
    left to tidy: whoever held something gave it back on the way here.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, UnwrittenError):  # Ctrl-C ends who reads it, too
            stream.flush()
    os._exit(exit_code)


def _check_store(store: str, *, writes: bool) -> None:
    """Try it by really writing; on a cluster a folder may be one of another machine, so it is asked there."""
    check_place(store)
    if writes and (storage.is_s3(store) or cluster_address() is None):
        storage.check_store(store)


def _take(argv: list[str], flag: str) -> bool:
    found = flag in argv
    if found:
        argv.remove(flag)
    return found


def _mistake(error: Exception) -> int:
    print(f"error: {shown(' '.join(str(error).split()))}", file=sys.stderr)
    return error.exit_code if isinstance(error, UserError) else 2


def _show(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**outcome.made, **outcome.metrics}))
        return
    told = outcome.made | outcome.notes
    width = max(map(len, told), default=0)
    for what, where in told.items():
        print(f"{what:{width}}  {where}")
    if outcome.next:
        print(f"{'next':{width}}  {outcome.next}")


def as_recipe(args: Any) -> Recipe:
    """The recipe behind a command's flags: its fields where the command has them, the recipe's own elsewhere."""
    of_recipe = {f.name for f in fields(Recipe)}
    return replace(
        find_recipe(as_named(args)), **{f.name: getattr(args, f.name) for f in fields(args) if f.name in of_recipe}
    )


def named_source(recipe: Recipe) -> list[str]:
    """The flags that name the dataset, or the raw images and what is made of them, where the recipe's name does not say it."""
    if recipe.dataset is not None:
        return ["--dataset", recipe.dataset]
    own = find_recipe(as_named(recipe)).data
    return changed_flags("data", recipe.data, replace(own, source=source_uri(own.source)))


def changed_flags(section: str, asked: Any, own: Any) -> list[str]:
    """The flags that make one config of another.

    Args:
        section: what they begin with: data, sample.
        asked, own: dataclasses of one type.
    """
    words: list[str] = []
    for f in fields(own):
        value, before = getattr(asked, f.name), getattr(own, f.name)
        flag = f"{section}.{f.name.replace('_', '-')}"
        if is_dataclass(before):
            words += changed_flags(flag, value, before)
        elif isinstance(value, bool) and value != before:
            words.append(f"--{flag}" if value else f"--{section}.no-{flag.rpartition('.')[2]}")
        elif value != before:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words
