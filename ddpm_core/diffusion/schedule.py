"""The noise schedule: beta_t and all that follows from it (Ho, Jain, Abbeel 2020, Sections 2 and 3).

In code t runs from 0 to T-1: t = 0 is the paper's t = 1. So alpha_bar_prev at t = 0 is 1, the paper's alpha_bar_0.
Everything is float64 and cast where it is used.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch

from ddpm_core.types import Float, Int, Tensor

_COSINE_OFFSET = 0.008
_COSINE_MAX_BETA = 0.999


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Which betas.

    Raises:
        ValueError: if a field is out of its range.
    """

    name: Literal["linear", "quadratic", "constant", "cosine"] = "linear"
    """linear is the paper's; constant is beta_end throughout; cosine is Nichol and Dhariwal's and reads no beta."""
    beta_start: float = 1e-4
    """beta at t = 0."""
    beta_end: float = 0.02
    """beta at t = T - 1."""
    num_timesteps: int = 1000
    """T, the steps from image to noise."""

    def __post_init__(self) -> None:
        if self.num_timesteps < 1:
            raise ValueError(f"schedule.num-timesteps is {self.num_timesteps}; expected 1 or more")
        for name in ("beta_start", "beta_end"):
            if not 0 < getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"schedule.{flag} is {getattr(self, name)}; expected more than 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """What q(x_t | x_0) and q(x_{t-1} | x_t, x_0) need at each t; float64."""

    betas: Float[Tensor, " T"]
    alphas: Float[Tensor, " T"]
    alpha_bar: Float[Tensor, " T"]
    alpha_bar_prev: Float[Tensor, " T"]
    snr: Float[Tensor, " T"]
    posterior_variance: Float[Tensor, " T"]
    posterior_log_variance_clipped: Float[Tensor, " T"]
    posterior_mean_coef_x_0: Float[Tensor, " T"]
    posterior_mean_coef_x_t: Float[Tensor, " T"]

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """The same schedule on a device."""
        return NoiseSchedule(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """The schedule that a config names."""
    start, end, T = config.beta_start, config.beta_end, config.num_timesteps
    match config.name:
        case "linear":
            betas = torch.linspace(start, end, T, dtype=torch.float64)
        case "quadratic":
            betas = torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=torch.float64) ** 2
        case "constant":
            betas = torch.full((T,), end, dtype=torch.float64)
        case "cosine":
            betas = _cosine_betas(T)
    return schedule_from_betas(betas)


def _cosine_betas(T: int) -> Float[Tensor, " T"]:
    """Nichol and Dhariwal 2021, Eq. 17 and the clipping below it."""
    times = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((times + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=_COSINE_MAX_BETA)


def schedule_from_betas(betas: Float[Tensor, " T"]) -> NoiseSchedule:
    """All that follows from the betas.

    Args:
        betas: float64, each in (0, 1), at least one.

    Raises:
        ValueError: if there is no beta, or one is not in (0, 1).
    """
    if len(betas) == 0:
        raise ValueError("the schedule has 0 betas; expected 1 or more")
    valid = (betas > 0) & (betas < 1)
    if not bool(valid.all()):
        t = int(valid.int().argmin())
        raise ValueError(f"beta at t = {t} is {float(betas[t])}; expected more than 0 and less than 1")
    betas = betas.to(torch.float64)
    alphas = 1 - betas
    # Eq. 4
    alpha_bar = alphas.cumprod(dim=0)
    alpha_bar_prev = torch.cat((torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]))
    # Eq. 7
    posterior_variance = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)
    # At t = 0 the posterior is a point and its log-variance -inf; the next one stands in (the one beta, if T = 1).
    floor = posterior_variance[1:2] if len(betas) > 1 else betas
    return NoiseSchedule(
        betas=betas,
        alphas=alphas,
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        snr=alpha_bar / (1 - alpha_bar),
        posterior_variance=posterior_variance,
        posterior_log_variance_clipped=torch.cat((floor, posterior_variance[1:])).log(),
        # Eq. 7
        posterior_mean_coef_x_0=betas * alpha_bar_prev.sqrt() / (1 - alpha_bar),
        posterior_mean_coef_x_t=alphas.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
    )


def respace(schedule: NoiseSchedule, steps: int) -> tuple[NoiseSchedule, Int[Tensor, " S"]]:
    """The diffusion seen at some of its timesteps only (Nichol and Dhariwal 2021, Eq. 19).

    Args:
        steps: S, how many timesteps: evenly spread from 0 to T-1, or T-1 alone.

    Returns:
        The schedule of S steps, whose alpha_bar is the given one's at those timesteps, and the timesteps, ascending.

    Raises:
        ValueError: if `steps` is not in 1 to T.
    """
    T = schedule.num_timesteps
    if not 1 <= steps <= T:
        raise ValueError(f"{steps} sampling steps of a schedule of {T}; expected 1 to {T}")
    gaps = max(1, steps - 1)
    # (T-1) i / gaps, to the nearest whole number; counted down from T-1 so that one step starts there
    back = (2 * (T - 1) * torch.arange(steps) + gaps) // (2 * gaps)
    timesteps = (T - 1 - back).flip(0).to(schedule.betas.device)
    alpha_bar = schedule.alpha_bar[timesteps]
    betas = 1 - alpha_bar / torch.cat((torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]))
    return schedule_from_betas(betas), timesteps
