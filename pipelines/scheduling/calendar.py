"""When a schedule is due: a cron expression in a time zone, and the wait for its next tick."""

import contextlib
import difflib
import os
import select
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from ddpm_core.errors import InputError

_NAME = "%Y%m%dT%H%M%SZ"
_FIELDS = "five fields: minute hour day-of-month month day-of-week, as in '0 3 * * *'"


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """A cron expression, read as Debian's cron does: daylight saving neither drops nor doubles a daily tick.

    Raises:
        InputError: one line, if the expression is none or never comes true, or the zone is unknown.
    """

    cron: str
    timezone: str

    def __post_init__(self) -> None:
        zones = available_timezones()
        if self.timezone not in zones:
            near = difflib.get_close_matches(self.timezone, sorted(zones), n=1, cutoff=0.0)[0]
            raise InputError(f"timezone is {self.timezone!r}; expected a name as Europe/Berlin; did you mean {near}?")
        if len(self.cron.split()) != 5:  # the parser would take a sixth, for seconds
            raise InputError(f"cron is {self.cron!r}; expected {_FIELDS}")
        try:
            next(CronSim(self.cron, datetime.now(self.zone)))
        except CronSimError as error:
            raise InputError(f"cron is {self.cron!r} ({str(error).lower()}); expected {_FIELDS}") from None
        except StopIteration:
            raise InputError(f"cron is {self.cron!r}, which never comes true; expected {_FIELDS}") from None

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which the expression is read."""
        return ZoneInfo(self.timezone)

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
        found = None
        for tick in self.after(moment - window):
            if tick > moment:
                break
            found = tick
        return found


def tick_name(tick: datetime) -> str:
    """20261123T030000Z."""
    return tick.astimezone(UTC).strftime(_NAME)


def parse_tick(name: str) -> datetime:
    """The tick of a name.

    Raises:
        InputError: if it is none.
    """
    return datetime.strptime(name, _NAME).replace(tzinfo=UTC)


def local_timezone() -> str:
    """This machine's zone by name: TZ, else what /etc/localtime points at, else UTC."""
    given = os.environ.get("TZ", "").removeprefix(":")
    linked = os.path.realpath("/etc/localtime").rpartition("/zoneinfo/")[2]
    known = available_timezones()
    return next((name for name in (given, linked) if name in known), "UTC")


@contextlib.contextmanager
def interruptible_sleep() -> Iterator[Callable[[float], str | None]]:
    """A sleep that SIGTERM and SIGINT end: it returns the signal's name, else None. A second signal acts as usual.

    The handlers do nothing but wake the sleep, so that no write to the store is ever cut in two.
    """
    told: list[str] = []
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def note(number: int, _: object) -> None:
        told.append(signal.Signals(number).name)
        for each in before:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)

    def sleep(seconds: float) -> str | None:
        if not told:
            select.select([reading], [], [], max(0.0, seconds))
            with contextlib.suppress(BlockingIOError):
                os.read(reading, 4096)  # other signals, as a child's end, wake it too
        return told[0] if told else None

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    waker = signal.set_wakeup_fd(writing)
    for number in before:
        signal.signal(number, note)
    try:
        yield sleep
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(waker)
        os.close(reading)
        os.close(writing)
