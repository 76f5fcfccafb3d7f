"""What a schedule says, where it stands, and what came of it: JSON in the store, changed by compare-and-swap.

<store>/schedules/defined/NAME.json        what a person said
<store>/schedules/standing/NAME/           how far it has come, and who is at it (`hold`)
<store>/schedules/ticks/NAME/MONTH/        a tick a file, once it has ended
"""

import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from ddpm_core import storage
from ddpm_core.artifacts.records import read_record, record_bytes
from ddpm_core.artifacts.run_record import PATIENCE_S, RECORD
from ddpm_core.artifacts.run_record import read_record as read_holder
from ddpm_core.errors import HeldError, InputError, nearest
from pipelines.scheduling.calendar import Calendar, parse_tick, tick_name

FORMAT_VERSION = 1
_SHOWN = timedelta(days=730)
"""So far back the last ticks are looked for, a month at a time."""
_REMEDY = "delete it, and it will be made anew"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """When, and what, as a person says it."""

    cron: str
    time_zone: str
    command: tuple[str, ...]
    """As typed; what else decides its output is added at each tick."""
    missed: Literal["last", "skip"] = "last"
    """Of ticks at which nobody was there: the last one is done, however late; or none."""
    overlap: Literal["wait", "skip"] = "wait"
    """A tick at which the one before is still at work waits, the last of several alone; or is left out."""
    retries: int = 2
    """How often a failed job is started again."""

    @property
    def calendar(self) -> Calendar:
        """When.

        Raises:
            InputError: one line, if the cron expression or the time zone is none.
        """
        return Calendar(cron=self.cron, time_zone=self.time_zone)


@dataclass(frozen=True, kw_only=True)
class Schedule(Terms):
    """What a schedule says."""

    since: str
    """Ticks after this moment count; ISO 8601, UTC."""
    paused: bool = False
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One time at which a schedule was due."""

    due: str
    """Its name: 20261123T030000Z."""
    command: tuple[str, ...] = ()
    """Complete; decided once, when it was begun."""
    submission_id: str = ""
    """Of the job of its last attempt."""
    attempt: int = 1
    by: str = ""
    """Who began it."""
    started_at: str = ""
    ended_at: str = ""
    status: Literal["at work", "succeeded", "failed", "skipped"] = "at work"
    exit_code: int | None = None
    """None if there was no job, or it was lost with its cluster or stopped by someone."""
    message: str = ""
    """Why it failed or was skipped: the last line of the job's output."""
    made: dict[str, Any] = field(default_factory=dict)
    """The last line of the job's output, where that is a JSON object."""
    log: str = ""
    """Where its output lies."""
    format_version: int = FORMAT_VERSION

    @property
    def seconds(self) -> float | None:
        """From its start to its end."""
        if not (self.started_at and self.ended_at):
            return None
        return (when(self.ended_at) - when(self.started_at)).total_seconds()

    @property
    def outcome(self) -> str:
        """Where its images lie, or why there are none; empty if it did not say."""
        return str(self.made.get("samples") or self.message)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a schedule has come."""

    handled: str
    """Ticks up to this moment have been seen to; ISO 8601, UTC."""
    last: Tick | None = None
    """The last job that ended: what came due before that came while it was at work."""
    current: Tick | None = None
    """The tick that was begun and has not ended."""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Schedules:
    """Those of a store."""

    store: str

    def names(self) -> list[str]:
        """In their order."""
        found = (uri.rpartition("/")[2] for uri, _ in storage.list_files(self._at("defined")))
        return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))

    def read(self, name: str) -> Schedule:
        """What a schedule says.

        Raises:
            InputError: in one line, if there is none of that name.
        """
        return self._read(name)[0]

    def create(self, name: str, schedule: Schedule) -> None:
        """A new one.

        Raises:
            InputError: if there is one of that name.
        """
        if not storage.create_bytes(self._defined(name), record_bytes(schedule)):
            raise InputError(f"there is a schedule {name} already; expected another name, or `remove {name}` first")

    def change(self, name: str, **fields: Any) -> Schedule:
        """Change what it says; returns that."""
        while True:
            schedule, stands = self._read(name)
            changed = replace(schedule, **fields)
            if changed == schedule or storage.replace_bytes(self._defined(name), record_bytes(changed), stands):
                return changed

    def remove(self, name: str) -> None:
        """Forget it; what its ticks made, and their records, stay."""
        storage.delete(self._defined(name))
        for uri, _ in storage.list_files(self.folder(name)):
            storage.delete(uri)

    def folder(self, name: str) -> str:
        """Which a job holds while it is at the schedule's ticks."""
        return self._at("standing", name)

    def standing(self, name: str, schedule: Schedule) -> tuple[Standing, bytes | None]:
        """How far it has come, and the bytes that say so, for `stand`; None where nothing says so yet."""
        found = read_record(Standing, self._standing(name), FORMAT_VERSION, remedy=_REMEDY)
        standing, stands = found or (Standing(handled=schedule.since), None)
        return replace(standing, handled=max(standing.handled, schedule.since, key=when)), stands

    def stand(self, name: str, now: Standing, before: bytes | None) -> None:
        """Say how far it has come.

        Raises:
            HeldError: if it does not stand any more as it was read.
        """
        uri, data = self._standing(name), record_bytes(now)
        if not (storage.create_bytes(uri, data) if before is None else storage.replace_bytes(uri, data, before)):
            raise HeldError(f"schedule {name} was taken over by another job, which goes on with it")

    def _is_held(self, name: str) -> bool:
        """Whether somebody is at it, as far as the record tells, which a holder changes all the while."""
        record = read_holder(self.folder(name))
        changed_s = (entry.changed_s for entry in storage.walk(self.folder(name)) if entry.name == RECORD)
        return bool(record and record.holder) and time.time() - max(changed_s, default=0) < 2 * PATIENCE_S

    def waits_since(self, name: str, schedule: Schedule, now: datetime) -> datetime | None:
        """Since when there is a tick to do that nobody does; None if there is none, or somebody is at it."""
        if schedule.paused or self._is_held(name):
            return None
        standing, _ = self.standing(name, schedule)
        if standing.current is not None:  # its job, and who started it, were killed
            return parse_tick(standing.current.due)
        first = next(schedule.calendar.after(when(standing.handled)))
        return first if first <= now else None

    def end(self, name: str, tick: Tick) -> None:
        """Record how a tick ended; what is recorded already stays."""
        storage.create_bytes(self._tick(name, tick.due), record_bytes(tick))

    def ended(self, name: str, due: datetime) -> Tick | None:
        """How a tick ended; None if it has not."""
        found = read_record(Tick, self._tick(name, tick_name(due)), FORMAT_VERSION, remedy=_REMEDY)
        return found[0] if found else None

    def history(self, name: str, count: int = 20) -> list[Tick]:
        """The last ticks that have ended, the latest first."""
        standing, _ = self.standing(name, self.read(name))
        by_hand = [parse_tick(standing.last.due)] if standing.last else []  # may be later than any tick of the calendar
        month = newest = max([when(standing.handled), *by_hand])
        uris: list[str] = []
        while len(uris) < count and newest - month < _SHOWN:
            uris += [uri for uri, _ in reversed(storage.list_files(self._at("ticks", name, f"{month:%Y%m}")))]
            month = month.replace(day=1) - timedelta(days=1)
        found = (read_record(Tick, uri, FORMAT_VERSION, remedy=_REMEDY) for uri in uris[:count])
        return [each[0] for each in found if each]

    def _read(self, name: str) -> tuple[Schedule, bytes]:
        found = read_record(Schedule, self._defined(name), FORMAT_VERSION, remedy="remove it, and add it anew")
        if found is None:
            there = self.names()
            known = f"there are {', '.join(there)}{nearest(name, there)}" if there else "there is none: `add` one first"
            raise InputError(f"no schedule {name} in {self.store}; {known}")
        return found

    def _defined(self, name: str) -> str:
        return self._at("defined", f"{name}.json")

    def _standing(self, name: str) -> str:
        return storage.join(self.folder(name), "standing.json")

    def _tick(self, name: str, due: str) -> str:
        return self._at("ticks", name, due[:6], f"{due}.json")

    def _at(self, *parts: str) -> str:
        return storage.join(self.store, "schedules", *parts)


def said(moment: datetime) -> str:
    """As records say it."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def when(words: str) -> datetime:
    """The moment that a record says."""
    return datetime.fromisoformat(words)
