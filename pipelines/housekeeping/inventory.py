"""What lies in a store, and what refers to what."""

import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from ddpm_core import storage
from ddpm_core.artifacts.manifest import INDEX_NAME
from ddpm_core.artifacts.report import MARKER_NAME
from ddpm_core.artifacts.run_record import RECORD
from ddpm_core.errors import InputError, MissingError, nearest
from pipelines.progress import span
from pipelines.tracking.registry import models, versions
from pipelines.tracking.store import Server

KINDS = ("datasets", "runs", "samples", "reports", "sweeps")
"""Folders of a store whose folders are items; datasets/sources is a cache."""
UNFINISHED = "unfinished: a job is at it, or was killed"
_CACHES = ("references", "bounds", "datasets/sources", "feature_weights")
_RECORDS = ("tracking", "schedules", "registry", "mlflow", "mlflow.db", "mlflow.db.lock")
_SAYS_WHOLE = re.compile(rf"{INDEX_NAME}|{MARKER_NAME}|set-\d+-\d+\.json|state\.json|sweep\.json|{re.escape(RECORD)}")
_MADE_HERE = re.compile(r"(?:datasets|reports)/.*-[0-9a-f]{12}|samples/[0-9a-f]{16}-\d+")
_NAME = re.compile(rf"\b(?:{'|'.join(KINDS)})/[\w.+-]+")


@dataclass
class Item:
    """A dataset, run, sample set, report or sweep; or a folder of what can be made again, or of records."""

    name: str
    """Below the store, as runs/digits-600225bc2e2d."""
    uri: str
    entries: list[storage.Entry] = field(default_factory=list)
    """Its files, by their names below the store."""
    referred_by: list[str] = field(default_factory=list)
    """Items; models:/NAME/VERSION; schedules."""

    @property
    def store(self) -> str:
        """In which it lies."""
        return self.uri.removesuffix(f"/{self.name}")

    @property
    def kind(self) -> str:
        """One of KINDS; or cache, records, or other: nothing of ours."""
        if self.name in _CACHES:
            return "cache"
        if self.name in _RECORDS:
            return "records"
        kind, _, rest = self.name.partition("/")
        return kind if kind in KINDS and rest else "other"

    @property
    def files(self) -> list[str]:
        """Names below the store, sorted."""
        return sorted(entry.name for entry in self.entries)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(entry.size_bytes or 0 for entry in self.entries)

    @property
    def changed_s(self) -> float:
        """Unix time at which its newest file was written; inf where none can be read."""
        return max((entry.changed_s for entry in self.entries if entry.problem is None), default=math.inf)

    @property
    def is_ours(self) -> bool:
        """Whether it is an item that this code made, and not a folder that somebody else put there."""
        return (
            f"{self.name}/{RECORD}" in self.files
            if self.kind in ("runs", "sweeps")
            else bool(_MADE_HERE.fullmatch(self.name))
        )

    @property
    def is_whole(self) -> bool:
        """Whether a file says so; else a job is at it, or was killed while it made or removed it."""
        return any(says_whole(entry.name) for entry in self.entries)


def inventory(store: str) -> dict[str, Item]:
    """All that lies in a store, by name, and what refers to it from within.

    Raises:
        StorageError: if a record cannot be read: what it refers to is not known.
    """
    items: dict[str, Item] = {}
    for entry in storage.walk(store):
        parts = entry.name.split("/")
        name = "/".join(parts[:2]) if parts[0] in KINDS and len(parts) > 2 else parts[0]
        items.setdefault(name, Item(name, storage.join(store, name))).entries.append(entry)
    for item in items.values():
        if item.kind in KINDS or item.name == "schedules":
            for name in names_in(store, _records(item)) & (items.keys() - {item.name}):
                items[name].referred_by.append(item.name)
    return dict(sorted(items.items()))


def add_registered(items: dict[str, Item], server: Server) -> int:
    """Add what registered models refer to; returns how many versions there are."""
    found = [version for model in models(server) for version in versions(server, model.name)]
    for version in found:
        for name in set(_NAME.findall("\n".join(version.tags.values()))) & items.keys():
            items[name].referred_by.append(f"models:/{version.name}/{version.version}")
    return len(found)


def unknown_models(items: dict[str, Item], server: Server | None) -> list[str]:
    """Models that were registered from this store, and that this MLflow, which may not exist, does not know."""
    told = {name.split("/")[1] for name in items["registry"].files} if "registry" in items else set()
    return sorted(told - {model.name for model in (models(server) if server else ())})


def names_in(store: str, files: Iterable[str]) -> set[str]:
    """The items that files below a store name; one that went away meanwhile names none."""
    names: set[str] = set()
    for found in storage.read_many(storage.join(store, name) for name in files):
        if isinstance(found, bytes):
            names.update(_NAME.findall(found.decode(errors="replace")))
        elif not isinstance(found, MissingError):
            raise found
    return names


def _records(item: Item) -> list[str]:
    """Files that say what an item came from; of a run, that of its newest checkpoint."""
    records = [
        name for name in item.files if name.endswith(".json") and not {"validation", "results"} & set(name.split("/"))
    ]
    if item.kind == "runs":
        return [name for name in records if name.endswith("/state.json")][-1:]
    return records


def find(items: dict[str, Item], name: str) -> Item:
    """An item by its name.

    Raises:
        InputError: in one line, with the nearest, if there is none.
    """
    item = items.get(name.strip("/"))
    if item is not None and item.kind not in KINDS:
        raise InputError(f"{item.name} is {item.kind}, and no item; expected KIND/NAME as `store.py list` prints it")
    if item is None:
        known = [each.name for each in items.values() if each.kind in KINDS]
        raise InputError(
            f"no {name} in the store; expected KIND/NAME as `store.py list` prints it{nearest(name, known)}"
        )
    return item


def size_words(size_bytes: int) -> str:
    """For a person, to a tenth of B, kB, MB, GB or TB."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age(item: Item) -> str:
    """How long ago its newest file was written; empty where none can be read."""
    return f"{span(time.time() - item.changed_s)} ago" if math.isfinite(item.changed_s) else ""


def says_whole(name: str) -> bool:
    """Whether a file is one that says that what lies beside it is whole."""
    return _SAYS_WHOLE.fullmatch(name.rpartition("/")[2]) is not None
