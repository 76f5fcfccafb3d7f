"""Trials on Ray Tune: one Tune run for the whole sweep, in which each of Tune's trials brings one of ours to one rung.

Which comes next is read from an agenda, batch by batch, each decided by what is on record by then. So the processes stay for all
rungs, a rung is synchronous by itself, and Tune needs no records of its own: a sweep that was interrupted is simply run again, and
whatever is on record is not done again. What happens is told in the driver's main thread.
"""

import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.placement import Ask, Waiting
from pipelines.progress import say
from pipelines.sweeping.record import Trial
from pipelines.sweeping.setting import Setting
from pipelines.sweeping.trial import Bench, run_trial

_POLL_S = 0.5
_LEAVE_S = 20.0
_LOST = 3
"""Times that a trial is started again whose process or node was lost."""

Tell = Callable[[Trial, str, Any], None]
"""Shown what happens to a trial, in the driver's main thread: started, logged (a row), warned, result, lost (why)."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Trials that may run side by side; the next batch is asked for once all of them have ended."""

    phase: str
    """In words."""
    trials: Sequence[Trial] = ()
    steps: tuple[int, ...] = ()
    """Measured at each of these, ascending."""
    more: Callable[[], bool] = lambda: False
    """In place of trials: whether one more setting is asked for of a search,"""
    search: Searcher | None = None
    """which is told what came of each,"""
    proposed: Callable[[dict[str, Any]], Trial] | None = None
    """and whose words this makes a trial of."""


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Trials are stopped at rungs as soon as they can be told to be worse than most that came before."""

    metric: str
    rungs: tuple[int, ...]
    factor: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Fleet:
    """How trials are run."""

    bench: Bench
    ask: Ask
    """Of each trial: resources, and how many there are at once."""
    tell: Tell
    entered: Callable[[str], None]
    """Told of each batch's phase."""
    time_s: float | None = None
    """After so long no trial goes on."""
    asha: Asha | None = None


def run_batches(fleet: Fleet, batches: Iterator[Batch]) -> None:
    """Run one batch after the other.

    Args:
        batches: asked for the next one in a thread of its own, once that before has ended.
    """
    # On the driver's own node: on another it could be lost while the driver is not.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    ended, result = _Ended(), Future[Any]()
    trainable = tune.with_parameters(_trainable, bench=fleet.bench, events=events)
    asha = fleet.asha
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="ddpm-ray-") as records:
        tuner = tune.Tuner(
            tune.with_resources(trainable, fleet.ask.resources),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_FromBatches(batches, fleet.entered),
                max_concurrent_trials=fleet.ask.count,
                scheduler=FIFOScheduler()
                if asha is None
                else ASHAScheduler(
                    "step", asha.metric, "min", asha.rungs[-1], grace_period=asha.rungs[0], reduction_factor=asha.factor
                ),
                time_budget_s=fleet.time_s,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=records,
                verbose=0,
                stop=ended,
                failure_config=tune.FailureConfig(max_failures=_LOST),
                callbacks=[_Lost(events)],
            ),
        )
        thread = threading.Thread(target=_into, args=(result, tuner.fit), name="tune", daemon=True)
        thread.start()
        try:
            _follow(fleet, result, events)
        except BaseException:
            ended.now.set()
            thread.join(_LEAVE_S)
            raise
        finally:
            events.shutdown(force=True)


class _OfThisProcess:
    """Tune copies what it is given, and pickles it among its records, which nobody reads; this is to stay the one that it is."""

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _FromBatches(_OfThisProcess, Searcher):  # type: ignore[misc]
    """Gives Tune the trials of one batch after the other."""

    def __init__(self, batches: Iterator[Batch], entered: Callable[[str], None]) -> None:
        super().__init__()
        self._batches, self._entered = batches, entered
        self._batch = Batch(phase="")
        self._waiting: deque[Trial] = deque()
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        while not (self._waiting or self._batch.more() or self._running):
            batch = next(self._batches, None)
            if batch is None:
                finished: str = Searcher.FINISHED
                return finished
            self._batch = batch
            self._waiting.extend(batch.trials)
            self._entered(batch.phase)
        trial = self._next(trial_id)
        if trial is None:
            return None  # those at work decide what comes next
        self._running.add(trial_id)
        return _as_config(trial, self._batch.steps)

    def _next(self, trial_id: str) -> Trial | None:
        search, proposed = self._batch.search, self._batch.proposed
        if search is not None and proposed is not None and self._batch.more():
            return proposed(search.suggest(trial_id))
        return self._waiting.popleft() if self._waiting else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.discard(trial_id)
        if self._batch.search is not None:
            self._batch.search.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to keep."""


def _as_config(trial: Trial, steps: tuple[int, ...]) -> dict[str, Any]:
    """In Tune's form. As a list: Tune would take a setting's names apart."""
    return {"setting": list(trial.setting.items()), "seed": trial.seed, "steps": list(steps)}


def _as_trial(config: dict[str, Any]) -> Trial:
    setting: Setting = dict(config["setting"])
    return Trial(setting=setting, seed=config["seed"])


def _into(result: "Future[Any]", work: Callable[[], Any]) -> None:
    try:
        result.set_result(work())
    except BaseException as error:  # raised in the main thread
        result.set_exception(error)


def _follow(fleet: Fleet, result: "Future[Any]", events: Queue) -> None:
    """Tell what happens, until Tune is done. In the main thread Tune would take Ctrl-C for itself."""
    waited, began, done = Waiting(fleet.ask, say), False, False
    while not done:
        done = result.done()
        for trial, kind, what in _taken(events, _POLL_S):
            began = True
            fleet.tell(trial, kind, what)
        if began:
            waited.started()
        else:
            waited.tick()
    result.result()


def _taken(events: Queue, timeout_s: float) -> list[tuple[Trial, str, Any]]:
    """All that was posted; waits a moment if that is nothing."""
    try:
        first = events.get(timeout=timeout_s)
    except Empty:
        return []
    return [first, *events.get_nowait_batch(events.qsize())]


def _trainable(config: dict[str, Any], bench: Bench, events: Queue) -> None:
    """In the trial's process."""
    trial = _as_trial(config)

    def post(kind: str, what: Any) -> None:
        events.put((trial, kind, what))

    for step in config["steps"]:
        post("started", step)
        result = run_trial(bench, trial, step, post)
        post("result", result)
        if result.failed:
            return
        tune.report({"step": step, **result.metrics})


class _Ended(_OfThisProcess, tune.Stopper):  # type: ignore[misc]
    """Ends all trials once the driver is told to end."""

    def __init__(self) -> None:
        self.now = threading.Event()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.now.is_set()


class _Lost(TrialProgressCallback):  # type: ignore[misc]
    """Tells of trials that ended by an error: those that are started again, and those that are not any more.

    In place of the callback of Tune's that it inherits from, which prints how trials end however quiet Tune is told to be.
    """

    def __init__(self, events: Queue) -> None:
        super().__init__()
        self._events = events

    def on_trial_result(self, *told: Any, **info: Any) -> None:
        """Told by the trial itself."""

    def on_trial_complete(self, *told: Any, **info: Any) -> None:
        """Told by the trial itself."""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It is started again, from its newest checkpoint."""
        self._events.put((_as_trial(trial.config), "warned", f"{_last_line(trial)}; it is started again"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It is not started again."""
        self._events.put((_as_trial(trial.config), "lost", _last_line(trial)))


def _last_line(trial: Any) -> str:
    """Of its error."""
    error = trial.get_error()
    if error is None or isinstance(error, ray.exceptions.RayActorError):
        return "its process or node was lost"
    return str(error).strip().splitlines()[-1][:300]


os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # no files that nobody reads
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that failed has none, and the others go on
