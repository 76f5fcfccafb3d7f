"""What a training worker lets others watch: metrics, and lines in its log that say which run, rank and step they are of."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ddpm_core.artifacts.checkpoint import HistoryRow
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState
from pipelines.metrics import (
    TRAIN_DATA_WAIT_SECONDS,
    TRAIN_GRAD_NORM,
    TRAIN_IMAGES_PER_SECOND,
    TRAIN_LOSS,
    TRAIN_STEP,
    TRAIN_STEP_SECONDS,
    TRAIN_WORKERS,
    Gauges,
    tell,
)
from pipelines.progress import shown

logger = logging.getLogger(__name__)

_BY_FIELD = {
    "step": TRAIN_STEP,
    "loss": TRAIN_LOSS,
    "grad_norm": TRAIN_GRAD_NORM,
    "images_per_s": TRAIN_IMAGES_PER_SECOND,
}
_OURS = ("pipelines", "ddpm_core")


@contextmanager
def watched(events: Events, run_uri: str, worker: Worker) -> Iterator[Events]:
    """A worker's events, which are also told to Ray's metrics and to the worker's log while the block runs."""
    run = run_uri.rpartition("/")[2]
    lines = RunLines(run, worker.rank)
    with _logged_as(lines), Gauges(run=run) as gauges:
        if worker.is_first:
            gauges.set(TRAIN_WORKERS, worker.num_workers)
        clock = _StepClock(run, worker.rank)

        def doing(step: int, what: str) -> None:
            lines.step = step
            clock.turn(what)
            events.doing(step, what)

        def look(state: TrainState) -> None:
            clock.turn("looking")
            events.look(state)

        def logged(row: HistoryRow) -> None:
            for field, metric in _BY_FIELD.items():
                gauges.set(metric, row[field])
            lines.step = int(row["step"])
            logger.info("loss %.4f, grad %.2f, %.0f images/s", row["loss"], row["grad_norm"], row["images_per_s"])
            events.logged(row)

        def warned(line: str) -> None:
            logger.warning("%s", line)
            events.warned(line)

        logger.info("worker %d of %d begins, on %s", worker.rank, worker.num_workers, worker.device)
        try:
            yield replace(events, doing=doing, look=look, logged=logged, warned=warned)
        except Exception as error:
            logger.error("%s: %s", type(error).__name__, error)
            raise
        logger.info("trained to the last step")


class _StepClock:
    """Tells how long a worker waits for a batch and how long it computes, by when it turns from one to the other."""

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._what, self._since = "", 0.0

    def turn(self, what: str) -> None:
        """From now on it does this."""
        now = time.perf_counter()
        if self._what == "reading":
            tell(TRAIN_DATA_WAIT_SECONDS, now - self._since, **self._tags)
        elif self._what == "computing":
            tell(TRAIN_STEP_SECONDS, now - self._since, **self._tags)
        self._what, self._since = what, now


class RunLines(logging.Formatter):
    """A line of key=value pairs for each record, which Loki reads as logfmt."""

    def __init__(self, run: str, rank: int) -> None:
        super().__init__("%(message)s")
        self._who = f"run={json.dumps(run)} rank={rank}"  # a run may be called anything
        self.step = 0

    def format(self, record: logging.LogRecord) -> str:
        """With the step that the worker is at now."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = json.dumps(shown(super().format(record)), ensure_ascii=False)
        what = f"level={record.levelname.lower()} {self._who} step={self.step} logger={record.name}"
        return f"ts={at}.{record.msecs:03.0f}Z {what} msg={said}"


@contextmanager
def _logged_as(lines: RunLines) -> Iterator[None]:
    """All that this project logs in this process goes to stderr so: on a Ray worker, into its file among Ray's logs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(lines)
    ours = [logging.getLogger(name) for name in _OURS]
    before = [(each.level, each.propagate) for each in ours]
    for each in ours:
        each.addHandler(handler)
        each.setLevel(logging.INFO)
        each.propagate = False  # else it stands there twice, once without its run
    try:
        yield
    finally:
        for each, (level, propagate) in zip(ours, before, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
            each.propagate = propagate
