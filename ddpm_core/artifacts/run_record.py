"""Who writes a folder (a run, a sweep): one job at a time, said in <folder>/run.json.

A job takes the folder over by putting its name into the record, and changes the record every few seconds from then on.
Each change is a compare-and-swap. So a job that was paused, or cut off, and comes back finds another's name there: it can
commit nothing more.
A job that finds the folder held watches the record by its own clock: one that changes has a living holder, one that stands still
for a minute is taken over. Clocks of two machines are never compared.
"""

import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ddpm_core import storage
from ddpm_core.artifacts import records
from ddpm_core.errors import HeldError

FORMAT_VERSION = 1
RECORD = "run.json"
BEAT_S = 10.0
"""How often a holder changes the record."""
PATIENCE_S = 60.0
"""A record that did not change for so long belongs to no one any more."""
_LOOK_S = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A job that writes."""

    id: str
    host: str
    pid: int
    process: str | None
    """Machine, its start, its space of process numbers, and the process's start: who sees the same knows whether it is alive."""
    since: str
    """ISO 8601, UTC; for people."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What stands in run.json."""

    attempt: int
    """Jobs that have held the folder so far."""
    holder: Holder | None
    """None once it was given back."""
    changes: int
    """Grows with every change: a record that stands still is one without a living holder."""
    checkpoints: tuple[int, ...] = ()
    """Steps of the checkpoints that count."""
    format_version: int = FORMAT_VERSION


class Hold:
    """What a job has while it holds a folder. It may be sent to other processes of the job: they write in its name."""

    def __init__(self, folder: str, holder: Holder) -> None:
        self.folder, self.holder = folder, holder
        self._lost: HeldError | None = None

    def check(self) -> None:
        """Raise HeldError if another job was seen to hold the folder, when the record was last changed from here."""
        if self._lost:
            raise self._lost

    def change(self, how: Callable[[RunRecord], RunRecord] = lambda record: record) -> RunRecord:
        """Change the record; returns what stands there now.

        Raises:
            HeldError: if another job holds the folder by now.
        """
        while True:
            found = _read(self.folder)
            if found is None or found[0].holder is None or found[0].holder.id != self.holder.id:
                now = found[0].holder if found else None
                by = f"it was taken over by {now}" if now else "it was given back"
                self._lost = HeldError(
                    f"{self.folder} is not this job's any more, {by}; nothing that stands there is lost"
                )
                raise self._lost
            record, stands = found
            changed = replace(how(record), changes=record.changes + 1)
            if storage.replace_bytes(storage.join(self.folder, RECORD), records.record_bytes(changed), stands):
                return changed

    def release(self) -> None:
        """Give the folder back, if it is still held: the next job need not wait."""
        with suppress(HeldError):
            self.change(lambda record: replace(record, holder=None))


def read_record(folder: str) -> RunRecord | None:
    """The record of a folder; None if no job of this code wrote there."""
    found = _read(folder)
    return found[0] if found else None


@contextmanager
def hold(
    folder: str, *, say: Say, standing: Callable[[], tuple[int, ...]] = tuple, until_free: bool = False
) -> Iterator[Hold]:
    """Hold a folder for as long as the block runs.

    Args:
        say: told, in a line, for whom this job waits.
        standing: the steps of the checkpoints that are to count.
        until_free: wait for a holder that lives.

    Raises:
        HeldError: in one line, if another job holds it and lives.
    """
    held = Hold(folder, _acquire(folder, say, standing, until_free))
    ended = threading.Event()

    def beat() -> None:
        told = False
        while not ended.wait(BEAT_S):
            try:
                held.change()
                told = False
            except HeldError:
                return  # which check raises
            except storage.StorageError as error:
                if not told:
                    say(f"{error}; if no other job takes {folder} over meanwhile, all goes on")
                told = True

    thread = threading.Thread(target=beat, name="holds the run", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        try:
            held.release()
        except storage.StorageError as error:
            say(f"{error}; the next job that writes {folder} will wait for {PATIENCE_S:.0f} s")


def _acquire(folder: str, say: Say, standing: Callable[[], tuple[int, ...]], until_free: bool) -> Holder:
    uri, seen, since, told = storage.join(folder, RECORD), None, 0.0, -math.inf
    while True:
        found, now = _read(folder), time.monotonic()
        record, stands = found or (RunRecord(attempt=0, holder=None, changes=0), None)
        if record.holder is None or _has_ended(record.holder) or (stands == seen and now - since >= PATIENCE_S):
            mine = _this_holder()
            taken = replace(
                record, attempt=record.attempt + 1, holder=mine, changes=record.changes + 1, checkpoints=standing()
            )
            data = records.record_bytes(taken)
            if storage.replace_bytes(uri, data, stands) if stands is not None else storage.create_bytes(uri, data):
                return mine
            continue
        if stands != seen and seen is not None and not until_free:
            raise _is_held(folder, record.holder)
        if stands != seen:
            seen, since = stands, now
        if now - told >= PATIENCE_S:
            told = now
            say(f"{folder} is held by {record.holder}; taken over if it gives no sign of life for {PATIENCE_S:.0f} s")
        time.sleep(_LOOK_S)


def check_free(folder: str, say: Say) -> None:
    """Refuse a folder that a process of this machine is seen to hold on to, within ten seconds, as `hold` would.

    One that is ending gives it back meanwhile; whether one that stands still, or another machine's, lives, `hold` finds out.

    Raises:
        HeldError: in one line.
    """
    seen, until = None, time.monotonic() + 1.5 * BEAT_S
    while (found := _read(folder)) and _is_here(found[0].holder) and time.monotonic() < until:
        record, stands = found
        if seen is None:
            say(f"{folder} is held by {record.holder}; refused if it gives a sign of life")
        elif stands != seen:
            raise _is_held(folder, record.holder)
        seen = stands
        time.sleep(_LOOK_S)


def _is_here(holder: Holder | None) -> bool:
    """Whether it is a process of this machine, and there, be it stopped."""
    return holder is not None and holder.process is not None and holder.process == _process(holder.pid)


def _is_held(folder: str, holder: Holder | None) -> HeldError:
    return HeldError(
        f"{folder} is held by {holder}, and it is alive; wait for it, stop it, or write elsewhere (--name)"
    )


def _this_holder() -> Holder:
    return Holder(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        process=_process(os.getpid()),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _has_ended(holder: Holder) -> bool:
    """Whether it was a process of this machine that is there no more; False if that cannot be told from here."""
    mine = _process(os.getpid())
    if mine is None or holder.process is None or holder.process.split()[:2] != mine.split()[:2]:
        return False
    return _process(holder.pid) != holder.process


def _process(pid: int) -> str | None:
    """A process by the machine's start, the space of its number, and its own start (Linux); None if there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{boot} {space} {fields[18]}"


def _read(folder: str) -> tuple[RunRecord, bytes] | None:
    uri = storage.join(folder, RECORD)
    return records.read_record(RunRecord, uri, FORMAT_VERSION, remedy="delete it, if no job writes there")
