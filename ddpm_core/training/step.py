"""One training step: what is drawn for a batch, the loss, the gradient, the update (Ho et al. 2020, Algorithm 1)."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from ddpm_core.data.pixels import to_unit
from ddpm_core.diffusion.losses import LossConfig, loss_per_image
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.model.ema import ema_update
from ddpm_core.model.unet import DropoutKey
from ddpm_core.random import Purpose, integers, normals, uniforms
from ddpm_core.training.augmentation import NUM_PARAMETERS, augment, draw_augmentation
from ddpm_core.training.averages import decay_of
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.parallel import mean_over_workers, summed_later
from ddpm_core.training.state import TrainState
from ddpm_core.training.timesteps import uniform_timesteps
from ddpm_core.types import Float, Int, Tensor, UInt8


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised, but for the network."""

    schedule: NoiseSchedule
    reverse: ReverseConfig
    loss: LossConfig


class Draws(NamedTuple):
    """What one step trains on; each row a pure function of (seed, position of the sample in the stream)."""

    x_0: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    """-1 where there is none, or dropout took it."""
    t: Int[Tensor, " b"]
    weights: Float[Tensor, " b"]
    """1 / (T p(t)): 1 where t is uniform."""
    eps: Float[Tensor, "b c h w"]
    augment: Float[Tensor, "b 9"]
    """What was done to each image; zeros for nothing."""


class Backward(NamedTuple):
    """What a backward pass found; the gradient itself lies in the network, clipped."""

    loss: Tensor
    """Mean over the global batch; 0-d."""
    grad_norm: Tensor
    """Of the global gradient before clipping; 0-d."""
    losses: Float[Tensor, " b"]
    """Of each of this worker's samples, not weighted."""

    @property
    def is_finite(self) -> bool:
        """Whether the step may be taken: loss and gradient are numbers, on every worker."""
        return bool(self.loss.isfinite() & self.grad_norm.isfinite())


def draw(
    state: TrainState,
    images: UInt8[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    positions: Int[Tensor, " b"],
    config: TrainConfig,
    num_timesteps: int,
) -> Draws:
    """Images to [-1, 1], mirrored and augmented or not, with a step t and standard normal noise for each.

    The state is read for a loss-aware choice of t only.
    """
    seed = config.seed
    images, augmented = _augmented(images, positions, config)
    x_0 = to_unit(images)
    if config.flip and not (config.augment and "x_flip" in config.augment_kinds):  # which is told, and does as much
        mirrored = integers(seed, Purpose.FLIP, positions, 2).bool()
        x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
    if state.timesteps is None:
        t = uniform_timesteps(seed, positions, num_timesteps)
        weights = torch.ones(len(t), device=t.device)
    else:
        t, weights = state.timesteps.draw(seed, positions)
    if config.label_dropout > 0:
        dropped = uniforms(seed, Purpose.LABEL, positions, 1)[:, 0] < config.label_dropout
        labels = labels.masked_fill(dropped, -1)
    return Draws(
        x_0=x_0,
        labels=labels,
        t=t,
        weights=weights,
        eps=normals(seed, Purpose.EPS, positions, tuple(images.shape[1:])),
        augment=augmented,
    )


def _augmented(
    images: UInt8[Tensor, "b c h w"], positions: Int[Tensor, " b"], config: TrainConfig
) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 9"]]:
    """The images, augmented or not, and what was done to them."""
    if not config.augment:
        return images, torch.zeros(len(images), NUM_PARAMETERS, device=images.device)
    height, width = images.shape[-2:]
    done = draw_augmentation(config.seed, positions, config.augment, config.augment_kinds, height=height, width=width)
    return augment(images, done), done


def warmup(step: int, config: TrainConfig) -> float:
    """The learning rate of a step: linear over the first `warmup_steps`, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def backward(
    state: TrainState,
    forward: nn.Module,
    draws: Draws,
    positions: Int[Tensor, " b"],
    weights: Float[Tensor, " b"],
    objective: Objective,
    config: TrainConfig,
    *,
    num_workers: int,
    autocast: torch.autocast,
) -> Backward:
    """The clipped gradient of the objective at the state, which stays as it is; a micro-batch at a time, if there are such.

    The loss is the weighted sum over this worker's share, divided by the *global* batch and multiplied by the number of
    workers, so that DDP's mean over workers is the mean over the global batch, however the samples were dealt.

    Args:
        forward: the network, or DDP around it.
        weights: 1 for a sample, 0 for padding.
    """
    state.optimizer.zero_grad(set_to_none=True)
    totals, losses = [], []
    assert config.micro_batch_size != "auto"  # the loop has found a number for it
    for rows, is_last in micro_batches(len(positions), config.micro_batch_size):
        part = Draws(*(each[rows] for each in draws))
        with nullcontext() if is_last else summed_later(forward):
            denoiser = partial(_denoised, forward, autocast, part, DropoutKey(config.seed, positions[rows]))
            p = ReverseProcess(denoiser=denoiser, schedule=objective.schedule, config=objective.reverse)
            each = loss_per_image(p, part.x_0, part.t, part.eps, objective.loss)
            loss = (each * part.weights * weights[rows]).sum() * (num_workers / config.batch_size)
            loss.backward()  # type: ignore[no-untyped-call]
        totals.append(loss.detach())
        losses.append(each.detach())
    grad_norm = nn.utils.clip_grad_norm_(state.weights.values(), config.grad_clip)
    return Backward(mean_over_workers(torch.stack(totals).sum()), grad_norm.detach(), torch.cat(losses))


def _denoised(
    forward: nn.Module,
    autocast: torch.autocast,
    part: Draws,
    dropout: DropoutKey,
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
) -> Float[Tensor, "b o h w"]:
    with autocast:
        out: Tensor = forward(x_t, t, part.labels, dropout, part.augment)
    return out


def micro_batches(num_images: int, size: int | None) -> Iterator[tuple[slice, bool]]:
    """The rows of each part of a batch, and whether it is the last."""
    size = size or max(num_images, 1)
    for start in range(0, max(num_images, 1), size):
        yield slice(start, start + size), start + size >= num_images


def advance(state: TrainState, config: TrainConfig, *, update: bool) -> None:
    """Complete a step: Adam and the averaged weights by the network's gradient, or, without an update, neither."""
    if update:
        for group in state.optimizer.param_groups:
            group["lr"] = warmup(state.step, config)
        state.optimizer.step()
        decay = decay_of(config, state.updates)
        ema_update(state.ema, state.weights, decay, num_updates=state.updates)
    else:
        state.skipped += 1
    state.step += 1
