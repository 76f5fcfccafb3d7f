"""How a schedule stands now, for a person and for a program."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pipelines.scheduling.calendar import parse_tick
from pipelines.scheduling.loop import utc_now
from pipelines.scheduling.records import Schedule, Schedules, Terms, Tick, said

_SOON = timedelta(minutes=2)
"""In which a `tick` a minute comes."""


@dataclass(frozen=True, kw_only=True)
class State:
    """How a schedule stands now."""

    schedule: Schedule
    last: Tick | None
    current: Tick | None
    next: datetime | None
    """None if it is paused."""
    waits_since: datetime | None
    """When the tick was due that nobody does."""

    @property
    def coming(self) -> str:
        """When it is due next."""
        return local(self.schedule, self.next) if self.next else "paused"

    @property
    def doing(self) -> str:
        """What is done now, or should be; empty if there is nothing to do."""
        if self.waits_since and utc_now() - self.waits_since > _SOON:
            due = local(self.schedule, self.waits_since)
            return f"due since {due}, and nobody came: neither `run` nor `tick` is at work"
        return f"at work on {local(self.schedule, parse_tick(self.current.due))}" if self.current else ""

    @property
    def told(self) -> dict[str, Any]:
        """For a program."""
        schedule, last = self.schedule, self.last
        return {
            "cron": schedule.cron,
            "time_zone": schedule.time_zone,
            "paused": schedule.paused,
            "next": said(self.next) if self.next else None,
            "waits_since": said(self.waits_since) if self.waits_since else None,
            "at_work": self.current.due if self.current and not self.waits_since else None,
            "last": {"due": last.due, "status": last.status} if last else None,
        }


def state_of(schedules: Schedules, name: str) -> State:
    """That of a schedule.

    Raises:
        InputError: in one line, if there is none of that name.
    """
    schedule, now = schedules.read(name), utc_now()
    standing, _ = schedules.standing(name, schedule)
    return State(
        schedule=schedule,
        last=standing.last,
        current=standing.current,
        next=None if schedule.paused else next(schedule.calendar.after(now)),
        waits_since=schedules.waits_since(name, schedule, now),
    )


def local(terms: Terms, moment: datetime) -> str:
    """A moment in the schedule's time zone."""
    return f"{moment.astimezone(terms.calendar.zone):%a %Y-%m-%d %H:%M %Z}"
