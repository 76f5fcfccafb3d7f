"""Who does a tick: a claim with a lease, made by conditional create, passed on by compare-and-swap; one done record.

<store>/schedules/<name>/<tick>.claim.json is created once; whoever created it starts the job and renews the lease. An
expired lease may be taken over by anyone. <tick>.done.json is created once, whoever finishes first. Clocks of different
machines may differ by less than the lease.
"""

import os
import socket
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar

from ddpm_core import storage
from ddpm_core.artifacts.records import read_record, record_bytes

FORMAT_VERSION = 1
_CLAIM, _DONE = ".claim.json", ".done.json"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A scheduler process."""

    host: str
    pid: int
    uuid: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A tick that is being done."""

    tick: str
    owner: Owner
    attempt: int
    """Starts and take-overs so far, from 1."""
    failures: int
    """Of those, jobs that ended and failed."""
    lease_until: str
    """ISO 8601, UTC; from then on anyone may take over."""
    command: tuple[str, ...]
    """Decided once, when the claim was made; never recomputed."""
    submission_id: str
    """Of the job that is under way or about to be started."""
    format_version: int = FORMAT_VERSION

    def expired(self, now: datetime) -> bool:
        """Whether the lease has run out."""
        return now >= datetime.fromisoformat(self.lease_until)


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a tick ended."""

    tick: str
    status: Literal["succeeded", "failed"]
    exit_code: int | None
    """None if the job was lost with its cluster or stopped by someone."""
    samples: str | None
    """The SampleSet's URI."""
    made: dict[str, Any] = field(default_factory=dict)
    """The last line of the job's output, where that is a JSON object."""
    message: str = ""
    """Of a failed job: the last line of its output."""
    log: str
    """Where its output lies."""
    attempt: int
    submission_id: str
    command: tuple[str, ...]
    owner: Owner
    started_at: str | None
    """When its owner started or found the last job; ISO 8601, UTC."""
    ended_at: str
    format_version: int = FORMAT_VERSION


R = TypeVar("R", Claim, Done)


def this_owner() -> Owner:
    """A new identity for this process."""
    return Owner(host=socket.gethostname(), pid=os.getpid(), uuid=uuid.uuid4().hex)


def schedule_folder(store: str, name: str) -> str:
    """Where a schedule's claims lie."""
    return storage.join(store, "schedules", name)


def unfinished(folder: str) -> list[str]:
    """Names of the ticks that were claimed and have no done record, oldest first."""
    names = {uri.rpartition("/")[2] for uri, _ in storage.list_files(folder)}
    claimed = (name.removesuffix(_CLAIM) for name in names if name.endswith(_CLAIM))
    return sorted(tick for tick in claimed if tick + _DONE not in names)


def read_claim(folder: str, tick: str) -> tuple[Claim, bytes] | None:
    """The claim on a tick, and its bytes as they stand, for the swap."""
    return _read(Claim, storage.join(folder, tick + _CLAIM))


def create_claim(folder: str, claim: Claim) -> bytes | None:
    """Claim a tick; the bytes that now stand, or None if it was claimed already."""
    data = record_bytes(claim)
    return data if storage.create_bytes(storage.join(folder, claim.tick + _CLAIM), data) else None


def swap_claim(folder: str, claim: Claim, expected: bytes) -> bytes | None:
    """Replace a claim that still stands as it was read; the bytes that now stand, or None if it does not."""
    data = record_bytes(claim)
    return data if storage.replace_bytes(storage.join(folder, claim.tick + _CLAIM), data, expected) else None


def read_done(folder: str, tick: str) -> Done | None:
    """How a tick ended; None while it has not."""
    found = _read(Done, storage.join(folder, tick + _DONE))
    return found[0] if found else None


def create_done(folder: str, done: Done) -> bool:
    """Record the end of a tick; False if that was recorded already."""
    return storage.create_bytes(storage.join(folder, done.tick + _DONE), record_bytes(done))


def _read(kind: type[R], uri: str) -> tuple[R, bytes] | None:
    return read_record(kind, uri, FORMAT_VERSION, remedy="delete it, and the tick will be done anew")
