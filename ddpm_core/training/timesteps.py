"""How t is drawn in training: uniformly, or more often where the loss is large."""

import torch

from ddpm_core.random import Purpose, integers, uniforms
from ddpm_core.types import Float, Int, Tensor

_HISTORY = 10
_UNIFORM_SHARE = 0.001


def uniform_timesteps(seed: int, positions: Int[Tensor, " b"], num_timesteps: int) -> Int[Tensor, " b"]:
    """t uniform in [0, T-1], a pure function of (seed, position)."""
    return integers(seed, Purpose.TIMESTEP, positions, num_timesteps)


class LossAwareTimesteps:
    """p(t) proportional to the root mean square of the last losses at t (Nichol and Dhariwal 2021, Eq. 18).

    Uniform until every t has had 10 losses. What was seen is part of the training state: the draws depend on it, and it
    is the same on every worker.

    Args:
        num_timesteps: T.
    """

    def __init__(self, num_timesteps: int) -> None:
        self.losses = torch.zeros((num_timesteps, _HISTORY), dtype=torch.float64)
        """The last losses at each t, in a ring."""
        self.counts = torch.zeros(num_timesteps, dtype=torch.int64)
        """Losses seen at each t."""

    @property
    def probabilities(self) -> Float[Tensor, " T"]:
        """p(t); float64."""
        T = len(self.counts)
        if int(self.counts.min()) < _HISTORY:
            return torch.full((T,), 1 / T, dtype=torch.float64)
        weights = self.losses.square().mean(dim=1).sqrt()
        return (1 - _UNIFORM_SHARE) * weights / weights.sum() + _UNIFORM_SHARE / T

    def draw(self, seed: int, positions: Int[Tensor, " b"]) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        """t of each sample, and what its loss is to be multiplied by so that the mean stays that of a uniform t.

        Returns:
            t, int64 in [0, T-1], and the weights 1 / (T p(t)), float32; on the device of `positions`.
        """
        probabilities = self.probabilities
        shares = uniforms(seed, Purpose.TIMESTEP, positions.cpu(), 1)[:, 0]
        t = torch.searchsorted(probabilities.cumsum(0), shares).clamp(max=len(probabilities) - 1)
        weights = (1 / (len(probabilities) * probabilities[t])).to(torch.float32)
        return t.to(positions.device), weights.to(positions.device)

    def update(self, t: Int[Tensor, " n"], losses: Float[Tensor, " n"]) -> None:
        """Take in the losses of a global batch, in the order of the stream."""
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self.losses[step, self.counts[step] % _HISTORY] = loss
            self.counts[step] += 1
