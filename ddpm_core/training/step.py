"""One training step: what is drawn for a batch, the loss, the gradient, the update (Ho et al. 2020, Algorithm 1)."""

from typing import NamedTuple

import torch
from torch import nn

from ddpm_core.diffusion.losses import simple_loss
from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.model.ema import ema_update
from ddpm_core.model.unet import DropoutKey
from ddpm_core.random import Purpose, integers, normals
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import TrainState
from ddpm_core.types import Float, Int, Tensor, UInt8


class Draws(NamedTuple):
    """What one step trains on; each row a pure function of (seed, position of the sample in the stream)."""

    x_0: Float[Tensor, "b c h w"]
    t: Int[Tensor, " b"]
    eps: Float[Tensor, "b c h w"]


class StepResult(NamedTuple):
    """Of the global batch: the mean loss, and the gradient's norm before clipping; 0-d tensors."""

    loss: Tensor
    grad_norm: Tensor


def draw(
    images: UInt8[Tensor, "b c h w"], positions: Int[Tensor, " b"], *, seed: int, num_timesteps: int, flip: bool
) -> Draws:
    """Images to [-1, 1], mirrored or not, with a uniform step t and standard normal noise for each."""
    x_0 = images.to(torch.float32) / 127.5 - 1
    if flip:
        mirrored = integers(seed, Purpose.FLIP, positions, 2).bool()
        x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
    t = integers(seed, Purpose.TIMESTEP, positions, num_timesteps)
    return Draws(x_0, t, normals(seed, Purpose.EPS, positions, tuple(images.shape[1:])))


def warmup(step: int, config: TrainConfig) -> float:
    """The learning rate of a step: linear over the first `warmup_steps`, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def train_step(
    state: TrainState,
    forward: nn.Module,
    draws: Draws,
    positions: Int[Tensor, " b"],
    weights: Float[Tensor, " b"],
    schedule: NoiseSchedule,
    config: TrainConfig,
    *,
    num_workers: int,
    autocast: torch.autocast,
) -> StepResult:
    """Move the state by one step of Adam on the simple loss.

    The loss is the weighted sum over this worker's share, divided by the *global* batch and multiplied by the number of
    workers, so that DDP's mean over workers is the mean over the global batch, however the samples were dealt.

    Args:
        forward: the network, or DDP around it.
        weights: 1 for a sample, 0 for padding.
    """
    dropout = DropoutKey(config.seed, positions)
    for group in state.optimizer.param_groups:
        group["lr"] = warmup(state.step, config)
    state.optimizer.zero_grad(set_to_none=True)
    with autocast:
        per_image = simple_loss(lambda x_t, t: forward(x_t, t, dropout), *draws, schedule)
    loss = (per_image * weights).sum() * (num_workers / config.batch_size)
    loss.backward()  # type: ignore[no-untyped-call]
    grad_norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.grad_clip)
    state.optimizer.step()
    ema_update(state.ema, dict(state.network.named_parameters()), config.ema_decay, num_updates=state.step)
    state.step += 1
    return StepResult(loss.detach(), grad_norm.detach())
