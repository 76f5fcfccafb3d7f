"""The training loop: batches in, steps, checkpoints and events out. The same under Ray, torchrun or alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddpm_core.artifacts.checkpoint import Checkpoint, HistoryRow, delete_old_checkpoints, write_checkpoint
from ddpm_core.data.loader import StreamConfig, TrainingStream
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import (
    TrainState,
    ema_tensors,
    load_tensors,
    network_tensors,
    optimizer_tensors,
)
from ddpm_core.training.step import Objective, draw, train_step


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Which of the workers this process is, and where it computes."""

    rank: int
    num_workers: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the artifacts."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run that a checkpoint belongs to."""

    uri: str
    config: dict[str, Any]
    dataset_uri: str
    dataset_digest: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the first worker tells the world, while it happens."""

    logged: Callable[[HistoryRow], None]
    """A row of the history."""
    saved: Callable[[str], None]
    """The URI of a checkpoint that now stands."""
    preview: Callable[[TrainState], None]
    """Time for a grid of samples."""


def stream_config(config: TrainConfig) -> StreamConfig:
    """The part of the training config that fixes the stream of batches."""
    return StreamConfig(batch_size=config.batch_size, lanes=config.lanes, window=config.window, seed=config.seed)


def restore(state: TrainState, checkpoint: Checkpoint, run: Run) -> None:
    """Go on from a checkpoint.

    Raises:
        ValueError: if the checkpoint was trained on another dataset or is of another architecture.
    """
    if checkpoint.dataset_digest != run.dataset_digest:
        raise ValueError(
            f"the run was trained on dataset {checkpoint.dataset_digest[:12]}, the dataset now is "
            f"{run.dataset_digest[:12]}; give the run another --name"
        )
    load_tensors(state, checkpoint.model, checkpoint.ema, checkpoint.optimizer, checkpoint.step)
    state.history = list(checkpoint.history)


def autocast_for(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The autocast of the configured precision on this device."""
    wanted = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def train(
    state: TrainState,
    stream: TrainingStream,
    objective: Objective,
    config: TrainConfig,
    worker: Worker,
    run: Run,
    events: Events,
) -> None:
    """Train from the state's step to `config.steps`; a checkpoint stands at the end."""
    if state.step >= config.steps and worker.is_first:
        events.saved(save(state, config, run))
        events.preview(state)
    forward: nn.Module = state.network
    if worker.num_workers > 1:
        devices = [worker.device.index] if worker.device.type == "cuda" else None
        forward = DistributedDataParallel(state.network, device_ids=devices)
    autocast = autocast_for(config, worker.device)
    objective = replace(objective, schedule=objective.schedule.to(worker.device))
    clock, since = time.perf_counter(), state.step
    for batch in stream.read_ahead(state.step, config.steps):
        images, labels, positions, weights = (part.to(worker.device, non_blocking=True) for part in batch)
        draws = draw(state, images, labels, positions, config, objective.schedule.num_timesteps)
        result = train_step(
            state,
            forward,
            draws,
            positions,
            weights,
            objective,
            config,
            num_workers=worker.num_workers,
            autocast=autocast,
        )
        if state.timesteps is not None:
            state.timesteps.update(*_whole_batch(positions, draws.t, result.losses, weights, worker))
        if state.step % config.log_every == 0 or state.step == config.steps:
            loss = _mean_over_workers(result.loss, worker)  # every worker takes part in the reduction
            now = time.perf_counter()
            images_per_s = (state.step - since) * config.batch_size / (now - clock)
            clock, since = now, state.step
            if worker.is_first:
                _log(state, loss, float(result.grad_norm), images_per_s, config, events)
        if worker.is_first and (state.step % config.checkpoint_every == 0 or state.step == config.steps):
            events.saved(save(state, config, run))
        if worker.is_first and (state.step % config.preview_every == 0 or state.step == config.steps):
            before = time.perf_counter()
            events.preview(state)
            clock += time.perf_counter() - before  # images/s is the training's alone


def save(state: TrainState, config: TrainConfig, run: Run) -> str:
    """Write the state as a checkpoint and delete those that the policy does not keep; returns its URI."""
    checkpoint = Checkpoint(
        step=state.step,
        images_seen=state.step * config.batch_size,
        seed=config.seed,
        dataset_digest=run.dataset_digest,
        dataset_uri=run.dataset_uri,
        config=run.config,
        versions=run.versions,
        model=network_tensors(state),
        ema=ema_tensors(state),
        optimizer=optimizer_tensors(state),
        history=state.history,
    )
    uri = write_checkpoint(run.uri, checkpoint)
    delete_old_checkpoints(run.uri, config.keep_checkpoints)
    return uri


def _log(
    state: TrainState, loss: float, grad_norm: float, images_per_s: float, config: TrainConfig, events: Events
) -> None:
    row: HistoryRow = {
        "step": state.step,
        "images_seen": state.step * config.batch_size,
        "loss": loss,
        "grad_norm": grad_norm,
        "images_per_s": images_per_s,
    }
    state.history.append(row)
    events.logged(row)


def _whole_batch(
    positions: torch.Tensor, t: torch.Tensor, losses: torch.Tensor, weights: torch.Tensor, worker: Worker
) -> tuple[torch.Tensor, torch.Tensor]:
    """t and loss of every sample of the global batch, in the order of the stream: the same on every worker."""
    mine = torch.stack((positions.double(), t.double(), losses.double(), weights.double()))
    shares = [mine]
    if worker.num_workers > 1:  # shares differ in length by a few; padding has weight 0
        length = torch.tensor(mine.shape[1], device=mine.device)
        dist.all_reduce(length, op=dist.ReduceOp.MAX)
        mine = nn.functional.pad(mine, (0, int(length) - mine.shape[1]))
        shares = [torch.empty_like(mine) for _ in range(worker.num_workers)]
        dist.all_gather(shares, mine)
    rows = torch.cat(shares, dim=1).cpu()
    rows = rows[:, rows[3] > 0]
    rows = rows[:, rows[0].argsort()]
    return rows[1].long(), rows[2]


def _mean_over_workers(value: torch.Tensor, worker: Worker) -> float:
    value = value.clone()
    if worker.num_workers > 1:
        dist.all_reduce(value)
    return float(value) / worker.num_workers
