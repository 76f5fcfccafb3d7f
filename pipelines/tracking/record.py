"""What a run has to tell, as the store keeps it: lines of JSON, in files that only their writer changes. MLflow shows a copy."""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from ddpm_core import storage
from ddpm_core.errors import InputError, MissingError
from pipelines.naming import digest

Entry = list[Any]
"""A kind and what belongs to it, as JSON: ["param", "train.steps", "640"]."""
Lineage = list[list[str]]
"""Name and key of a run, of its parent, of that one's parent, ..."""


class Recorded(NamedTuple):
    """What stands on record of a run."""

    lineage: Lineage
    entries: list[Entry]
    marks: Sequence[str] = ()
    """The files that say that MLflow may miss something of it."""


_MANY = 16
"""Files of one run that are made one, once their writers have ended."""
_FILE_BYTES = 256 << 10
"""A file is written anew until it is so large; then the next one begins."""


def experiments(store: str) -> list[str]:
    """Those of which a store has runs."""
    return sorted({uri.split("/")[-3] for uri, _ in storage.list_files(storage.join(store, "tracking", "runs"))})


class Records:
    """The runs of an experiment, in a store."""

    def __init__(self, store: str, experiment: str, server: str) -> None:
        self._store = storage.absolute(store)
        self._runs = storage.join(self._store, "tracking", "runs", experiment)
        self._undelivered = storage.join(self._store, "tracking", "undelivered", digest([experiment, server]))

    def new(self, lineage: Lineage) -> "Record":
        """What one process writes of a run."""
        run = _name(lineage)
        return Record(storage.join(self._runs, run), storage.join(self._undelivered, run), lineage)

    def read(self, lineage: Lineage) -> list[Entry]:
        """All that was written of a run, by whom it may be, in the order in which they began."""
        return self._read(_name(lineage)).entries

    def all(self) -> Iterator[Recorded]:
        """Every run."""
        return map(self._read, _by_run(self._runs))

    def undelivered(self) -> Iterator[Recorded]:
        """The runs of which MLflow may miss something."""
        for run, marks in _by_run(self._undelivered).items():
            recorded = self._read(run)
            if recorded.lineage:  # else it was killed before it wrote anything
                yield recorded._replace(marks=marks)

    def tidy(self, lineage: Lineage) -> None:
        """Have one file in place of many: a command that is typed each minute leaves one each time."""
        folder = storage.join(self._runs, _name(lineage))
        marks = storage.list_files(storage.join(self._store, "tracking", "undelivered"))
        at_work = {uri.rpartition("/")[2] for uri, _ in marks}
        uris = [uri for uri, _ in storage.list_files(folder) if _writer(uri) not in at_work]
        if len(uris) > _MANY:
            recorded = _read(uris)
            lines = map(json.dumps, [recorded.lineage, *counting(recorded.entries)])
            # Another name than any writer's, who may still write its own once more; it sorts where the oldest did.
            merged = f"{_writer(uris[0]).partition('-')[0]}-{uuid.uuid4().hex[:8]}-00000.jsonl"
            storage.write_bytes(storage.join(folder, merged), "\n".join(lines).encode())
            for uri in uris:
                storage.delete(uri)

    def place(self, uri: str) -> str:
        """How a file of this store is named in a record, so that the store can be moved."""
        return storage.absolute(uri).removeprefix(f"{self._store}/")

    def uri(self, place: str) -> str:
        """Where such a file lies now."""
        return place if "://" in place or place.startswith("/") else storage.join(self._store, place)

    def _read(self, run: str) -> Recorded:
        try:
            return _read([uri for uri, _ in storage.list_files(storage.join(self._runs, run))])
        except MissingError:  # another process made one of many just now
            return self._read(run)


class Record:
    """What this process writes of a run."""

    def __init__(self, folder: str, undelivered: str, lineage: Lineage) -> None:
        self.lineage = lineage
        self.marks: set[str] = set()
        """The files that say that MLflow may miss something, by this process or another that is gone."""
        began = f"{time.time_ns():019d}-{uuid.uuid4().hex[:8]}"
        self._files, self._mark = storage.join(folder, began), storage.join(undelivered, began)
        self._lines: list[str] = []
        self._number = self._written = 0

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries; they stand in the store after the next flush."""
        self._lines.extend(map(json.dumps, entries))

    def flush(self) -> None:
        """Write what is not there yet. If that fails, nothing is lost: the next flush writes it."""
        if len(self._lines) > self._written:
            data = "\n".join([json.dumps(self.lineage), *self._lines]).encode()
            storage.write_bytes(f"{self._files}-{self._number:05d}.jsonl", data)
            self._written = len(self._lines)
            if len(data) > _FILE_BYTES:
                self._number, self._lines, self._written = self._number + 1, [], 0

    def mark(self) -> None:
        """Have the store say that MLflow may miss something of what this process writes."""
        if self._mark not in self.marks:
            storage.write_bytes(self._mark, b"")
            self.marks.add(self._mark)

    def unmark(self) -> None:
        """Have it say that MLflow knows all."""
        while self.marks:
            storage.delete(self.marks.pop())


def _name(lineage: Lineage) -> str:
    return digest(["run", lineage[0][1]], 16)


def _by_run(folder: str) -> dict[str, list[str]]:
    """The files below a folder, by the folder that they are in."""
    uris = (uri for uri, _ in storage.list_files(folder))
    return {run: list(found) for run, found in groupby(uris, lambda uri: uri.split("/")[-2])}


def _writer(uri: str) -> str:
    return uri.rpartition("/")[2].rpartition("-")[0]


_TOLD_APART_BY = {"metric": (1, 3), "picture": (2, 3), "file": (2,), "status": ()}
"""Which parts of an entry say what it is of, by kind, where its name alone, the first of them, does not: of a point its step, too;
of a picture and a file what they are shown as, from wherever they lie."""


def counting(entries: list[Entry]) -> list[Entry]:
    """Without what others replace: of a param and of a point the first counts, of all else the last; and when it began."""
    kept: dict[str, Entry] = {}
    for entry in entries:
        subject = json.dumps([entry[0], *(entry[part] for part in _TOLD_APART_BY.get(entry[0], (1,)))])
        if subject not in kept or entry[0] not in ("param", "metric"):
            kept.pop(subject, None)  # the newest stands last
            kept[subject] = entry
    began = [entry for entry in entries if entry[0] == "status"][:1]
    return [*began, *kept.values()]


def _read(uris: list[str]) -> Recorded:
    lineage: Lineage = []
    entries: list[Entry] = []
    for uri, data in zip(uris, storage.read_many(uris), strict=True):
        if isinstance(data, OSError):
            raise data
        try:
            lineage, *more = map(json.loads, data.splitlines())
        except ValueError:
            raise InputError(
                f"{uri} is damaged; expected a line of JSON for each thing to tell. Without it MLflow misses some points"
            ) from None
        entries += more
    return Recorded(lineage, entries)
