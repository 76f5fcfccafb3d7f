"""What a run has still to tell MLflow: lines of JSON on this machine's disk, gone once they are delivered."""

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

logger = logging.getLogger(__name__)

Entry = list[Any]
"""A kind and what belongs to it, as JSON: ["param", "train.steps", "640"]."""
Lineage = list[list[str]]
"""Name and key of a run, of its parent, of that one's parent, ..."""

# Of one journal, in bytes; about a million points.
LIMIT = 64 * 2**20
_RUN = "run"


def digest(*parts: str) -> str:
    """A file's name for what may not be one."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def journal_folder() -> Path:
    """Where this user keeps what waits, of all tracking servers; XDG_STATE_HOME moves it."""
    return platformdirs.user_state_path("ddpm") / "mlflow"


class Journal:
    """An append-only file a run. Any process may deliver it, one at a time; a kill costs at most the line being written."""

    def __init__(self, uri: str, experiment: str, lineage: Lineage) -> None:
        self._path = journal_folder() / f"{digest(uri, experiment)}-{digest(lineage[0][1])}.jsonl"
        self._lineage = lineage
        self._told = False

    @property
    def waits(self) -> bool:
        """Whether there is something to deliver."""
        return self._path.exists()

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries. Those that a full disk or a full journal does not take are left out, and that is told once."""
        try:
            with self._locked() as file:
                size = file.seek(0, os.SEEK_END)
                lines = [json.dumps(entry) for entry in ([] if size else [[_RUN, self._lineage]])]
                # A newline before each: it ends a line that a kill has torn.
                data = "".join(f"\n{line}" for line in [*lines, *map(json.dumps, entries)]).encode()
                if size + len(data) > LIMIT:
                    raise OSError(f"more than {LIMIT:,} bytes wait for MLflow")
                file.write(data)
        except OSError as error:
            if not self._told:
                self._told = True
                remedy = "; set XDG_STATE_HOME to a folder on a disk that takes it" if error.errno else ""
                logger.warning(
                    "%s takes no more, MLflow will miss some of the run's figures: %s%s", self._path, error, remedy
                )

    def deliver(self, write: Callable[[list[Entry]], None]) -> None:
        """Hand all entries to write(), while other processes wait, and forget them. If it raises they stay."""
        if self.waits:
            with self._locked() as file:
                file.seek(0)
                entries = [entry for entry in _parsed(file) if entry[0] != _RUN]
                if entries:
                    write(entries)
                self._path.unlink()

    def set_aside(self) -> Path:
        """Keep the entries where nothing delivers them any more; returns that file."""
        return self._path.replace(self._path.with_suffix(f".refused-{time.time_ns()}"))

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(self._path, "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink:  # else it was delivered and deleted while we waited
                    yield file
                    return


def waiting(uri: str, experiment: str) -> Iterator[Lineage]:
    """The runs of an experiment that have something to deliver."""
    for path in journal_folder().glob(f"{digest(uri, experiment)}-*.jsonl"):
        try:
            with open(path, "rb") as file:
                first = next(_parsed(file), [])
        except FileNotFoundError:  # another process delivered it just now
            continue
        if first and first[0] == _RUN:
            yield first[1]


def _parsed(file: BinaryIO) -> Iterator[Entry]:
    for line in file:
        try:
            yield json.loads(line)
        except ValueError:  # the empty first line, or a torn one: no beginning of a JSON list is a JSON list
            continue
