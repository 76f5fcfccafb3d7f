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
from ddpm_core.errors import HeldError, UserError
from pipelines.scheduling.calendar import parse_tick, tick_name
from pipelines.scheduling.jobs import Launcher
from pipelines.scheduling.records import Schedule, Schedules, Standing, Tick, said, when

LATE = timedelta(minutes=10)
"""A tick that is older was missed: nobody was there."""
_SET_BACK = timedelta(hours=1)
"""A clock that stands so far before what was handled was set back."""
_POLL_S, _BACK_OFF_S = 1.0, 30.0
_MISTAKE = 2
"""The exit code of a command that refuses what it was asked: it would refuse it again."""


class Stopped(UserError):
    """This job was told to stop."""


@dataclass(frozen=True, kw_only=True)
class Ticker:
    """What a pass works with."""

    schedules: Schedules
    launch: Launcher
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
    standing, _ = by.schedules.standing(name, schedule)
    if schedule.paused or not (standing.current or _set_back(standing, now) or _due(schedule, standing, now)):
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
        standing, _ = by.schedules.standing(name, schedule)
        ended = [] if standing.current is None else [_see_through(by, name, schedule, held)]
        before = by.schedules.standing(name, schedule)  # so another's tick, begun while this waits, is not lost
        _begin(by, name, schedule, _free_minute(by, name), *before)
        return [*ended, _see_through(by, name, schedule, held)]


def _free_minute(by: Ticker, name: str) -> datetime:
    """This minute, or the next if a tick of this one is done: seeds are a minute's, and the same ones would be the same images."""
    while by.schedules.ended(name, due := by.now().replace(second=0, microsecond=0)):
        left = 60 - by.now().timestamp() % 60
        by.say(f"{name}  waits {left:.0f} s for the next minute, of which its seeds are: this one's images are made")
        _wait(by, left)
    return due


def _next_due(by: Ticker, name: str, schedule: Schedule, held: Any) -> list[Tick]:
    ended: list[Tick] = []
    while True:
        (standing, stands), now = by.schedules.standing(name, schedule), by.now()
        if standing.current is not None:
            return [*ended, _see_through(by, name, schedule, held)]
        if _set_back(standing, now):
            by.say(f"{name}  the clock was set back, from {standing.handled} or later: it goes on from {said(now)}")
            schedule = by.schedules.change(name, since=said(min(now, when(schedule.since))))
            by.schedules.stand(name, replace(standing, handled=schedule.since), stands)
            continue
        if (due := _due(schedule, standing, now)) is None:
            return ended
        standing = replace(standing, handled=said(due))
        if by.schedules.ended(name, due) is not None:  # before the clock was set back: it is not done again
            by.schedules.stand(name, standing, stands)
        elif why := _left_out(schedule, standing, due, now):
            skipped = Tick(due=tick_name(due), status="skipped", message=why, ended_at=said(now))
            ended.append(_record(by, name, skipped, standing, stands))
        else:
            _begin(by, name, schedule, due, standing, stands)


def _set_back(standing: Standing, now: datetime) -> bool:
    """Whether the clock was: else nothing would be due until it is there again."""
    return when(standing.handled) > now + _SET_BACK


def _due(schedule: Schedule, standing: Standing, now: datetime) -> datetime | None:
    """The last tick that came and was not handled: those before it are passed over."""
    return schedule.calendar.last(now, now - when(standing.handled))


def _left_out(schedule: Schedule, standing: Standing, due: datetime, now: datetime) -> str:
    """Why it is; empty if it is not."""
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
        standing, stands = by.schedules.standing(name, schedule)
        tick = standing.current
        held.check()
        if tick is None:
            raise HeldError(f"schedule {name} was taken over by another job, which has ended its tick")
        recorded = by.schedules.ended(name, parse_tick(tick.due))  # by one that was killed, or cut off, right after it
        tried = recorded or _follow(by, name, tick, held)
        if recorded or tried.exit_code in (0, _MISTAKE) or tick.attempt > schedule.retries:
            return _record(by, name, tried, replace(standing, last=tried, current=None), stands)
        attempt, pause = tick.attempt + 1, _BACK_OFF_S * 2 ** (tick.attempt - 1)
        again = replace(tick, attempt=attempt, submission_id=f"{name}-{tick.due}-{attempt}")
        by.schedules.stand(name, replace(standing, current=again), stands)
        why = f"exit code {tried.exit_code}: {tried.message}"
        by.say(f"{name}  {tick.due} failed ({why}); started again in {pause:.0f} s")
        _wait(by, pause)


def _follow(by: Ticker, name: str, tick: Tick, held: Any) -> Tick:
    """The tick, with how its job ended."""

    def wait() -> None:
        _wait(by, _POLL_S)
        held.check()

    result = by.launch(
        tick.submission_id,
        tick.command,
        started=lambda log: by.say(f"{name}  {tick.due} started as {tick.submission_id}; log: {log}"),
        wait=wait,
    )
    tried = replace(tick, exit_code=result.exit_code, log=result.log, ended_at=said(by.now()))
    if result.exit_code == 0:
        return replace(tried, status="succeeded", made=result.made)
    return replace(tried, status="failed", message=result.last_line)


def _wait(by: Ticker, seconds: float) -> None:
    if by.wait(seconds):
        raise Stopped("let go of; the next pass goes on")


def _record(by: Ticker, name: str, tick: Tick, standing: Standing, stands: bytes | None) -> Tick:
    """How a tick ended; its record comes first, for what has one is never begun again."""
    by.schedules.end(name, tick)
    by.schedules.stand(name, standing, stands)
    by.say(f"{name}  {tick.due} {tick.status}: {tick.outcome or 'nothing made'}")
    return tick
