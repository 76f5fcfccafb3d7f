"""The noise schedule: beta_t and all that follows from it (Ho, Jain, Abbeel 2020, Sections 2 and 3).

In code t runs from 0 to T-1: t = 0 is the paper's t = 1. So alpha_bar_prev at t = 0 is 1, the paper's alpha_bar_0.
Everything is float64 and cast where it is used.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Literal

import torch

from ddpm_core.diffusion.checks import check_name
from ddpm_core.errors import InputError
from ddpm_core.types import Float, Tensor

ScheduleName = Literal["linear", "quadratic", "constant", "warmup10", "warmup50", "jsd", "cosine", "sigmoid", "given"]

_COSINE_OFFSET = 0.008
_COSINE_MAX_BETA = 0.999
_SIGMOID_RANGE = 6.0
_RESCALED_FROM = 1000


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Which betas.

    Raises:
        InputError: if a field is out of its range.
    """

    name: ScheduleName = "linear"
    """linear is the paper's; quadratic is linear in sqrt(beta); constant is beta_end throughout; warmup10 and warmup50
    rise to beta_end over the first 10% or 50% of the steps; jsd is 1/T, 1/(T-1), ..., 1; cosine is Nichol and
    Dhariwal's; sigmoid rises along a logistic curve; given is the list in betas. jsd, cosine and given read neither
    beta_start nor beta_end."""
    beta_start: float = 1e-4
    """beta at t = 0."""
    beta_end: float = 0.02
    """beta at t = T - 1."""
    num_timesteps: int = 1000
    """T, the steps from image to noise."""
    rescale: bool = False
    """Multiply the betas by 1000 / T, so that a diffusion of any T destroys about as much as one of 1,000 steps."""
    betas: tuple[float, ...] = field(default=(), metadata={"unless_default": True})
    """Of given alone: beta at t = 0, 1, ..., T - 1, each more than 0 and less than 1; the last one may be 1."""

    def __post_init__(self) -> None:
        check_name(self.name, ScheduleName, "schedule.name")
        if self.num_timesteps < 1:
            raise InputError(f"schedule.num-timesteps is {self.num_timesteps}; expected 1 or more")
        for name in ("beta_start", "beta_end"):
            if not 0 < getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"schedule.{flag} is {getattr(self, name)}; expected more than 0 and less than 1")
        if self.rescale and not self.reads_betas:
            raise InputError(
                f"schedule.rescale is set and {self.name} reads no beta-end; expected another schedule.name"
            )
        if len(self.betas) != (self.num_timesteps if self.name == "given" else 0):
            expected = f"{self.num_timesteps}, as schedule.num-timesteps says" if self.name == "given" else "none"
            raise InputError(
                f"schedule.betas has {len(self.betas)} numbers and schedule.name is {self.name}; expected {expected}"
            )
        for t, beta in enumerate(self.betas):
            if not (0 < beta < 1 or (beta == 1 and t == self.num_timesteps - 1)):
                raise InputError(
                    f"schedule.betas has {beta} at t = {t}; expected more than 0 and less than 1 (1 at the last step alone)"
                )

    @property
    def reads_betas(self) -> bool:
        """Whether beta_start and beta_end mean anything to this schedule."""
        return self.name != "given" and "start" in signature(SCHEDULES[self.name]).parameters


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

    @property
    def log_snr(self) -> Float[Tensor, " T"]:
        """log(alpha_bar / (1 - alpha_bar)); -inf where alpha_bar is 0."""
        return self.alpha_bar.log() - (-self.alpha_bar).log1p()

    @property
    def angle(self) -> Float[Tensor, " T"]:
        """phi with sqrt(alpha_bar) = cos phi and sqrt(1 - alpha_bar) = sin phi (Salimans and Ho 2022, Appendix D)."""
        return torch.atan2((1 - self.alpha_bar).sqrt(), self.alpha_bar.sqrt())

    @cached_property
    def ends_in_noise(self) -> bool:
        """Whether float32 cannot tell the last alpha_bar from 0 (zero terminal SNR).

        Looked at once: on a GPU a look makes the host wait.
        """
        return float(self.alpha_bar[-1]) < torch.finfo(torch.float32).tiny

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """The same schedule on a device."""
        return NoiseSchedule(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """The schedule that a config names.

    Raises:
        InputError: if a rescaled beta is not less than 1.
    """
    T = config.num_timesteps
    if config.name == "given":
        return schedule_from_betas(torch.tensor(config.betas, dtype=torch.float64))
    if not config.reads_betas:
        return schedule_from_betas(SCHEDULES[config.name](T))
    scale = _RESCALED_FROM / T if config.rescale else 1.0
    start, end = scale * config.beta_start, scale * config.beta_end
    if max(start, end) >= 1:
        raise InputError(
            f"schedule.rescale makes betas up to {max(start, end):g} of {T} steps; expected less than 1: "
            "raise schedule.num-timesteps, or lower schedule.beta-end"
        )
    return schedule_from_betas(SCHEDULES[config.name](T, start, end))


def linear_betas(T: int, start: float, end: float) -> Float[Tensor, " T"]:
    """The paper's."""
    return torch.linspace(start, end, T, dtype=torch.float64)


def quadratic_betas(T: int, start: float, end: float) -> Float[Tensor, " T"]:
    """Linear in sqrt(beta)."""
    return torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=torch.float64) ** 2


def constant_betas(T: int, start: float, end: float) -> Float[Tensor, " T"]:
    """beta_end throughout."""
    return torch.full((T,), end, dtype=torch.float64)


def warmup10_betas(T: int, start: float, end: float) -> Float[Tensor, " T"]:
    """Rising over the first tenth of the steps."""
    return _warmup_betas(start, end, T, rising=T // 10)


def warmup50_betas(T: int, start: float, end: float) -> Float[Tensor, " T"]:
    """Rising over the first half of the steps."""
    return _warmup_betas(start, end, T, rising=T // 2)


def jsd_betas(T: int) -> Float[Tensor, " T"]:
    """1/T, 1/(T-1), ..., 1."""
    return 1 / torch.arange(T, 0, -1, dtype=torch.float64)


def cosine_betas(T: int) -> Float[Tensor, " T"]:
    """Nichol and Dhariwal 2021, Eq. 17 and the clipping below it."""
    times = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((times + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=_COSINE_MAX_BETA)


def sigmoid_betas(T: int, start: float, end: float) -> Float[Tensor, " T"]:
    """Xu et al. 2022 (GeoDiff), in the form that its users and the diffusers library share."""
    rising = torch.linspace(-_SIGMOID_RANGE, _SIGMOID_RANGE, T, dtype=torch.float64).sigmoid()
    return start + (end - start) * rising


def _warmup_betas(start: float, end: float, T: int, *, rising: int) -> Float[Tensor, " T"]:
    """Linear over the first `rising` steps, then constant; as in the paper's published code."""
    betas = torch.full((T,), end, dtype=torch.float64)
    betas[:rising] = torch.linspace(start, end, rising, dtype=torch.float64)
    return betas


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear_betas,
    "quadratic": quadratic_betas,
    "constant": constant_betas,
    "warmup10": warmup10_betas,
    "warmup50": warmup50_betas,
    "jsd": jsd_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}
"""The betas of T steps by name, from T, and from the first and the last beta where they are read; but for given, a list."""


def zero_terminal_snr(betas: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """The betas whose sqrt(alpha_bar) is that of these, shifted to 0 at the last step and scaled back to its first value.

    Lin, Liu, Li, Yang 2024, Algorithm 1: x_T is then noise alone, as samplers take it to be.

    Args:
        betas: two or more, as `schedule_from_betas` takes them.

    Returns:
        As many, float64; the last one is 1.

    Raises:
        InputError: if there are fewer than two.
    """
    if len(betas) < 2:
        raise InputError(f"zero terminal SNR is asked for and the schedule has {len(betas)} betas; expected 2 or more")
    root = (1 - betas.to(torch.float64)).cumprod(dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    return 1 - torch.cat((alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]))


def schedule_from_betas(betas: Float[Tensor, " T"]) -> NoiseSchedule:
    """All that follows from the betas.

    Args:
        betas: at least one, each in (0, 1). The last one may be 1: then x_T is noise alone (zero terminal SNR).

    Raises:
        InputError: if there is no beta, or one is not in its range, or they leave no signal before the last step.
    """
    if len(betas) == 0:
        raise InputError("the schedule has 0 betas; expected 1 or more")
    betas = betas.to(torch.float64)
    alphas = 1 - betas
    valid = (alphas > 0) & (alphas < 1)
    valid[-1] |= alphas[-1] == 0
    if not bool(valid.all()):
        t = int(valid.int().argmin())
        raise InputError(
            f"beta at t = {t} is {float(betas[t])}; expected more than 1e-16 and less than 1 (1 at the last step alone)"
        )
    if float(alphas[:-1].prod()) == 0:
        raise InputError(
            f"alpha_bar is 0 before the last of {len(betas)} steps; expected smaller betas, or fewer steps"
        )
    return schedule_of(betas, alphas)


def schedule_of(betas: Float[Tensor, " T"], alphas: Float[Tensor, " T"]) -> NoiseSchedule:
    """All that follows from the betas and 1 - beta; each may be too close to 1 to tell the other."""
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
