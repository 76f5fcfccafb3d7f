"""One pass over a schedule: what is due is begun, followed to its end, and recorded, by whoever holds the schedule's folder.

Any number of jobs may try at once, on any machines: one holds it, the others leave it alone. Whatever dies, the next pass finds
in the record what was begun, with all that decides its output, and goes on with that. So a tick is started at least once, and
what it makes, it makes once: a command that is done twice finds its images there.
"""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ddpm_core.artifacts.run_record import hold, read_record
from ddpm_core.errors import HeldError
from pipelines.scheduling.calendar import parse_tick, tick_name
from pipelines.scheduling.jobs import JobResult, Launcher
from pipelines.scheduling.records import Schedule, Schedules, Standing, Tick, said, when

LATE = timedelta(minutes=10)
"""A tick that is older was missed: nobody was there."""
_SET_BACK = timedelta(hours=1)
"""A clock that stands so far before what was handled was set back."""
_SECOND, _YEAR = timedelta(seconds=1), timedelta(days=366)
_POLL_S, _BACK_OFF_S = 1.0, 30.0
_MISTAKE = 2
"""The exit code of a command that refuses what it was asked: it would refuse it again."""


class Stopped(BaseException):
    """This job was told to stop: it lets go, and the next pass goes on."""


@dataclass(frozen=True, kw_only=True)
class Ticker:
    """What a pass works with."""

    schedules: Schedules
    launcher: Launcher
    pin: Callable[[Sequence[str], datetime], tuple[str, ...]]
    """The command of a tick, complete; asked once, when the tick is begun."""
    now: Callable[[], datetime]
    wait: Callable[[float], bool]
    """Waits so many seconds, or less if this job is told to stop: then it returns True."""
    say: Callable[[str], None]
    hold: Callable[..., AbstractContextManager[Any]] = hold


def do_due(by: Ticker, name: str) -> list[Tick]:
    """Do what is due, one job at most, unless somebody is at it.

    Returns:
        The ticks that have ended in this pass.

    Raises:
        OSError: if the store, the registry or the cluster is out of reach; the next pass goes on.
        InputError: if the model is not there, or a record cannot be read.
    """
    schedule, now = by.schedules.read(name), by.now()
    standing, _ = _standing(by, name, schedule)
    nothing = standing.current is None and not _set_back(standing, now) and _due(schedule, standing, now) is None
    if schedule.paused or nothing:
        return []
    try:
        with by.hold(by.schedules.folder(name), say=lambda line: None) as held:
            return _next_due(by, name, schedule, held)
    except HeldError as error:
        record = read_record(by.schedules.folder(name))
        by.say(f"{name}  left alone: {f'{record.holder} is at it' if record and record.holder else error}")
        return []


def do_now(by: Ticker, name: str) -> list[Tick]:
    """Do it now, whenever it is due; first what was begun and has not ended.

    Raises:
        HeldError: if somebody is at it.
        OSError, InputError: as do_due.
    """
    schedule = by.schedules.read(name)
    with by.hold(by.schedules.folder(name), say=lambda line: None) as held:
        standing, _ = _standing(by, name, schedule)
        ended = [] if standing.current is None else [_see_through(by, name, schedule, held)]
        standing, stands = _standing(by, name, schedule)
        _begin(by, name, schedule, by.now(), standing, stands)
        return [*ended, _see_through(by, name, schedule, held)]


def _next_due(by: Ticker, name: str, schedule: Schedule, held: Any) -> list[Tick]:
    ended: list[Tick] = []
    while True:
        (standing, stands), now = _standing(by, name, schedule), by.now()
        if standing.current is not None:
            return [*ended, _see_through(by, name, schedule, held)]
        if _set_back(standing, now):
            by.say(f"{name}  the clock was set back, from {standing.handled} or later: it goes on from {said(now)}")
            schedule = by.schedules.change(name, since=said(min(now, when(schedule.since))))
            last = schedule.calendar.last(now, _YEAR)  # if it has no record, it is due
            handled = now if last is None else max(last - _SECOND, when(schedule.since))
            by.schedules.stand(name, replace(standing, handled=said(handled)), stands)
        elif (due := _due(schedule, standing, now)) is None:
            return ended
        elif by.schedules.ended(name, due) is not None:  # before the clock was set back
            by.schedules.stand(name, replace(standing, handled=said(due)), stands)
        elif why := _left_out(schedule, standing, due, now):
            skipped = Tick(due=tick_name(due), status="skipped", message=why, ended_at=said(now))
            by.schedules.end(name, skipped)
            by.schedules.stand(name, replace(standing, handled=said(due)), stands)
            by.say(f"{name}  {skipped.due} skipped: {why}")
            ended.append(skipped)
        else:
            _begin(by, name, schedule, due, replace(standing, handled=said(due)), stands)


def _standing(by: Ticker, name: str, schedule: Schedule) -> tuple[Standing, bytes | None]:
    standing, stands = by.schedules.standing(name, Standing(handled=schedule.since))
    return replace(standing, handled=max(standing.handled, schedule.since, key=when)), stands


def _set_back(standing: Standing, now: datetime) -> bool:
    """Whether the clock was: else nothing would be due until it is there again."""
    return when(standing.handled) > now + _SET_BACK


def _due(schedule: Schedule, standing: Standing, now: datetime) -> datetime | None:
    """The last tick that came and was not handled: those before it are passed over."""
    handled = when(standing.handled)
    return schedule.calendar.last(now, now - handled) if handled < now else None


def _left_out(schedule: Schedule, standing: Standing, due: datetime, now: datetime) -> str:
    if standing.last is not None and due <= when(standing.last.ended_at):
        return "the one before was still at work" if schedule.overlap == "skip" else ""
    return "missed: nobody was there in time" if schedule.missed == "skip" and now - due > LATE else ""


def _begin(by: Ticker, name: str, schedule: Schedule, due: datetime, standing: Standing, stands: bytes | None) -> None:
    """From here on it is done with this command, by whomever."""
    tick = Tick(
        due=tick_name(due),
        command=by.pin(schedule.command, due),
        submission_id=f"{name}-{tick_name(due)}-1",
        by=f"process {os.getpid()} on {socket.gethostname()}",
        started_at=said(by.now()),
    )
    by.schedules.stand(name, replace(standing, current=tick), stands)


def _see_through(by: Ticker, name: str, schedule: Schedule, held: Any) -> Tick:
    """Follow the current tick to its end, starting its job where none runs."""
    while True:
        standing, stands = _standing(by, name, schedule)
        tick = standing.current
        held.check()
        if tick is None:
            raise HeldError(f"schedule {name} was taken over by another job, which has ended its tick")
        recorded = by.schedules.ended(name, parse_tick(tick.due))
        if recorded is not None:  # by one that was killed, or cut off, right after it
            by.schedules.stand(name, replace(standing, last=recorded, current=None), stands)
            return recorded
        job = by.launcher.find(tick.submission_id)
        if job is None:
            job = by.launcher.start(tick.submission_id, tick.command)
            by.say(f"{name}  {tick.due} started as {tick.submission_id}; log: {job.log}")
        try:
            while (result := job.poll()) is None:
                if by.wait(_POLL_S):
                    raise Stopped
                held.check()
        except BaseException:
            job.leave()
            raise
        if result.exit_code in (0, _MISTAKE) or tick.attempt > schedule.retries:
            ended = _ended(tick, result, job.log, by.now())
            by.schedules.end(name, ended)  # first: what is recorded is never begun again
            by.schedules.stand(name, replace(standing, last=ended, current=None), stands)
            by.say(f"{name}  {tick.due} {ended.status}: {ended.made.get('samples') or ended.message or 'nothing made'}")
            return ended
        attempt = tick.attempt + 1
        again = replace(tick, attempt=attempt, submission_id=f"{name}-{tick.due}-{attempt}")
        by.schedules.stand(name, replace(standing, current=again), stands)
        pause = _BACK_OFF_S * 2 ** (tick.attempt - 1)
        by.say(f"{name}  {tick.due} failed ({_why(result)}); started again in {pause:.0f} s")
        if by.wait(pause):
            raise Stopped


def _ended(tick: Tick, result: JobResult, log: str, now: datetime) -> Tick:
    failed = result.exit_code != 0
    return replace(
        tick,
        status="failed" if failed else "succeeded",
        exit_code=result.exit_code,
        message=result.last_line if failed else "",
        made={} if failed else result.made,
        log=log,
        ended_at=said(now),
    )


def _why(result: JobResult) -> str:
    return f"exit code {result.exit_code}: {result.last_line}"
