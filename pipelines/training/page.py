"""The page that shows how a run goes, written anew while it trains."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import HistoryRow
from ddpm_core.artifacts.looks import PROGRESS, Look, list_grids
from ddpm_core.training.ailments import TOO_FEW_STEPS, Verdict, judge
from ddpm_core.training.course import Course

_TRAINED = b">Trained<"
"""On the page of a run that has come to its end."""
_EVERY_S = 30.0
"""Between two writings of the page: its charts take a second of this machine."""


class ProgressPage:
    """Written by the run's driver, of what the workers tell.

    Args:
        course: of the run so far.
        steps: in all.
    """

    def __init__(self, run_uri: str, course: Course, steps: int) -> None:
        self.uri = storage.join(run_uri, PROGRESS)
        """Where it lies."""
        self._run_uri, self._course, self._steps = run_uri, course, steps
        self._grids: dict[int, bytes] = {}
        self._written, self._told = -math.inf, False

    def tell(self, rows: Sequence[HistoryRow], looks: Sequence[Look]) -> bool:
        """What was logged and seen; the page is written if the last time is long enough ago.

        Returns:
            whether it was the first time.
        """
        if not rows and not looks:
            return False
        by_step = {look.step: look for look in (*self._course.looks, *looks)}  # a resumed run comes by some again
        seen = [by_step[step] for step in sorted(by_step)]
        self._course = replace(self._course, looks=seen, history=[*self._course.history, *rows])
        if not looks or time.monotonic() - self._written < _EVERY_S:
            return False
        first, self._told = not self._told, True
        self.write(self._verdict(), refresh_s=int(_EVERY_S))
        return first

    def go_on(self) -> None:
        """Of a run that goes on, before its first look: what stands there says that it was stopped, or ended."""
        self.write(self._verdict(), refresh_s=int(_EVERY_S))

    def is_last(self) -> bool:
        """Whether the page stands that a run ended with."""
        return storage.exists(self.uri) and _TRAINED in storage.read_bytes(self.uri)

    def stop(self) -> None:
        """Say that the run was stopped before its end, if the page has been written."""
        if not math.isinf(self._written):
            self.write(self._verdict(), stopped=True)

    def _verdict(self) -> Verdict:
        """Under way; that there are more steps to come needs no saying."""
        verdict = judge(self._course)
        return replace(verdict, ailments=tuple(each for each in verdict.ailments if each.name != TOO_FEW_STEPS))

    def write(self, verdict: Verdict, *, refresh_s: int | None = None, stopped: bool = False) -> None:
        """Write the page.

        Args:
            refresh_s: after so many seconds it looks for a newer one; None: it is the last.
            stopped: before the last step.
        """
        from ddpm_core.evaluation.progress_page import (  # matplotlib, for a second
            Progress,
            chosen_steps,
            render_progress,
        )

        page = Progress(
            run=self._run_uri.rpartition("/")[2],
            step=self._step(),
            steps=self._steps,
            looks=self._course.looks,
            lines=verdict.lines,
            history=self._course.history,
            grids=self._shown(chosen_steps),
            refresh_s=refresh_s,
            written=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            stopped=stopped,
        )
        storage.write_bytes(self.uri, render_progress(page).encode())
        self._written = time.monotonic()

    def _step(self) -> int:
        """The last one of which something is known."""
        logged = (int(row["step"]) for row in self._course.history)
        return max((*(look.step for look in self._course.looks), *logged), default=0)

    def _shown(self, chosen: Callable[[list[int]], list[int]]) -> dict[int, bytes]:
        """The grids that the page shows, each read once."""
        uris = list_grids(self._run_uri)
        shown = chosen(sorted(uris))
        self._grids |= {step: storage.read_bytes(uris[step]) for step in shown if step not in self._grids}
        return {step: self._grids[step] for step in shown}
