"""What is told to Ray's metrics, which Prometheus collects at each node's `--metrics-export-port`; nothing where no Ray runs.

Ray puts `ray_` before each name, and ids of worker and node beside the tags. It drops a gauge that was not set for 20 s, and keeps
counters and histograms until its node ends. So gauges are set again and again while what they tell of lasts, and no longer; the
rates of the others fall to zero.

The port asks for no token: a tag is a name or a rank, never a place.
"""

import logging
import sys
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Self

logger = logging.getLogger(__name__)

_AGAIN_S = 5.0
"""Twice within each of Ray's reports."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure by the name, the words and the tags that Ray is given."""

    kind: Literal["Gauge", "Counter", "Histogram"]
    name: str
    words: str
    tags: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    """Of a histogram's buckets."""

    @property
    def series(self) -> tuple[str, ...]:
        """The names that Prometheus reads."""
        ends = ("_bucket", "_count", "_sum") if self.kind == "Histogram" else ("",)
        return tuple(f"ray_{self.name}{end}" for end in ends)


TRAIN_STEP = Metric(kind="Gauge", name="ddpm_train_step", words="The last step that was logged", tags=("run",))
TRAIN_IMAGES_PER_SECOND = Metric(
    kind="Gauge",
    name="ddpm_train_images_per_second",
    words="Of all workers together, without previews and validation",
    tags=("run",),
)
TRAIN_LOSS = Metric(kind="Gauge", name="ddpm_train_loss", words="Of the last step that was logged", tags=("run",))
TRAIN_GRAD_NORM = Metric(
    kind="Gauge", name="ddpm_train_grad_norm", words="Of the last step that was logged, before clipping", tags=("run",)
)
TRAIN_WORKERS = Metric(kind="Gauge", name="ddpm_train_workers", words="Of the group that trains", tags=("run",))
TRAIN_STEP_SECONDS = Metric(
    kind="Histogram",
    name="ddpm_train_step_seconds",
    words="A step on a worker, once its batch is there; with the others' gradients and the copy for a checkpoint",
    tags=("run", "rank"),
    bounds=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
)
TRAIN_DATA_WAIT_SECONDS = Metric(
    kind="Counter",
    name="ddpm_train_data_wait_seconds_total",
    words="Time in which a worker waited for its next batch",
    tags=("run", "rank"),
)
VALIDATION_DISTANCE = Metric(
    kind="Gauge", name="ddpm_validation_distance", words="Frechet distance of the newest validation", tags=("run",)
)
VALIDATION_BITS_PER_DIM = Metric(
    kind="Gauge", name="ddpm_validation_bits_per_dim", words="Bound of the newest validation", tags=("run",)
)
RUN_HELD_SINCE = Metric(
    kind="Gauge",
    name="ddpm_run_held_since_timestamp_seconds",
    words="When the job that trains the run took it",
    tags=("run", "host"),
)
WORK_LEFT = Metric(
    kind="Gauge",
    name="ddpm_work_left",
    words="What a command has still to do: images, parts, steps",
    tags=("work", "unit"),
)

METRICS = (
    TRAIN_STEP,
    TRAIN_IMAGES_PER_SECOND,
    TRAIN_LOSS,
    TRAIN_GRAD_NORM,
    TRAIN_WORKERS,
    TRAIN_STEP_SECONDS,
    TRAIN_DATA_WAIT_SECONDS,
    VALIDATION_DISTANCE,
    VALIDATION_BITS_PER_DIM,
    RUN_HELD_SINCE,
    WORK_LEFT,
)
_HOW = {"Gauge": "set", "Counter": "inc", "Histogram": "observe"}


def tell(metric: Metric, value: float, **tags: str) -> bool:
    """Set a gauge, add to a counter, or put one more value into a histogram; returns whether there is a Ray to be told."""
    try:
        ray = sys.modules.get("ray")  # who has not imported it has none, and need not wait for the import
        if ray is None or not ray.is_initialized():
            return False
        getattr(_instrument(metric), _HOW[metric.kind])(value, tags)
    except Exception as error:  # nobody's training ends because a figure of it is not seen
        _cannot_tell(metric, f"{type(error).__name__}: {error}")
    return True


class Gauges:
    """Gauges of one thing, which stand until they are closed: a run that has ended shows none."""

    def __init__(self, **tags: str) -> None:
        self._tags = tags
        self._standing: dict[tuple[Metric, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()  # else a value could be told again after the one that came in its place
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def set(self, metric: Metric, value: float, **tags: str) -> None:
        """Set one; `tags` are those that the others do not have."""
        with self._lock:
            self._standing[metric, tuple(tags.items())] = value
            there = tell(metric, value, **self._tags, **tags)
        if there and self._thread is None:
            self._thread = threading.Thread(target=self._set_again, name="gauges", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Set none of them again."""
        self._ended.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_again(self) -> None:
        while not self._ended.wait(_AGAIN_S):
            with self._lock:
                for (metric, tags), value in self._standing.items():
                    tell(metric, value, **self._tags, **dict(tags))


@cache
def _cannot_tell(metric: Metric, why: str) -> None:
    """Said once each, where logs are kept and not on a terminal: as a command ends, Ray may be gone first."""
    logger.info("the metric %s is not told: %s", metric.name, why)


@cache
def _instrument(metric: Metric) -> Any:
    from ray.util import metrics

    more = {"boundaries": list(metric.bounds)} if metric.bounds else {}
    return getattr(metrics, metric.kind)(metric.name, metric.words, tag_keys=metric.tags, **more)
