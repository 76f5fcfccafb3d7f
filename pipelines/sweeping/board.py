"""What is seen of a sweep while it runs: one table on a terminal, plain lines elsewhere; and each trial as a run in MLflow."""

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ddpm_core.evaluation.figures import number
from ddpm_core.training.config import TrainConfig
from pipelines.progress import say, span
from pipelines.sweeping.record import Trial, TrialResult
from pipelines.sweeping.setting import Setting, words_of
from pipelines.tracking import RunHandle, Tracker

_LINES = 24
_PLAIN_EVERY_S = 30.0
_AT_WORK = "at work"


@dataclass
class _Row:
    """A trial, as it is shown."""

    number: int
    words: str
    seed: int
    state: str = "waits"
    step: int = 0
    rung: int = 0
    figure: float | None = None
    images_per_s: float | None = None
    touched: float = field(default_factory=time.monotonic)


class Board:
    """Shows trials, and logs them. Used as a context: runs in MLflow that it began end with it.

    Args:
        settings: in the order that gives trials their numbers; it grows where settings are proposed.
        train: of the recipe; trials of other seeds are repeats, and of trials of other batch sizes steps are shown as of its own.
        metric: what ranks.
        steps_in_all: that all trials train, by which the time left is told; 0 if nothing is trained.
    """

    def __init__(
        self,
        settings: list[Setting],
        train: TrainConfig,
        metric: str,
        steps_in_all: int,
        tracker: Tracker,
        parent: RunHandle,
    ) -> None:
        self._settings, self._metric, self._steps_in_all = settings, metric, steps_in_all
        self._seed, self._batch_size = train.seed, train.batch_size
        self._tracker, self._parent = tracker, parent
        self._rows: dict[str, _Row] = {}
        self._runs: dict[str, RunHandle] = {}
        self._said: set[tuple[str, int]] = set()
        self._stack = ExitStack()
        self._began = self._told = time.monotonic()
        self._steps_done = 0
        self._phase = "trials"
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        for name, run in self._runs.items():
            if self._rows[name].state in ("failed", "lost"):
                run.end("FAILED")

    def known(self, results: list[TrialResult]) -> None:
        """What an earlier job of the sweep found; it may have been killed before it told MLflow, or ended its runs."""
        for result in results:
            self._note(result)
            self._log(result)

    def enter(self, phase: str) -> None:
        """What is done from now on, in words; from any thread."""
        self._phase = phase

    def tell(self, trial: Trial, kind: str, what: Any) -> None:
        """What happens to a trial."""
        row = self._row(trial)
        row.touched = time.monotonic()
        if kind == "started":
            row.state, row.rung = _AT_WORK, what
            self._run(trial)
        elif kind == "logged":
            step = int(what["images_seen"]) // self._batch_size
            self._steps_done += step - row.step
            row.step, row.images_per_s = step, what["images_per_s"]
            shown = {key: value for key, value in what.items() if key != "images_seen"}
            self._run(trial).log_metrics([{**shown, "step": step}])
        elif kind == "result" and (trial.name, what.step) in self._said:
            pass  # asha and proposals come upon what is on record
        elif kind == "result":
            self._note(what)
            self._log(what)
            self._say(f"{self._name(trial)}: {_said(what, self._metric)}")
        elif kind == "lost":
            row.state = "lost"
            self._run(trial).set_tags({"error": what})
            self._say(f"{self._name(trial)} was lost again and again: {what}")
        elif kind == "warned":
            self._say(f"{self._name(trial)}: {what}")
        self._show()

    def _note(self, result: TrialResult) -> None:
        self._said.add((result.trial.name, result.step))
        row = self._row(result.trial)
        row.state = "failed" if result.failed else "measured"
        if result.step >= row.step:
            row.step, row.figure = result.step, result.metrics.get(self._metric)

    def _log(self, result: TrialResult) -> None:
        run = self._run(result.trial)
        if result.failed:
            run.set_tags({"error": result.failed})
        run.log_metrics([{"step": result.step, **result.metrics}])

    def _run(self, trial: Trial) -> RunHandle:
        """The trial's run in MLflow, from when it starts; it ends with the sweep, for a later rung may be its next."""
        if trial.name not in self._runs:
            run = self._tracker.run(
                self._name(trial),
                parent=self._parent,
                key=f"{self._parent.lineage[0][1]}-{trial.name}",
                params={"setting": trial.setting, "seed": trial.seed},
            )
            self._runs[trial.name] = self._stack.enter_context(run)
        return self._runs[trial.name]

    def _name(self, trial: Trial) -> str:
        again = f", seed {trial.seed}" if trial.seed != self._seed else ""
        return f"trial {self._number(trial)}: {words_of(trial.setting)}{again}"

    def _number(self, trial: Trial) -> int:
        return self._settings.index(trial.setting) + 1

    def _row(self, trial: Trial) -> _Row:
        if trial.name not in self._rows:
            self._rows[trial.name] = _Row(self._number(trial), words_of(trial.setting), trial.seed)
        return self._rows[trial.name]

    def _say(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            say(line)

    def _show(self) -> None:
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif now - self._told > _PLAIN_EVERY_S:
            self._told = now
            under_way = "; ".join(map(self._where, (row for row in self._rows.values() if row.state == _AT_WORK)))
            say(f"sweep: {self._summary()}{'; ' + under_way if under_way else ''}")

    def _where(self, row: _Row) -> str:
        return f"trial {row.number}" + (f" at step {row.step:,} of {row.rung:,}" if self._steps_in_all else "")

    def _summary(self) -> str:
        measured = sum(row.figure is not None for row in self._rows.values() if row.seed == self._seed)
        said = f"{self._phase}, {measured:,} of {len(self._settings):,} settings measured"
        elapsed = time.monotonic() - self._began
        if self._steps_done and self._steps_in_all:
            left = max(0, self._steps_in_all - self._steps_done) * elapsed / self._steps_done
            said += f", about {span(left)} left"
        return said

    def _table(self) -> Table:
        table = Table(title=self._summary(), title_justify="left", box=None, pad_edge=False)
        for name, justify in (
            ("trial", "right"),
            ("setting", "left"),
            ("seed", "right"),
            ("step", "right"),
            (self._metric, "right"),
            ("images/s", "right"),
            ("", "left"),
        ):
            table.add_column(name, justify=justify, no_wrap=name != "setting")  # type: ignore[arg-type]
        rows = sorted(self._rows.values(), key=lambda row: (row.state == _AT_WORK, row.touched))[-_LINES:]
        for row in sorted(rows, key=_place):
            speed = f"{row.images_per_s:,.0f}" if row.images_per_s and row.state == _AT_WORK else ""
            figure = "" if row.figure is None else number(row.figure)
            step = f"{row.step:,} of {row.rung:,}" if row.state == _AT_WORK and self._steps_in_all else f"{row.step:,}"
            table.add_row(str(row.number), row.words, str(row.seed), step, figure, speed, row.state)
        return table


def _place(row: _Row) -> tuple[float, float, int]:
    return -row.step, float("inf") if row.figure is None else row.figure, row.number


def _said(result: TrialResult, metric: str) -> str:
    if result.failed:
        return f"failed: {result.failed}"
    return f"{metric} {number(result.metrics[metric])} at step {result.step:,}"
