"""What each training worker does: ddpm_core's loop, with what happens posted to the coordinator, and an emergency checkpoint."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.run_record import Hold
from ddpm_core.artifacts.validation import best_step
from ddpm_core.errors import InputError, UserError
from ddpm_core.training.checkpointing import Checkpointer
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState
from ddpm_core.training.worker import WorkerSpec, run_worker
from pipelines.cluster.session import shard_cache
from pipelines.training.coordinator import post
from pipelines.training.looker import Looker
from pipelines.training.watching import watched

logger = logging.getLogger(__name__)

_BEAT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class RayWorkerSpec:
    """What a worker needs beside the run itself."""

    spec: WorkerSpec
    """Without the weights to begin with,"""
    init: Any
    """which lie in Ray's object store, if there are any."""
    hold: Hold
    """On the run, of the driver: the workers write in its name."""
    coordinator: Any
    threads: int
    """Of each worker, whatever their number: other threads add up in another order."""
    looker: Looker | None
    """Sees how it goes; None where nobody is to know."""
    validate: Callable[[TrainState], dict[str, float] | None] | None
    """Measures a state that is saved, on its own device, where it is time; None where a task beside training does it."""


def train_on_worker(config: dict[str, Any]) -> None:
    """What each worker does."""
    ray_spec: RayWorkerSpec = config["orders"]
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(), num_workers=context.get_world_size(), device=ray.train.torch.get_device()
    )
    torch.set_num_threads(ray_spec.threads)
    coordinator = ray_spec.coordinator
    try:
        with (
            _beating(coordinator, worker.rank) as doing,
            watched(_events(ray_spec, doing), ray_spec.spec.run.uri, worker) as events,
        ):
            spec = ray_spec.spec if ray_spec.init is None else replace(ray_spec.spec, init=ray.get(ray_spec.init))
            store = CheckpointStore(spec.run.uri, ray_spec.hold)
            run_worker(
                spec,
                worker,
                events,
                shard_cache(),
                store,
                lambda state: _checkpointer(state, ray_spec, store),
            )
    except UserError as error:
        if not _may_pass(error, ray_spec.spec.run.uri):
            ray.get(post(coordinator, "refused", error))
        raise
    if worker.is_first:
        ray.get(coordinator.finish.remote())


def _may_pass(error: Exception, run_uri: str) -> bool:
    """Whether another attempt may end otherwise: an S3 server may come back, a full disk does not empty itself."""
    return isinstance(error, storage.StorageError) and storage.is_s3(run_uri)


def _events(ray_spec: RayWorkerSpec, doing: Callable[[int, str], None]) -> Events:
    tell = partial(post, ray_spec.coordinator)

    def look(state: TrainState) -> None:
        if ray_spec.looker is not None:
            for kind, what in ray_spec.looker.look(state):
                tell(kind, what)

    def validate(state: TrainState) -> None:
        if ray_spec.validate is None:
            return
        doing(state.step, "validating")
        try:
            found = ray_spec.validate(state)
        except InputError as error:  # images or features that are no numbers: training itself watches its own
            tell("warned", f"step {state.step:,} could not be validated: {error}")
            return
        if found:
            tell("validated", found)

    return Events(
        logged=lambda row: tell("logged", row),
        look=look,
        warned=lambda line: tell("warned", line),
        saved=validate,
        doing=doing,
    )


def _checkpointer(state: TrainState, ray_spec: RayWorkerSpec, store: CheckpointStore) -> Checkpointer:
    """The state's checkpointer, and a thread that has it save when the worker is told to leave."""
    coordinator, spec = ray_spec.coordinator, ray_spec.spec

    def saved(uri: str) -> None:
        logger.info("saved %s", uri)
        post(coordinator, "saved", uri)

    def warned(line: str) -> None:
        logger.warning("%s", line)
        post(coordinator, "warned", line)

    checkpointer = Checkpointer(
        state,
        spec.train,
        spec.run,
        store,
        saved=saved,
        warned=warned,
        best=lambda: best_step(spec.run.uri),
    )

    def leave_when_told() -> None:
        order = ray.get(coordinator.ordered.remote())
        if ray.get(coordinator.claim.remote(order)):
            step = None
            try:
                step = checkpointer.save_emergency()
            except UserError as error:
                warned(f"the last step could not be saved: {error}")
            ray.get(coordinator.left.remote(order, step))

    threading.Thread(target=leave_when_told, name="leave", daemon=True).start()
    return checkpointer


@contextmanager
def _beating(coordinator: Any, rank: int) -> Iterator[Callable[[int, str], None]]:
    """Shows the coordinator every few seconds what the worker does, which it says by calling what it is given."""
    where, now, ended = f"{ray.util.get_node_ip_address()}, process {os.getpid()}", [(0, "starting")], threading.Event()

    def beat() -> None:
        coordinator.beat.remote(rank, where, *now[0])
        while not ended.wait(_BEAT_S):
            coordinator.beat.remote(rank, where, *now[0])

    def say(step: int, doing: str) -> None:
        now[0] = (step, doing)

    threading.Thread(target=beat, name="beat", daemon=True).start()
    try:
        yield say
    finally:
        ended.set()
