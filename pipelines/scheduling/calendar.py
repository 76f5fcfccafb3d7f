"""When a schedule is due: a cron expression in a time zone."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from ddpm_core.errors import InputError, nearest

_NAME = "%Y%m%dT%H%M%SZ"
_FIELDS = "five fields: minute hour day-of-month month day-of-week, as in '0 3 * * *'"
_LOCALTIME = Path("/etc/localtime")
_LIMITS = {"minute": 59, "hour": 23, "day-of-month": 31, "month": 12, "day-of-week": 7}
_REPEATED = timedelta(hours=4)
"""More than any zone sets its clocks back by."""
_zones = cache(available_timezones)


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """A cron expression, read as Debian's cron does: daylight saving neither drops nor doubles a daily tick.

    Raises:
        InputError: one line, if the expression is none or never comes true, or the zone is unknown.
    """

    cron: str
    time_zone: str

    def __post_init__(self) -> None:
        if self.time_zone not in _zones():
            near = nearest(self.time_zone, _zones())
            of = " (this machine's TZ)" if self.time_zone == _given() else ""
            raise InputError(f"time-zone is {self.time_zone!r}{of}; expected a name as Europe/Berlin{near}")
        if len(self.cron.split()) != 5:  # the parser would take a sixth, for seconds
            raise InputError(f"cron is {self.cron!r}; expected {_FIELDS}")
        try:
            next(CronSim(self.cron, datetime.now(self.zone)))
        except (CronSimError, StopIteration) as error:
            why = str(error).lower() or "it never comes true"
            raise InputError(f"cron is {self.cron!r} ({why}); expected {_FIELDS}") from None

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which the expression is read."""
        return ZoneInfo(self.time_zone)

    @property
    def warning(self) -> str:
        """What may not be meant, in a line; empty if there is nothing."""
        for (name, limit), words in zip(_LIMITS.items(), self.cron.split(), strict=True):
            if any(int(step) > limit for step in re.findall(r"/(\d+)", words)):
                return f"cron has {words} for the {name}: a step beyond {limit} comes to the first {name} alone"
        return ""

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The ticks after a moment, in UTC, each later than the one before."""
        last = moment
        for tick in CronSim(self.cron, moment.astimezone(self.zone)):
            utc = tick.astimezone(UTC)
            if utc > last:  # asked within the hour that comes twice, the parser begins with a tick that is past
                last = utc
                yield utc

    def last(self, moment: datetime, window: timedelta) -> datetime | None:
        """The most recent tick in (moment - window, moment]."""
        later = moment + _REPEATED  # the parser, which knows no hour that comes twice, would pass over its first time
        ticks = (tick.astimezone(UTC) for tick in CronSim(self.cron, later.astimezone(self.zone), reverse=True))
        last = next((tick for tick in ticks if tick <= moment), None)
        return last if last and last > moment - window else None


def tick_name(tick: datetime) -> str:
    """20261123T030000Z."""
    return tick.astimezone(UTC).strftime(_NAME)


def parse_tick(name: str) -> datetime:
    """The tick of a name.

    Raises:
        InputError: if it is none.
    """
    return datetime.strptime(name, _NAME).replace(tzinfo=UTC)


def local_time_zone() -> str:
    """This machine's zone by name: TZ, be it one or not, else what /etc/localtime points at or is a copy of, else UTC."""
    linked = os.path.realpath(_LOCALTIME).rpartition("/zoneinfo/")[2]
    return _given() or (linked if linked in _zones() else None) or _copied() or "UTC"


def _given() -> str:
    """What TZ says, as a name or as a file of zoneinfo; empty if nothing."""
    return os.environ.get("TZ", "").removeprefix(":").rpartition("/zoneinfo/")[2]


def _copied() -> str | None:
    """The zone of which /etc/localtime is a copy, as in many images of containers; of equal ones that with a place's name."""
    if not _LOCALTIME.is_file():
        return None
    rules = _LOCALTIME.read_bytes()
    files = ((name, Path(folder) / name) for folder in TZPATH for name in _zones())
    equal = [name for name, path in files if path.is_file() and path.read_bytes() == rules]
    return min(equal, key=lambda name: ("/" not in name, name), default=None)
