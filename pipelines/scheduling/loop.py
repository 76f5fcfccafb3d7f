"""The schedule stage: at every tick one command, started at least once, with one output, by however many schedulers.

A scheduler is one loop that waits for nothing but the clock: each round attends to every tick under watch whose time
has come. Of its own jobs it runs one at a time, the oldest tick first; what it has claimed and not yet started, it holds
by the lease. A tick that another scheduler holds stays under watch until it is done or its lease runs out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pipelines.scheduling.calendar import Calendar, tick_name
from pipelines.scheduling.claims import Done, read_claim, unfinished
from pipelines.scheduling.ticks import TickRunner, TickState, advance, release

_WAKE = timedelta(seconds=30)
"""The longest sleep; else a change of the clock would go unnoticed."""


@dataclass(kw_only=True)
class Scheduler:
    """The ticks under watch. `begin`, then `round` again and again; `release` at the end."""

    runner: TickRunner
    calendar: Calendar
    catch_up: timedelta = timedelta()
    """How old the most recent missed tick may be and still be done."""
    ticks: int | None = None
    """End after so many; None: never."""
    done: list[Done] = field(default_factory=list)
    """The ticks that ended while this scheduler watched them."""
    _watched: dict[str, TickState] = field(default_factory=dict)
    _upcoming: Iterator[datetime] = field(default_factory=lambda: iter(()))
    _next: datetime | None = None

    def begin(self) -> None:
        """Look back for claims that a scheduler left unfinished and for a missed tick, and ahead to the next."""
        now, folder = self.runner.now(), self.runner.folder
        for name in unfinished(folder):
            self._watch(name)
        missed = self.calendar.last(now, self.catch_up)
        if missed is not None and read_claim(folder, tick_name(missed)) is None:
            self._watch(tick_name(missed))
        self._upcoming = self.calendar.after(now)
        self._advance()

    def round(self) -> float | None:
        """Do what there is to do now, without waiting.

        Returns:
            seconds until the next round; None when all is done.
        """
        self._collect()
        for state in sorted(self._watched.values(), key=lambda each: each.tick):
            if state.look_at <= self.runner.now():
                self._attend(state)
        if not self._watched and self._next is None:
            return None
        now = self.runner.now()
        looks = [state.look_at for state in self._watched.values()] + ([self._next] if self._next else [])
        return max(0.0, (min([*looks, now + _WAKE]) - now).total_seconds())

    def release(self) -> None:
        """Let go of all that is held. Processes of this machine end, jobs of a cluster go on."""
        for state in self._watched.values():
            release(self.runner, state)

    def _attend(self, state: TickState) -> None:
        by, free = self.runner, all(each.job is None for each in self._watched.values())
        try:
            ended = advance(by, state, may_start=free)
        except (OSError, ValueError) as error:  # a store, registry or cluster out of reach: it may come back
            if str(error) != state.trouble:
                by.say(f"{state.tick}  {error}; trying again")
            state.trouble, state.look_at = str(error), by.retry_at()
            return
        state.trouble = ""
        if ended is not None:
            del self._watched[state.tick]
            self.done.append(ended)
            who = "" if ended.owner == by.me else f" by {ended.owner.host} (process {ended.owner.pid})"
            by.say(f"{ended.tick}  {ended.status}{who}, attempt {ended.attempt}: {ended.samples or ended.message}")

    def _collect(self) -> None:
        """Watch the ticks that have come; after a sleep of this machine, those older than a lease were missed."""
        now, come = self.runner.now(), []
        while self._next is not None and self._next <= now:
            come.append(self._next)
            self._advance()
        taken = [tick for tick in come if now - tick <= self.runner.lease]
        if not taken:
            taken = [tick for tick in come[-1:] if now - tick <= self.catch_up]
        missed = [tick_name(tick) for tick in come if tick not in taken]
        if missed:
            self.runner.say(f"missed while this scheduler slept: {missed[0]} to {missed[-1]}, {len(missed)} in all")
        for tick in taken:
            self._watch(tick_name(tick))

    def _advance(self) -> None:
        self._next = next(self._upcoming, None) if self.ticks != 0 else None
        if self.ticks and self._next is not None:
            self.ticks -= 1

    def _watch(self, tick: str) -> None:
        self._watched.setdefault(tick, TickState(tick=tick, look_at=self.runner.now()))


def utc_now() -> datetime:
    """The clock."""
    return datetime.now(UTC)


def run_scheduler(scheduler: Scheduler, sleep: Callable[[float], str | None]) -> str | None:
    """Run until all ticks are done, or until told to stop.

    Args:
        sleep: waits so many seconds; returns the name of the signal that says stop, if one came.

    Returns:
        that name, or None.
    """
    scheduler.begin()
    told = None
    try:
        while told is None and (pause := scheduler.round()) is not None:
            told = sleep(pause)
    finally:
        scheduler.release()
    return told
