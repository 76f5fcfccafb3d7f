"""A TorchTrainer whose workers run ddpm_core's loop; none of what they did is lost when one of them goes.

All workers hold the same state. Before Ray takes a group of them down, to replace a lost one or to grow, one that is alive
saves the last completed step; so it does when the driver is told to end (SIGTERM, Ctrl-C).
"""

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.run_record import Hold
from ddpm_core.training.state import TrainState
from ddpm_core.training.worker import WorkerSpec
from pipelines.cluster.placement import Ask, Waiting, for_training
from pipelines.recipes.config import TrainStage
from pipelines.training.backend import WorkerNetwork
from pipelines.training.controller import Trainer
from pipelines.training.coordinator import Coordinator, post, take
from pipelines.training.looker import Looker
from pipelines.training.worker import RayWorkerSpec, train_on_worker

LEAVE_S = 120.0
"""So long a worker may take to save before it is taken down all the same."""
_POLL_S = 0.5
_TRIES = 3
"""Again, where the workers could not be brought together."""
_GROW_S = 30.0
"""How often Ray looks for room for more workers."""
_DAY_S = 86_400.0

Tell = Callable[[list[tuple[str, Any]]], None]


def fit(
    spec: WorkerSpec,
    hold: Hold,
    stage: TrainStage,
    tell: Tell,
    looker: Looker | None = None,
    validate: Callable[[TrainState], dict[str, float] | None] | None = None,
) -> None:
    """Train to the last step.

    Args:
        hold: on the run.
        tell: shown what happens, in the driver's main thread, every half second.
        looker, validate: what the first worker has to see and to measure, where it is time; what they return is posted.

    Raises:
        UserError: if a worker refused to go on, in one line; HeldError if another job holds the run by now.
        RuntimeError: if training failed thrice without a step forward.
    """
    # On the driver's own node: on another it could be lost while the driver is not. Its process may be: then Ray starts another
    # one, in which every call that was under way is made again. What was posted within the last half second is lost with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"max_restarts": -1, "max_task_retries": -1, "num_cpus": 0, "scheduling_strategy": here}
    coordinator = ray.remote(Coordinator).options(**lasting).remote()
    init = ray.put(spec.init) if spec.init else None
    ray_spec = RayWorkerSpec(
        spec=replace(spec, init=None),
        init=init,
        hold=hold,
        coordinator=coordinator,
        threads=stage.threads,
        looker=looker,
        validate=validate,
    )
    # Ray's records of a run, which nobody reads.
    with tempfile.TemporaryDirectory(prefix="ddpm-ray-") as records:
        try:
            _persist(
                lambda: _follow(_trainer(ray_spec, stage, records), hold, coordinator, tell, for_training(stage)),
                tell,
                spec.run.uri,
            )
        except KeyboardInterrupt:
            _leave(coordinator, tell)
            raise


def _persist(attempt: Callable[[], None], tell: Tell, run_uri: str) -> None:
    """Attempt until it succeeds, as long as it gets further; without that, thrice more if the workers were not brought together."""
    failures, store = 0, CheckpointStore(run_uri)
    while True:
        before = store.steps()[-1:]
        try:
            attempt()
            return
        except ray.train.TrainingFailedError as error:
            failures = failures + 1 if store.steps()[-1:] == before else 0
            # Ray itself tries again only what fails once the workers run.
            if failures > (_TRIES if isinstance(error, ray.train.ControllerError) else 0):
                raise
            said = _why_again(error)
        tell([("warned", said)])


def _why_again(error: Exception) -> str:
    if isinstance(error, ray.train.ControllerError):
        failure = error.controller_failure
        if isinstance(failure, ray.exceptions.RayTaskError):  # whose first line names the process, and not what it met
            failure = failure.cause
        return f"the workers could not be brought together, and are started again: {_lines(failure)[0]}"
    return f"training failed several times, and goes on as it got further: {_lines(error)[-1]}"


def _lines(error: Exception) -> list[str]:
    """What an error says; its type, if it says nothing."""
    return [line[:160] for line in str(error).strip().splitlines()] or [type(error).__name__]


def _trainer(ray_spec: RayWorkerSpec, stage: TrainStage, records: str) -> Any:
    elastic = stage.min_workers is not None and stage.min_workers < stage.num_workers
    if elastic:
        # After a loss Ray waits so long for a group of the old size before it takes a smaller one.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    ask = for_training(stage)
    scaling = ray.train.ScalingConfig(
        num_workers=(stage.min_workers, stage.num_workers) if elastic else stage.num_workers,
        use_gpu=stage.use_gpu,
        resources_per_worker=ask.resources,
        label_selector=dict(ask.labels) or None,
        **({"elastic_resize_monitor_interval_s": _GROW_S} if elastic else {}),
    )
    return Trainer(
        train_on_worker,
        train_loop_config={"orders": ray_spec},
        scaling_config=scaling,
        torch_config=WorkerNetwork(),
        run_config=ray.train.RunConfig(
            # Ray resumes a run of the same name from its records; ours lie in the checkpoints: each attempt has its own.
            name=uuid.uuid4().hex[:12],
            storage_path=records,
            # Less than none: Ray starts the others as soon as it hears that a node will go, and not once it has gone.
            failure_config=ray.train.FailureConfig(max_failures=3, preemption_grace_s=-_DAY_S),
            callbacks=[_SaveBeforeShutdown(ray_spec.coordinator)],
            # What Ray says itself stands in its logs alone.
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


class _SaveBeforeShutdown(WorkerGroupCallback):  # type: ignore[misc]
    """Has a worker save before the group is taken down."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._told: set[str] = set()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        notice = worker_group_status.get_preemption_info()
        for node in set(notice.preempted_node_ids) - self._told if notice else ():
            self._told.add(node)
            ranks = ", ".join(map(str, notice.preempted_node_to_ranks[node]))
            self._warn(f"node {node[:12]} is about to go: its workers ({ranks}) are started elsewhere")

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._leave()

    def before_worker_group_abort(self, worker_group_context: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        began = time.perf_counter()
        step = ray.get(self._coordinator.leave.remote(LEAVE_S))
        if step is not None:
            self._warn(f"step {step:,} was saved in {time.perf_counter() - began:.1f} s")

    def _warn(self, line: str) -> None:
        ray.get(post(self._coordinator, "warned", line))


def _follow(trainer: Any, hold: Hold, coordinator: Any, tell: Tell, ask: Ask) -> None:
    """Run the trainer in a thread, and meanwhile tell what happens.

    In the main thread Ray would take Ctrl-C for itself, and end the process without a word.
    """
    coordinator.begin.remote()
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(trainer.fit())
        except BaseException as error:  # raised in the main thread
            result.set_exception(error)

    threading.Thread(target=run, name="trainer", daemon=True).start()
    waited, ended = Waiting(ask, lambda line: tell([("warned", line)])), False
    while not ended:
        ended = bool(wait([result], timeout=_POLL_S).done)
        events = take(coordinator)
        tell(events)
        for kind, what in events:
            if kind == "refused":
                raise what
        hold.check()
        if ray.get(coordinator.works.remote()):
            waited.started()
        else:
            waited.tick()
    result.result()


def _leave(coordinator: Any, tell: Tell) -> None:
    began = time.perf_counter()
    step = ray.get(coordinator.leave.remote(LEAVE_S))
    events = take(coordinator)
    if step is not None:
        events.append(("warned", f"step {step:,} was saved in {time.perf_counter() - began:.1f} s"))
    tell(events)
