"""What lies in a store, and who refers to it; whether it is as it was written; and less of it, or a copy.

  list                  datasets, runs, sample sets, reports, sweeps and caches: size, last change, what refers to them
  verify [ITEM]         read each file and hold it against its sum; exit code 1 if anything is damaged
  rm ITEM               delete it, unless another item, a registered model or a schedule refers to it
  gc                    delete what nobody has used for 30 days and nothing refers to; --dry-run says what that is
  copy ITEM TO          an item, and what it refers to, into another store

ITEM is KIND/NAME as `list` prints it; `show.py` says what one is.

examples:
  python pipelines/store.py list
  python pipelines/store.py verify runs/digits-600225bc2e2d
  python pipelines/store.py copy runs/digits-600225bc2e2d s3://bucket/ddpm
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import tyro

from ddpm_core import storage
from ddpm_core.errors import InputError
from pipelines.cli.command import Outcome
from pipelines.cli.invocation import typed
from pipelines.cli.subcommands import Subcommand, print_table, run_subcommand
from pipelines.housekeeping.copying import copy, needed_by
from pipelines.housekeeping.inventory import (
    KINDS,
    UNFINISHED,
    Item,
    add_registered,
    age,
    find,
    inventory,
    size_words,
    unknown_models,
)
from pipelines.housekeeping.removal import old_cache, remove, remove_unused, unused
from pipelines.housekeeping.soundness import problems
from pipelines.progress import counted, shown
from pipelines.recipes.config import default_store
from pipelines.tracking import standing_server, tracking_uri

_SHOWN = 3
_ORDER = (*KINDS, "cache", "records", "other")
_HEADER = "kind", "name", "size", "files", "changed", "referred to by"


@dataclass(frozen=True, kw_only=True)
class StoreArgs:
    """Which store."""

    store: str = field(default_factory=default_store)
    """A folder or s3://bucket/prefix."""


@dataclass(frozen=True, kw_only=True)
class ItemArgs(StoreArgs):
    """And what of it."""

    item: tyro.conf.Suppress[str] = ""


@dataclass(frozen=True, kw_only=True)
class CopyArgs(ItemArgs):
    """And where to."""

    to: tyro.conf.Suppress[str] = ""


@dataclass(frozen=True, kw_only=True)
class GcArgs(StoreArgs):
    """What counts as unused."""

    older_than: int = 30
    """Days in which no file of an item was written, and no command has logged that it reads or makes it."""
    caches: bool = False
    """Also features and bounds, which would be computed again."""


def _items(args: StoreArgs, *, removing: bool = True) -> tuple[dict[str, Item], str]:
    """With what the registry refers to; and, in words, which one that is.

    Raises:
        InputError: if something is to be removed, and this MLflow does not know a model that was registered from the store.
    """
    items, server = inventory(args.store), standing_server(args.store)
    where = shown(tracking_uri(args.store))
    if removing and (unknown := unknown_models(items, server)):
        raise InputError(
            f"{unknown[0]} was registered from {args.store}, and {where} knows no such model; expected the MLflow that keeps it: "
            f"set MLFLOW_TRACKING_URI, or delete {storage.join(args.store, 'registry', unknown[0])} if it is gone for good"
        )
    return items, f"{counted(add_registered(items, server) if server else 0, 'model version')} of {where}"


def listing(args: StoreArgs) -> Outcome:
    """A line an item."""
    items, registry = _items(args, removing=False)
    print_table(
        _HEADER, [_row(item) for item in sorted(items.values(), key=lambda item: (_ORDER.index(item.kind), item.name))]
    )
    total = _total(list(items.values()))
    print(f"{size_words(total)} in {args.store}; {registry}")
    return Outcome(made={}, metrics={"bytes": total, "items": {item.name: _told(item) for item in items.values()}})


def verifying(args: ItemArgs) -> Outcome:
    """All, or one."""
    items = inventory(args.store)
    chosen = [find(items, args.item)] if args.item else [item for item in items.values() if item.kind in KINDS]
    wrong: dict[str, list[str]] = {}
    for item in chosen:
        found = list(problems(item))
        sound = "as it was written" if item.is_whole else UNFINISHED
        print(f"{item.name}  {'; '.join(found) or sound}", flush=True)
        wrong |= {item.name: found} if found else {}
    return Outcome(made={}, metrics={"checked": len(chosen), "wrong": wrong}, exit_code=1 if wrong else 0)


def what_would_be_removed(args: ItemArgs) -> list[str]:
    """What rm would remove, if nothing refers to it."""
    items, _ = _items(args)
    item = find(items, args.item)
    return [_sized(item), f"stays: {_referred(item)} refers to it" if item.referred_by else "nothing refers to it"]


def removing(args: ItemArgs) -> Outcome:
    """One."""
    items, _ = _items(args)
    item = find(items, args.item)
    remove(args.store, items, item)
    return Outcome(made={"removed": _sized(item)})


def check_age(args: GcArgs) -> None:
    """Refuse to call unused what a job may be writing."""
    if args.older_than < 1:
        raise InputError(
            f"--older-than is {args.older_than}; expected days, 1 or more: a job may be at work in what is newer"
        )


def what_would_go(args: GcArgs) -> list[str]:
    """What gc would remove now."""
    items, registry = _items(args)
    found, cached = unused(args.store, items, _since_s(args)), _cached(args, items)
    lines = [f"{item.name}  {size_words(item.size_bytes)}, {age(item)}" for item in found]
    lines += [f"{len(cached):,} files of features and bounds"] if cached else []
    kept = len([item for item in items.values() if item.kind in KINDS]) - len(found)
    size_bytes = _total(found) + sum(entry.size_bytes or 0 for entry in cached)
    return [*lines, f"{size_words(size_bytes)} would go; {kept} items stay, also for {registry}"]


def collecting(args: GcArgs) -> Outcome:
    """All that is unused."""
    items, registry = _items(args)
    cached = _cached(args, items)
    gone, kept = [], {}
    for item, why in remove_unused(args.store, items, _since_s(args)):
        print(f"{'kept' if why else 'removed'} {item.name}, {why or size_words(item.size_bytes)}", flush=True)
        if why:
            kept[item.name] = why
        else:
            gone.append(item)
    for entry in cached:
        storage.delete(storage.join(args.store, entry.name))
    size_bytes = _total(gone) + sum(entry.size_bytes or 0 for entry in cached)
    files = f" and {len(cached):,} files of features and bounds" if cached else ""
    made = {"removed": f"{counted(len(gone), 'item')}{files}, {size_words(size_bytes)}", "asked": registry}
    return Outcome(
        made=made, metrics={"bytes": size_bytes, "removed_items": [item.name for item in gone], "kept": kept}
    )


def _since_s(args: GcArgs) -> float:
    return time.time() - args.older_than * 24 * 3600


def _cached(args: GcArgs, items: dict[str, Item]) -> list[storage.Entry]:
    return old_cache(items, _since_s(args)) if args.caches else []


def _copied(args: CopyArgs) -> list[Item]:
    """What is copied, the item itself last.

    Raises:
        InputError: in one line, if it is to go where it lies, or there is none.
    """
    if storage.absolute(args.to) == storage.absolute(args.store):
        raise InputError(f"{args.to} is the store itself; expected another one")
    items = inventory(args.store)
    item = find(items, args.item)
    return [*needed_by(items, item), item]


def what_would_be_copied(args: CopyArgs) -> list[str]:
    """What copy would copy."""
    copied = _copied(args)
    return [*map(_sized, copied), f"{size_words(_total(copied))} would be copied to {storage.absolute(args.to)}"]


def copying(args: CopyArgs) -> Outcome:
    """One, and what it needs."""
    copied, to = _copied(args), storage.absolute(args.to)
    storage.check_store(to)
    for each in copied:
        copy(args.store, each, to)
        print(f"copied {_sized(each)}", flush=True)
    return Outcome(
        made={"to": to},
        metrics={"bytes": _total(copied), "copied": [each.name for each in copied]},
        next=typed("store.py", "verify", copied[-1].name, store=to),
    )


def _row(item: Item) -> list[str]:
    return [item.kind, item.name, size_words(item.size_bytes), f"{len(item.files):,}", age(item), _referred(item)]


def _told(item: Item) -> dict[str, Any]:
    """Of an item, for a program."""
    changed = datetime.fromtimestamp(item.changed_s, UTC).isoformat() if math.isfinite(item.changed_s) else None
    told = {"uri": item.uri, "files": item.files, "bytes": item.size_bytes, "changed": changed}
    return {**told, "referred_by": item.referred_by}


def _sized(item: Item) -> str:
    return f"{item.name}, {size_words(item.size_bytes)}"


def _total(items: list[Item]) -> int:
    return sum(item.size_bytes for item in items)


def _referred(item: Item) -> str:
    more = len(item.referred_by) - _SHOWN
    return ", ".join(item.referred_by[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


COMMANDS = {
    "list": Subcommand(about="What lies in a store, and what refers to it.", args=StoreArgs, do=listing, store="reads"),
    "verify": Subcommand(
        about="Hold each file against its sum.",
        args=ItemArgs,
        do=verifying,
        store="reads",
        words=("item",),
        optional=True,
    ),
    "rm": Subcommand(
        about="Delete an item that nothing refers to.",
        args=ItemArgs,
        do=removing,
        store="changes",
        words=("item",),
        plan=what_would_be_removed,
    ),
    "gc": Subcommand(
        about="Delete what nobody has used for long and nothing refers to.",
        args=GcArgs,
        do=collecting,
        store="changes",
        check=check_age,
        plan=what_would_go,
    ),
    "copy": Subcommand(
        about="An item, and what it refers to, into another store.",
        args=CopyArgs,
        do=copying,
        store="reads",
        words=("item", "to"),
        plan=what_would_be_copied,
    ),
}


if __name__ == "__main__":
    run_subcommand("store.py", __doc__ or "", COMMANDS, sys.argv[1:])
