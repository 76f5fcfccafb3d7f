"""The training state: network, averaged weights, optimizer, step; to and from tensors by name."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from ddpm_core.model.weights import load_network
from ddpm_core.training.timesteps import LossAwareTimesteps
from ddpm_core.types import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """All that training changes."""

    network: nn.Module
    ema: dict[str, Tensor]
    optimizer: torch.optim.Adam
    step: int = 0
    """Completed steps."""
    skipped: int = 0
    """Of these, the ones without an update, because loss or gradient was not finite."""
    timesteps: LossAwareTimesteps | None = None
    """Of a loss-aware choice of t."""
    history: list[dict[str, int | float]] = field(default_factory=list)
    """Logged rows: step, images_seen, loss, grad_norm, images_per_s."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while the state goes over from one step to the next. Who else holds it finds all of it at one step,"""
    is_whole: bool = True
    """unless going over failed: then part of it may be at one, part at the next, and none of it is to be kept."""

    @contextmanager
    def transition(self) -> Iterator[None]:
        """Around all that changes from one step to the next."""
        with self.lock:
            self.is_whole = False
            yield
            self.is_whole = True

    @cached_property
    def weights(self) -> dict[str, nn.Parameter]:
        """The network's, by name. Looked up once: of a small network's step, finding them twice is a hundredth."""
        return dict(self.network.named_parameters())

    @property
    def updates(self) -> int:
        """Updates of the weights so far."""
        return self.step - self.skipped


def new_state(network: nn.Module, learning_rate: float, *, loss_aware: int | None = None) -> TrainState:
    """The state before the first step; the averaged weights are a copy of the network's.

    Args:
        loss_aware: T, if t is to be drawn by the losses.
    """
    # Adam's defaults are the paper's: betas 0.9, 0.999 and epsilon 1e-8. Fused, it goes through memory once.
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    ema = {name: p.detach().clone() for name, p in network.named_parameters()}
    timesteps = None if loss_aware is None else LossAwareTimesteps(loss_aware)
    return TrainState(network, ema, optimizer, timesteps=timesteps)


def network_tensors(state: TrainState, *, copy: bool = True) -> dict[str, Tensor]:
    """The network's weights on the CPU; without a copy they are the state's own where it lies there."""
    return {name: _on_cpu(p, copy) for name, p in state.weights.items()}


def ema_tensors(state: TrainState, *, copy: bool = True) -> dict[str, Tensor]:
    """The averaged weights, as `network_tensors`."""
    return {name: _on_cpu(p, copy) for name, p in state.ema.items()}


def optimizer_tensors(state: TrainState, *, copy: bool = True) -> dict[str, Tensor]:
    """Adam's moments under `exp_avg.<weight>` and `exp_avg_sq.<weight>`, none before the first step; and the losses by
    which t is drawn under `timesteps.losses` and `timesteps.counts`; as `network_tensors`."""
    drawn = state.timesteps
    seen = {} if drawn is None else {"timesteps.losses": drawn.losses, "timesteps.counts": drawn.counts}
    moments = {
        f"{moment}.{name}": state.optimizer.state[p][moment]
        for name, p in state.weights.items()
        if p in state.optimizer.state
        for moment in _MOMENTS
    }
    return {name: _on_cpu(tensor, copy) for name, tensor in (seen | moments).items()}


def _on_cpu(tensor: Tensor, copy: bool) -> Tensor:
    return tensor.detach().to("cpu", copy=copy)


def _beside(p: Tensor, tensor: Tensor) -> Tensor:
    """A copy that lies as the weight does, on its device."""
    return torch.empty_like(p, requires_grad=False).copy_(tensor)


def load_tensors(
    state: TrainState,
    network: dict[str, Tensor],
    ema: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    step: int,
    skipped: int = 0,
) -> None:
    """Set the state to saved tensors.

    Raises:
        InputError: if names or shapes are not this network's.
    """
    load_network(state.network, network)
    for name, p in state.weights.items():
        state.ema[name] = _beside(p, ema[name])
        if f"{_MOMENTS[0]}.{name}" in optimizer:
            moments = {moment: _beside(p, optimizer[f"{moment}.{name}"]) for moment in _MOMENTS}
            state.optimizer.state[p] = {"step": torch.tensor(float(step - skipped), device=p.device), **moments}
    if state.timesteps is not None:
        state.timesteps.losses = optimizer["timesteps.losses"].clone()
        state.timesteps.counts = optimizer["timesteps.counts"].clone()
    state.step, state.skipped = step, skipped
