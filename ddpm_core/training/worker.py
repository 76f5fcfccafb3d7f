"""One worker from start to end: build what the run's config says, go on from the newest checkpoint, train to the last step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddpm_core.artifacts.checkpoint import Tensors
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.data.loader import TrainingStream
from ddpm_core.data.reader import ImageReader
from ddpm_core.model.config import read_model_config
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import recompute_activations
from ddpm_core.model.weights import load_network, weights_to_begin_with
from ddpm_core.precision import whole_float32
from ddpm_core.training.checkpointing import Checkpointer, Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.identity import build_objective
from ddpm_core.training.loop import Events, restore, stream_config, train
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState, new_state


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What every worker of a run is given."""

    train: TrainConfig
    run: Run
    index: DatasetIndex
    init: Tensors | None = None
    """Weights to begin with, instead of the seed's."""


def initial_state(spec: WorkerSpec, worker: Worker, store: CheckpointStore) -> TrainState:
    """The state that the run has come to: its newest checkpoint, or that before the first step."""
    config = spec.train
    network = read_model_config(spec.run.config).build_network()
    init_unet(network, config.seed)
    if spec.init is not None:
        load_network(network, weights_to_begin_with(network, spec.init))
    if config.recompute:
        recompute_activations(network)
    loss_aware = build_objective(spec.run.config).schedule.num_timesteps if config.timesteps == "loss_aware" else None
    state = new_state(network.to(worker.device), config.learning_rate, loss_aware=loss_aware)
    checkpoint = store.newest()
    if checkpoint is not None:
        restore(state, checkpoint, spec.run)
    return state


@whole_float32()
def run_worker(
    spec: WorkerSpec,
    worker: Worker,
    events: Events,
    cache: Path,
    store: CheckpointStore,
    make_checkpointer: Callable[[TrainState], Checkpointer],
) -> TrainState:
    """Train from wherever the run is to its last step, as one of its workers; returns the state at the end.

    Args:
        cache: where copies of shards from S3 are kept on this machine.
        store: the run's checkpoints.
        make_checkpointer: of the state's checkpoints.
    """
    state = initial_state(spec, worker, store)
    stream = TrainingStream(
        ImageReader(spec.index, "train", cache),
        stream_config(spec.train),
        worker=worker.rank,
        num_workers=worker.num_workers,
    )
    objective = build_objective(spec.run.config)
    train(state, stream, objective, spec.train, worker, spec.run, events, make_checkpointer(state))
    return state
