"""Passes over schedules, once or again and again: each in a thread of its own, so that none waits for another's job."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import platformdirs

from ddpm_core.errors import UserError
from pipelines.scheduling.history import log_ticks
from pipelines.scheduling.jobs import open_launcher, ray_address
from pipelines.scheduling.records import Schedules, Tick
from pipelines.scheduling.resolve import pin
from pipelines.scheduling.tick import Ticker

AT_ONCE = 64
"""Schedules that have a job under way."""
_LOOK_S = 30.0
"""From one look to the next: at each whole minute, when ticks are due, and between, for schedules may be added."""


@dataclass(frozen=True)
class Passed:
    """What came of a pass."""

    ended: list[Tick]
    wrong: bool
    """Whether it was told to stop, or something went wrong beside a job; it was said."""


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
        launch=open_launcher(ray_address(), platformdirs.user_log_path("ddpm") / "schedules", schedules.store),
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
        except (UserError, OSError) as error:  # a store, registry or cluster that is away may come back
            ticker.say(f"{name}  {error}")
            return Passed(ended, wrong=True)
        return Passed(ended, wrong=False)

    return pass_over


def keep_passing(
    pass_over: Callable[[str], Passed], names: Callable[[], list[str]], told: threading.Event
) -> Iterator[Passed]:
    """Pass over all of these until told to stop; what came of each pass, once it has ended."""
    at_work: dict[str, Future[Passed]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            while not told.is_set():
                try:
                    at_work |= {name: pool.submit(pass_over, name) for name in names() if name not in at_work}
                except (UserError, OSError) as error:  # the store may come back
                    print(error, flush=True)
                told.wait(max(0.1, _LOOK_S - time.time() % _LOOK_S))
                for name in [name for name, future in at_work.items() if future.done()]:
                    yield at_work.pop(name).result()
        finally:
            told.set()  # whatever ended this, jobs of this machine end with it
    yield from (future.result() for future in at_work.values())


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """Set by SIGTERM and SIGINT, so that no write to the store is ever cut in two; a second signal acts as usual."""
    told = threading.Event()
    with ExitStack() as before:

        def note(number: int, _: object) -> None:
            told.set()
            before.close()

        for number in (signal.SIGTERM, signal.SIGINT):
            before.callback(signal.signal, number, signal.signal(number, note))
        yield told


def utc_now() -> datetime:
    """The clock."""
    return datetime.now(UTC)
