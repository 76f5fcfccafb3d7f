"""What a command says while it runs: one progress bar on a terminal; plain lines, now and then, elsewhere."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from pipelines.metrics import WORK_LEFT, Gauges

_PLAIN_EVERY_S = 15.0
SPANS = (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0))


class Progress:
    """A count that grows to a total, with a few figures beside it."""

    def __init__(self, what: str, total: int, unit: str, initial: int = 0) -> None:
        self._what, self._total, self._unit = what, total, unit
        self.count = initial
        """So many are done."""
        self._began = self._told = time.monotonic()
        self._metrics: dict[str, str] = {}
        self._first: tuple[float, int] | None = None
        self._bar = (
            tqdm(total=total, initial=initial, desc=what, unit=unit, leave=False, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._gauges = Gauges(work=what, unit=unit)
        self._gauges.set(WORK_LEFT, total - initial)

    def set(self, count: int, **metrics: str) -> None:
        """Show that `count` of the total are done, and the latest figures; those of before, if there are none."""
        self._metrics, now = metrics or self._metrics, time.monotonic()
        if self._first is None and count > self.count:
            self._first = (now, count)
        if self._bar is not None:
            self._bar.set_postfix(self._metrics, refresh=False)
            self._bar.update(count - self._bar.n)
        elif now - self._told > _PLAIN_EVERY_S and count != self.count:
            self._told = now
            told = [f"{count:,} of {self._total:,} {self._unit}s", *self._left(now, count)]
            told += [f"{name} {value}" for name, value in self._metrics.items()]
            print(f"{self._what}: {', '.join(told)}", file=sys.stderr)
        self.count = count
        self._gauges.set(WORK_LEFT, self._total - count)

    def beat(self, doing: str = "") -> None:
        """Show that it goes on while nothing more is done: the time that passes, and what is done meanwhile."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(doing or self._bar.postfix or "")
        elif now - self._told > _PLAIN_EVERY_S:
            self._told = now
            told = [f"{self.count:,} of {self._total:,} {self._unit}s", *filter(None, [doing])]
            print(f"{self._what}: {', '.join(told)}, {now - self._began:.0f} s so far", file=sys.stderr)

    def _left(self, now: float, count: int) -> list[str]:
        """How long it still takes, once some time has told how fast it goes; what went before the first is no part of it."""
        began, first = self._first or (now, count)
        if now - began < _PLAIN_EVERY_S or count <= first or count >= self._total:
            return []
        return [f"{span((self._total - count) * (now - began) / (count - first))} left"]

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        say(line)

    def close(self) -> None:
        """Take the bar away."""
        self._gauges.close()
        if self._bar is not None:
            self._bar.close()


def counted(number: int, what: str) -> str:
    """1 worker, 2 workers."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def span(seconds: float) -> str:
    """In the largest unit of which there are two or more."""
    for unit, length in SPANS:
        if seconds >= 2 * length:
            return f"{short(seconds / length)} {unit}"
    return f"{seconds:.0f} seconds"


def short(value: float) -> str:
    """A number to two digits, or whole."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def say(line: str) -> None:
    """A line that stays, above the bar if there is one."""
    tqdm.write(shown(line), file=sys.stderr)


def shown(said: str) -> str:
    """What is said, as anyone may read it: without the passwords that addresses in it may carry."""
    return re.sub(r"([^\s/@:]*):[^\s/]+@", r"\1:***@", said)


@contextmanager
def progress(what: str, total: int, unit: str, initial: int = 0) -> Iterator[Progress]:
    """A progress display for the time of a block."""
    shown = Progress(what, total, unit, initial)
    try:
        yield shown
    finally:
        shown.close()
