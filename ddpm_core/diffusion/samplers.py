"""From noise to images: one algorithm, one pure function, and a dispatcher."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ddpm_core.diffusion.process import Variance, at, p_mean_variance, predict_eps, predict_x_0
from ddpm_core.diffusion.schedule import NoiseSchedule, respace
from ddpm_core.types import Denoiser, Float, Int, Tensor

Noise = Callable[[int], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How x_T becomes x_0.

    Raises:
        ValueError: if a field is out of its range.
    """

    name: Literal["ancestral", "ddim"] = "ancestral"
    """ancestral is the paper's Algorithm 2; ddim is Song, Meng, Ermon 2021."""
    num_steps: int | None = None
    """Steps, evenly spread over the schedule's; none for all of them."""
    eta: float = 0.0
    """Of ddim: its noise, from 0 (none) to 1 (as much as ancestral fixed_small)."""
    variance: Variance = "fixed_large"
    """Of ancestral: the variance of a reverse step."""
    clip_x_0: bool = True
    """Clip the predicted image to [-1, 1] at every step."""

    def __post_init__(self) -> None:
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"sampler.num-steps is {self.num_steps}; expected 1 or more")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"sampler.eta is {self.eta}; expected 0 to 1")


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    x_T: Float[Tensor, "b c h w"],
    noise: Noise,
    *,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b c h w"]:
    """Sample images with the sampler that a config names.

    Args:
        denoiser: predicts eps at the timesteps of `schedule`.
        x_T: standard normal noise.
        noise: gives standard normals [b, c, h, w] for the reverse step from t; asked once a step, not for the last one.
        on_step: told t, x_t and x_0_hat at every step; t is always one of the timesteps of `schedule`.

    Returns:
        x_0, about in [-1, 1].

    Raises:
        ValueError: if the config asks for more steps than the schedule has.
    """
    spaced, timesteps = respace(schedule, config.num_steps or schedule.num_timesteps)
    original: list[int] = timesteps.tolist()

    def spaced_denoiser(x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        return denoiser(x_t, timesteps[t])

    def spaced_noise(t: int) -> Tensor:
        return noise(original[t])

    def spaced_on_step(t: int, x_t: Tensor, x_0_hat: Tensor) -> None:
        if on_step is not None:
            on_step(original[t], x_t, x_0_hat)

    match config.name:
        case "ancestral":
            return ancestral(
                spaced_denoiser,
                spaced,
                x_T,
                spaced_noise,
                spaced_on_step,
                variance=config.variance,
                clip_x_0=config.clip_x_0,
            )
        case "ddim":
            return ddim(
                spaced_denoiser, spaced, x_T, spaced_noise, spaced_on_step, eta=config.eta, clip_x_0=config.clip_x_0
            )


def ancestral(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Float[Tensor, "b c h w"],
    noise: Noise,
    on_step: OnStep,
    *,
    variance: Variance,
    clip_x_0: bool,
) -> Float[Tensor, "b c h w"]:
    """Sample every step of p_theta in turn (Ho et al. 2020, Algorithm 2)."""
    x_t = x_T
    for step in reversed(range(schedule.num_timesteps)):
        t = torch.full((len(x_t),), step, device=x_t.device)
        p = p_mean_variance(denoiser, x_t, t, schedule, variance=variance, clip_x_0=clip_x_0)
        on_step(step, x_t, p.x_0_hat)
        # Algorithm 2, line 4: x_{t-1} = mean + sigma_t z, without noise at the last step
        x_t = p.mean + (0.5 * p.log_variance).exp() * noise(step) if step > 0 else p.mean
    return x_t


def ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Float[Tensor, "b c h w"],
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float,
    clip_x_0: bool,
) -> Float[Tensor, "b c h w"]:
    """Sample with as little noise as eta says (Song, Meng, Ermon 2021, Eq. 12)."""
    # Eq. 16: sigma_t is eta times the deviation of q(x_{t-1} | x_t, x_0)
    sigma = eta * schedule.posterior_variance.sqrt()
    # sqrt(1 - alpha_bar_prev - sigma^2), without the rounding that could make it the root of a negative number
    direction = (
        (1 - schedule.alpha_bar_prev) * (1 - eta**2 * schedule.betas / (1 - schedule.alpha_bar)).clamp(min=0)
    ).sqrt()
    x_t = x_T
    for step in reversed(range(schedule.num_timesteps)):
        t = torch.full((len(x_t),), step, device=x_t.device)
        eps_hat = denoiser(x_t, t)
        x_0_hat = predict_x_0(x_t, t, eps_hat, schedule)
        if clip_x_0:
            x_0_hat = x_0_hat.clamp(-1, 1)
            eps_hat = predict_eps(x_t, t, x_0_hat, schedule)
        on_step(step, x_t, x_0_hat)
        # Eq. 12
        x_t = at(schedule.alpha_bar_prev.sqrt(), t, x_t) * x_0_hat + at(direction, t, x_t) * eps_hat
        if eta > 0 and step > 0:
            x_t = x_t + at(sigma, t, x_t) * noise(step)
    return x_t
