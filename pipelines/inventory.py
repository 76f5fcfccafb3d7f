"""What lies in a store, what refers to what, and whether it is as it was written."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow.parquet as pq

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import is_sound
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import INDEX_NAME, read_index
from ddpm_core.artifacts.report import MARKER_NAME, read_report
from ddpm_core.artifacts.run_record import RECORD, hold, read_record
from ddpm_core.artifacts.sample_set import missing_blocks, read_images, read_sample_set
from ddpm_core.errors import InputError, nearest
from pipelines.progress import say

KINDS = ("datasets", "runs", "samples", "reports", "sweeps")
"""Folders of a store whose folders are items; datasets/sources is a cache."""
_COMMITS = re.compile(rf"{INDEX_NAME}|{MARKER_NAME}|set-\d+-\d+\.json|state\.json|sweep\.json|{re.escape(RECORD)}")
"""Files that say that what lies beside them is whole."""
_REFERENCE = re.compile(rf"\b({'|'.join(KINDS)})/([\w.+-]+)")


@dataclass
class Item:
    """A dataset, run, sample set, report or sweep; or a folder of what can be made again."""

    name: str
    """Below the store, as runs/digits-600225bc2e2d."""
    uri: str
    files: list[str] = field(default_factory=list)
    """Below the store, sorted."""
    size_bytes: int = 0
    changed: datetime | None = None
    """None on S3."""
    referred_by: list[str] = field(default_factory=list)
    """Items; models:/NAME/VERSION; schedules."""

    @property
    def kind(self) -> str:
        """One of KINDS; or cache, or records."""
        kind, _, rest = self.name.partition("/")
        if kind in KINDS and rest and self.name != "datasets/sources":
            return kind
        return "records" if kind in ("tracking", "schedules", "registry") or kind.startswith("mlflow") else "cache"

    @property
    def is_whole(self) -> bool:
        """Whether a file says so; else a job is at it, or was killed while it made or removed it."""
        return any(map(_commits, self.files))


def inventory(store: str) -> dict[str, Item]:
    """All that lies in a store, by name, and what refers to it from within."""
    items: dict[str, Item] = {}
    for entry in storage.walk(store):
        parts = entry.name.split("/")
        name = "/".join(parts[:2]) if parts[0] in KINDS and len(parts) > 2 else parts[0]
        item = items.setdefault(name, Item(name, storage.join(store, name)))
        item.files.append(entry.name)
        item.size_bytes += entry.size_bytes or 0
        if entry.version.isdecimal() and not storage.is_s3(store):
            changed = datetime.fromtimestamp(int(entry.version) / 1e9, UTC)
            item.changed = max(changed, item.changed or changed)
    for item in items.values():
        if item.kind in KINDS or item.name == "schedules":
            for name in _referred_to(store, item) & (items.keys() - {item.name}):
                items[name].referred_by.append(item.name)
    return dict(sorted(items.items()))


def _referred_to(store: str, item: Item) -> set[str]:
    """What the item's own records name; of a run, those of its newest checkpoint."""
    records = [
        name for name in item.files if name.endswith(".json") and "/validation/" not in name and "/results/" not in name
    ]
    if item.kind == "runs":
        records = [name for name in records if name.endswith("/state.json")][-1:]
    wanted = [storage.join(store, name) for name in records]
    texts = [data.decode() for data in storage.read_many(wanted) if not isinstance(data, OSError)]
    return {"/".join(found) for text in texts for found in _REFERENCE.findall(text)}


def find(items: dict[str, Item], name: str) -> Item:
    """An item by its name.

    Raises:
        InputError: in one line, with the nearest, if there is none.
    """
    item = items.get(name.strip("/"))
    if item is None or item.kind not in KINDS:
        known = [each.name for each in items.values() if each.kind in KINDS]
        raise InputError(
            f"no {name} in the store; expected KIND/NAME as `store.py list` prints it{nearest(name, known)}"
        )
    return item


def problems(item: Item) -> Iterator[str]:
    """What is not as it was written: each file is read, and held against its sum."""
    if not item.is_whole or item.kind not in _CHECKS:
        return
    try:
        yield from _CHECKS[item.kind](item)
    except Exception as error:  # whatever stands in the way of reading it is what is wrong with it
        yield " ".join(str(error).split()) or type(error).__name__


def _of_dataset(item: Item) -> Iterator[str]:
    index = read_index(item.uri)
    for shard in index.shards:
        data = storage.read_bytes(storage.join(item.uri, shard.name))
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            yield f"{shard.name} is not what was written ({len(data):,} bytes)"


def _of_run(item: Item) -> Iterator[str]:
    for uri in CheckpointStore(item.uri).uris():
        if not is_sound(uri):
            yield f"{uri.rpartition('/')[2]} is damaged"


def _of_samples(item: Item) -> Iterator[str]:
    for name in item.files:
        if re.fullmatch(r"set-\d+-\d+\.json", name.rpartition("/")[2]):
            sample_set = read_sample_set(storage.join(item.uri, name.rpartition("/")[2]))
            if missing := missing_blocks(sample_set):
                yield f"{name}: {len(missing)} blocks are missing, the first is that of seed {missing[0]}"
                continue
            with storage.open_read(sample_set.set_uri.removesuffix(".json") + ".parquet") as file:
                expected = dict(zip(*pq.read_table(file, columns=["seed", "sha256"]).to_pydict().values(), strict=True))
            wrong = [
                seed for seed, png in read_images(sample_set) if hashlib.sha256(png).hexdigest() != expected.get(seed)
            ]
            if wrong:
                yield f"{name}: {len(wrong)} images are not what was written, the first is that of seed {wrong[0]}"


def _of_report(item: Item) -> Iterator[str]:
    read_report(item.uri)
    yield from ()


def _of_sweep(item: Item) -> Iterator[str]:
    for name in item.files:
        if name.endswith(".json"):
            json.loads(storage.read_bytes(storage.join(item.uri, name.partition("/")[2].partition("/")[2])))
    yield from ()


_CHECKS = {"datasets": _of_dataset, "runs": _of_run, "samples": _of_samples, "reports": _of_report, "sweeps": _of_sweep}


def remove(store: str, items: dict[str, Item], item: Item) -> None:
    """Delete an item. First what says that it is whole: killed in the middle, what is left is not taken for one.

    Raises:
        InputError: in one line, if something refers to it, or may come to do so.
        HeldError: if a job is at work in it.
    """
    if item.referred_by:
        raise InputError(f"{item.name} is what {', '.join(item.referred_by[:3])} came from or shows; remove that first")
    if item.kind == "datasets":  # a run says what it reads with its first checkpoint
        for run in items.values():
            record = read_record(run.uri) if run.kind in ("runs", "sweeps") else None
            if record is not None and record.holder is not None:
                raise InputError(
                    f"a job is at work in {run.name} ({record.holder}) and may read {item.name}; expected that it has ended: "
                    f"wait, type its command again, or remove {run.name} first"
                )
    uris = [storage.join(store, name) for name in sorted(item.files, key=lambda name: (not _commits(name), name))]
    if item.kind in ("runs", "sweeps"):
        with hold(item.uri, say=say):
            for uri in uris:
                if uri != storage.join(item.uri, RECORD):
                    storage.delete(uri)
        storage.delete(storage.join(item.uri, RECORD))
        return
    for uri in uris:
        storage.delete(uri)


def copy(store: str, item: Item, to: str) -> None:
    """Have an item stand in another store, too: last what says that it is whole. Done twice, it changes nothing."""
    for name in sorted(item.files, key=lambda name: (_commits(name), name)):
        storage.copy(storage.join(store, name), storage.join(to, name))


def needed_by(items: dict[str, Item], item: Item) -> list[Item]:
    """What an item refers to, and what that refers to."""
    needs: defaultdict[str, list[Item]] = defaultdict(list)
    for each in items.values():
        for other in each.referred_by:
            needs[other].append(each)
    found: dict[str, Item] = {}
    waiting = [item]
    while waiting:
        for each in needs[waiting.pop().name]:
            if each.name not in found and each.name != item.name:
                found[each.name] = each
                waiting.append(each)
    return list(found.values())


def _commits(name: str) -> bool:
    return _COMMITS.fullmatch(name.rpartition("/")[2]) is not None
