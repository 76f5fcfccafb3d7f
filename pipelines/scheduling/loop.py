"""Passes over schedules, once or again and again: each in a thread of its own, so that none waits for another's job."""

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import platformdirs

from ddpm_core.errors import UserError
from pipelines.scheduling.history import log_ticks
from pipelines.scheduling.jobs import open_launcher, ray_address
from pipelines.scheduling.records import Schedules, Tick
from pipelines.scheduling.resolve import pin
from pipelines.scheduling.tick import Stopped, Ticker

AT_ONCE = 64
"""Schedules that have a job under way."""
_WAKE_S = 30.0
"""The longest sleep between two looks: schedules may be added, and the clock may be set."""


@dataclass(frozen=True)
class Passed:
    """What came of a pass."""

    ended: list[Tick]
    wrong: bool
    """Whether something went wrong beside a job; it was said."""


def passing(
    schedules: Schedules, told: threading.Event, do: Callable[[Ticker, str], list[Tick]]
) -> Callable[[str], Passed]:
    """What passes over a schedule by its name, on the cluster that the environment names, or here.

    Args:
        told: set once this job is to stop.
        do: do_due or do_now.

    Raises:
        InputError: if no cluster answers there.
    """
    latest: dict[str, str] = {}

    def say(line: str) -> None:
        """Once: of a store that is away, or a schedule that another is at, the same is said at each pass."""
        name = line.partition("  ")[0]
        if latest.get(name) != line:
            print(line, flush=True)
        latest[name] = line

    ticker = Ticker(
        schedules=schedules,
        launch=open_launcher(ray_address(), Path(platformdirs.user_log_dir("ddpm")) / "schedules", schedules.store),
        pin=partial(pin, schedules.store),
        now=utc_now,
        wait=told.wait,
        say=say,
    )

    def pass_over(name: str) -> Passed:
        ended: list[Tick] = []
        try:
            ended = do(ticker, name)
            if ended:
                log_ticks(schedules.store, name, schedules)
        except Stopped:
            ticker.say(f"{name}  let go of; the next pass goes on")
        except (UserError, OSError) as error:  # a store, registry or cluster that is away may come back
            ticker.say(f"{name}  {error}")
            return Passed(ended, wrong=True)
        return Passed(ended, wrong=False)

    return pass_over


def keep_passing(
    pass_over: Callable[[str], Passed],
    names: Callable[[], Iterable[str]],
    schedules: Schedules,
    told: threading.Event,
) -> Counter[str]:
    """Pass over all of these until told to stop; how the ticks ended."""
    at_work, counts = dict[str, Future[Passed]](), Counter[str]()

    def count(future: Future[Passed]) -> None:
        counts.update(tick.status for tick in future.result().ended)

    def look() -> float:
        for name in names():
            if name in at_work and at_work[name].done():
                count(at_work.pop(name))
            if name not in at_work:
                at_work[name] = pool.submit(pass_over, name)
        return _until_next(names(), schedules)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            while not told.is_set():
                try:
                    told.wait(look())
                except (UserError, OSError) as error:  # the store may come back
                    print(error, flush=True)
                    told.wait(_WAKE_S)
        finally:
            told.set()  # whatever ended this, jobs of this machine end with it
    for future in at_work.values():
        count(future)
    return counts


def _until_next(names: Iterable[str], schedules: Schedules) -> float:
    """Seconds to the next tick of any of them."""
    now = utc_now()
    nexts = (next(schedules.read(name).calendar.after(now)) for name in names)
    return max(0.1, min([*((each - now).total_seconds() for each in nexts), _WAKE_S]))


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """Set by SIGTERM and SIGINT, so that no write to the store is ever cut in two; a second signal acts as usual."""
    told = threading.Event()

    def note(number: int, _: object) -> None:
        told.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def utc_now() -> datetime:
    """The clock."""
    return datetime.now(UTC)
