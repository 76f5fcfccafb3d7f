"""What lies in a store, and who refers to it; whether it is as it was written; and less of it, or a copy.

  list                  datasets, runs, sample sets, reports, sweeps and caches: size, last change, what refers to them
  verify [ITEM]         read each file and hold it against its sum; exit code 1 if anything is damaged
  rm ITEM               delete it, unless another item, a registered model or a schedule refers to it
  copy ITEM TO          an item, and what it refers to, into another store

ITEM is KIND/NAME as `list` prints it.

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
    from pipelines.cli.opening import first_word

    first_word()

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import tyro

from ddpm_core import storage
from ddpm_core.errors import InputError
from pipelines.cli.command import Outcome, typed
from pipelines.cli.subcommands import Subcommand, print_table, run_subcommand
from pipelines.inventory import KINDS, Item, copy, find, inventory, needed_by, problems, remove
from pipelines.progress import span
from pipelines.recipes.config import default_store
from pipelines.tracking import open_server
from pipelines.tracking.registry import models, versions

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class StoreArgs:
    """Which store."""

    item: tyro.conf.Suppress[str] = ""
    to: tyro.conf.Suppress[str] = ""
    store: str = field(default_factory=default_store)
    """A folder or s3://bucket/prefix."""


def _items(args: StoreArgs) -> dict[str, Item]:
    """With what the registry refers to."""
    items = inventory(args.store)
    server = open_server(args.store)
    for model in models(server):
        for version in versions(server, model.name):
            found = version.tags.get("checkpoint_uri", "").rpartition("/runs/")[2].partition("/")[0]
            for name in (f"runs/{found}", f"datasets/{version.tags.get('dataset_uri', '').rpartition('/')[2]}"):
                if name in items:
                    items[name].referred_by.append(f"models:/{model.name}/{version.version}")
    return items


def listing(args: StoreArgs) -> Outcome:
    """A line an item."""
    items = _items(args)
    order = (*KINDS, "cache", "records")
    rows = [
        [item.kind, item.name, _size(item.size_bytes), f"{len(item.files):,}", _age(item), _referred(item)]
        for item in sorted(items.values(), key=lambda item: (order.index(item.kind), item.name))
    ]
    print_table(("kind", "name", "size", "files", "changed", "referred to by"), rows)
    total = sum(item.size_bytes for item in items.values())
    print(f"{_size(total)} in {args.store}")
    told = {item.name: {**vars(item), "changed": item.changed and item.changed.isoformat()} for item in items.values()}
    return Outcome(made={}, metrics={"bytes": total, "items": told})


def verifying(args: StoreArgs) -> Outcome:
    """All, or one."""
    items = inventory(args.store)
    chosen = [find(items, args.item)] if args.item else [item for item in items.values() if item.kind in KINDS]
    wrong: dict[str, list[str]] = {}
    for item in chosen:
        found = list(problems(item))
        sound = "as it was written" if item.is_whole else "unfinished: a job is at it, or was killed"
        print(f"{item.name}  {'; '.join(found) or sound}", flush=True)
        wrong |= {item.name: found} if found else {}
    return Outcome(made={}, metrics={"checked": len(chosen), "wrong": wrong}, exit_code=1 if wrong else 0)


def removing(args: StoreArgs) -> Outcome:
    """One."""
    items = _items(args)
    item = find(items, args.item)
    remove(args.store, items, item)
    return Outcome(made={"removed": f"{item.name}, {_size(item.size_bytes)}"})


def copying(args: StoreArgs) -> Outcome:
    """One, and what it needs."""
    to = storage.absolute(args.to)
    if to == storage.absolute(args.store):
        raise InputError(f"{args.to} is the store itself; expected another one")
    storage.check_store(to)
    items = inventory(args.store)
    item = find(items, args.item)
    for each in (*needed_by(items, item), item):
        copy(args.store, each, to)
        print(f"copied {each.name}, {_size(each.size_bytes)}", flush=True)
    return Outcome(made={"to": to}, next=typed("store.py", "verify", item.name, store=to))


def _size(size_bytes: int) -> str:
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _age(item: Item) -> str:
    return "" if item.changed is None else f"{span((datetime.now(UTC) - item.changed).total_seconds())} ago"


def _referred(item: Item) -> str:
    more = len(item.referred_by) - _SHOWN
    return ", ".join(item.referred_by[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _word(about: str, do: Any, *words: str, optional: bool = False) -> Subcommand:
    return Subcommand(about=about, args=StoreArgs, do=do, words=words, optional=optional)


COMMANDS = {
    "list": _word("What lies in a store, and what refers to it.", listing),
    "verify": _word("Hold each file against its sum.", verifying, "item", optional=True),
    "rm": _word("Delete an item that nothing refers to.", removing, "item"),
    "copy": _word("An item, and what it refers to, into another store.", copying, "item", "to"),
}


if __name__ == "__main__":
    run_subcommand("store.py", __doc__ or "", COMMANDS, sys.argv[1:])
