"""The training loop: batches in, steps, checkpoints and events out. The same under Ray, torchrun or alone."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ddpm_core.artifacts.checkpoint import Checkpoint, HistoryRow
from ddpm_core.data.loader import Batch, StreamConfig, TrainingStream
from ddpm_core.model.config import ModelConfig, read_model_config
from ddpm_core.training.checkpointing import Checkpointer, Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.divergence import FiniteWatch, memory_for
from ddpm_core.training.fixed_losses import is_look
from ddpm_core.training.identity import check_continues
from ddpm_core.training.memory import images_at_once, memory_of_worker
from ddpm_core.training.parallel import Worker, check_agreement, gathered, in_parallel
from ddpm_core.training.state import TrainState, load_tensors
from ddpm_core.training.step import Backward, Draws, Objective, advance, backward, draw
from ddpm_core.types import bytes_words


@dataclass(frozen=True, kw_only=True)
class Events:
    """What a worker tells the world, while it happens."""

    logged: Callable[[HistoryRow], None]
    """A row of the history; of the first worker alone."""
    look: Callable[[TrainState], None]
    """Time to see how it goes; of the first worker alone."""
    warned: Callable[[str], None]
    """Something that a person should know, in one line."""
    saved: Callable[[TrainState], None] = lambda state: None
    """A checkpoint of the state is under way; of the first worker alone."""
    doing: Callable[[int, str], None] = lambda step, what: None
    """What this worker does now, at which step: `reading`, `computing` or `validating`."""


def stream_config(config: TrainConfig) -> StreamConfig:
    """The part of the training config that fixes the stream of batches."""
    return StreamConfig(batch_size=config.batch_size, lanes=config.lanes, window=config.window, seed=config.seed)


def restore(state: TrainState, checkpoint: Checkpoint, run: Run) -> None:
    """Go on from a checkpoint.

    Raises:
        InputError: if the checkpoint was trained otherwise, or on another dataset.
    """
    check_continues(checkpoint, run.config, run.dataset_digest)
    load_tensors(
        state, checkpoint.model, checkpoint.ema, checkpoint.optimizer, checkpoint.step, skipped=checkpoint.skipped
    )
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
    checkpointer: Checkpointer,
) -> None:
    """Train from the state's step to `config.steps`; a checkpoint stands at the end."""
    if state.step >= config.steps:
        if worker.is_first:
            checkpointer.save()
            events.look(state)
            checkpointer.finish(last=True)
        return
    check_agreement(state.step, worker)
    model = read_model_config(run.config)
    config = _in_parts_that_fit(config, model, stream.largest_share, worker, events.warned)
    forward = in_parallel(state.network, worker, model.image_shape)
    objective = replace(objective, schedule=objective.schedule.to(worker.device))
    watch = FiniteWatch(run.uri, worker.rank, config, events.warned)
    fits = memory_for(state, worker.device)
    if worker.is_first and state.step == 0:
        events.look(state)
    clock, since = time.perf_counter(), state.step
    events.doing(state.step, "reading")
    for on_host in stream.read_ahead(state.step, config.steps):
        events.doing(state.step, "computing")
        at_once = min(len(on_host.positions), int(config.micro_batch_size or len(on_host.positions)))
        with fits(at_once):
            batch, draws, found = _gradient(state, forward, on_host, objective, config, worker)
        update = watch.allows(state.step, batch, draws, found)
        seen = _whole_batch(batch, draws, found) if state.timesteps is not None and update else None
        is_logged = (state.step + 1) % config.log_every == 0 or state.step + 1 == config.steps
        now = time.perf_counter()
        with state.transition(), fits(at_once):
            advance(state, config, update=update)
            if state.timesteps is not None and seen is not None:
                state.timesteps.update(*seen)
            if is_logged:
                state.history.append(_row(state, found, (state.step - since) / (now - clock), config))
        if is_logged:
            clock, since = now, state.step
            if worker.is_first:
                events.logged(state.history[-1])
        if worker.is_first:
            clock += _save_and_show(state, config, events, checkpointer)  # images/s is the training's alone
        events.doing(state.step, "reading")
    checkpointer.finish(last=True)


def _in_parts_that_fit(
    config: TrainConfig, model: ModelConfig, most: int, worker: Worker, told: Callable[[str], None]
) -> TrainConfig:
    """With a number of images at a time in place of auto: as many as fit into this worker's memory; said, if they are not all."""
    if config.micro_batch_size != "auto":
        return config
    # Ray Train and torchrun both say how many share a machine.
    total = memory_of_worker(worker.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    bfloat16 = config.precision == "bfloat16"
    size = images_at_once(model, most, total, recompute=config.recompute, bfloat16=bfloat16)
    if size < most and worker.is_first:
        told(
            f"train.micro-batch-size auto: {size} of {most} images at a time, as a worker may take {bytes_words(total)}"
        )
    return replace(config, micro_batch_size=size)


def _gradient(
    state: TrainState,
    forward: nn.Module,
    on_host: Batch,
    objective: Objective,
    config: TrainConfig,
    worker: Worker,
) -> tuple[Batch, Draws, Backward]:
    """The batch on the worker's device, what was drawn for it, and the gradient."""
    batch = Batch(*(part.to(worker.device, non_blocking=True) for part in on_host))
    draws = draw(state, batch.images, batch.labels, batch.positions, config, objective.schedule.num_timesteps)
    found = backward(
        state,
        forward,
        draws,
        batch.positions,
        batch.weights,
        objective,
        config,
        num_workers=worker.num_workers,
        autocast=autocast_for(config, worker.device),
    )
    return batch, draws, found


def _save_and_show(state: TrainState, config: TrainConfig, events: Events, checkpointer: Checkpointer) -> float:
    """Where it is time; returns the seconds that went into looking."""
    saves = state.step == config.steps or state.step % config.checkpoint_every == 0
    if saves:
        checkpointer.save()
    before = time.perf_counter()
    if saves:
        events.saved(state)
    if is_look(state.step, config):
        events.look(state)
    return time.perf_counter() - before


def _row(state: TrainState, found: Backward, steps_per_s: float, config: TrainConfig) -> HistoryRow:
    return {
        "step": state.step,
        "images_seen": state.step * config.batch_size,
        "loss": float(found.loss),
        "grad_norm": float(found.grad_norm),
        "images_per_s": steps_per_s * config.batch_size,
    }


def _whole_batch(batch: Batch, draws: Draws, found: Backward) -> tuple[torch.Tensor, torch.Tensor]:
    """t and loss of every sample of the global batch, in the order of the stream: the same on every worker."""
    mine = (batch.positions, draws.t, found.losses, batch.weights)
    rows = gathered(torch.stack([part.double() for part in mine])).cpu()
    rows = rows[:, rows[3] > 0]  # padding has weight 0
    rows = rows[:, rows[0].argsort()]
    return rows[1].long(), rows[2]
