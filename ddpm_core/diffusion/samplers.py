"""From noise to images: a sampler is a function, a line in SAMPLERS, and a name in SamplerName (`sampler_config.py`)."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from ddpm_core.diffusion.checks import check_latents
from ddpm_core.diffusion.process import gather_at, predict_eps
from ddpm_core.diffusion.respacing import spaced_process
from ddpm_core.diffusion.reverse import Clip, ReverseProcess, p_mean_variance
from ddpm_core.diffusion.sampler_config import SamplerConfig, SamplerName, check_sampler, steps_taken
from ddpm_core.types import Float, Int, Tensor

Noise = Callable[[int], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]
Sampler = Callable[[ReverseProcess, Tensor, Noise, OnStep, SamplerConfig], Tensor]
"""x_0 from p_theta at the steps to take, x_T, noise for the reverse step from t, whom to tell, and what is configured."""


@torch.no_grad()
def sample(
    p: ReverseProcess,
    config: SamplerConfig,
    x_T: Float[Tensor, "b c h w"],
    noise: Noise,
    *,
    start: int | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b c h w"]:
    """Sample images with the sampler that a config names.

    Args:
        p: at the timesteps of its schedule.
        x_T: standard normal noise; or, with `start`, images diffused to that step.
        noise: gives standard normals [b, c, h, w] for the reverse step from t; asked once a step at the most, not for the
            last one.
        start: the step from which to go down; T-1 by default. The sampler's steps are spread below it.
        on_step: told t, x_t and x_0_hat at every step; t is always one of the timesteps of the schedule.

    Returns:
        x_0, about in [-1, 1].

    Raises:
        InputError: if the config asks for more steps than the schedule has, or x_T is not finite.
    """
    check_latents(x_T, "x_T")
    check_sampler(config, p.config.variance, p.schedule.num_timesteps)
    original = steps_taken(config, p.schedule.num_timesteps, start)

    def spaced_noise(t: int) -> Tensor:
        return noise(original[t])

    def spaced_on_step(t: int, x_t: Tensor, x_0_hat: Tensor) -> None:
        if on_step is not None:
            on_step(original[t], x_t, x_0_hat)

    own = replace(p.config, variance=config.variance or p.config.variance)
    spaced = spaced_process(replace(p, config=own), original)
    return SAMPLERS[config.name](spaced, x_T, spaced_noise, spaced_on_step, config)


def ancestral(
    p: ReverseProcess, x_T: Float[Tensor, "b c h w"], noise: Noise, on_step: OnStep, config: SamplerConfig
) -> Float[Tensor, "b c h w"]:
    """Sample every step of p_theta in turn (Ho et al. 2020, Algorithm 2)."""
    x_t = x_T
    for step in reversed(range(p.schedule.num_timesteps)):
        reverse = p_mean_variance(p, x_t, _everywhere(step, x_t), clip=config.clip)
        on_step(step, x_t, reverse.x_0_hat)
        # Algorithm 2, line 4: x_{t-1} = mean + sigma_t z, without noise at the last step
        x_t = reverse.mean + (0.5 * reverse.log_variance).exp() * noise(step) if step > 0 else reverse.mean
    return x_t


def ddim(
    p: ReverseProcess, x_T: Float[Tensor, "b c h w"], noise: Noise, on_step: OnStep, config: SamplerConfig
) -> Float[Tensor, "b c h w"]:
    """Sample with as little noise as eta says (Song, Meng, Ermon 2021, Eq. 12)."""
    schedule, eta = p.schedule, config.eta
    # Eq. 16: sigma_t is eta times the deviation of q(x_{t-1} | x_t, x_0)
    sigma = eta * schedule.posterior_variance.sqrt()
    # sqrt(1 - alpha_bar_prev - sigma^2), said so that rounding never makes it the root of a negative number
    direction = ((1 - schedule.alpha_bar_prev) * (1 - eta**2 * schedule.betas / (1 - schedule.alpha_bar))).sqrt()
    x_t = x_T
    for step in reversed(range(schedule.num_timesteps)):
        t = _everywhere(step, x_t)
        x_0_hat, eps_hat = _predictions(p, x_t, t, config.clip)
        on_step(step, x_t, x_0_hat)
        # Eq. 12
        x_t = gather_at(schedule.alpha_bar_prev.sqrt(), t, x_t) * x_0_hat + gather_at(direction, t, x_t) * eps_hat
        if eta > 0 and step > 0:
            x_t = x_t + gather_at(sigma, t, x_t) * noise(step)
    return x_t


def dpm_solver(
    p: ReverseProcess, x_T: Float[Tensor, "b c h w"], noise: Noise, on_step: OnStep, config: SamplerConfig
) -> Float[Tensor, "b c h w"]:
    """Sample by DPM-Solver++(2M): the ODE of x_0_hat, extrapolated from two steps (Lu et al. 2022b, Algorithm 2).

    Published, x_0_hat goes on along a line in lambda = log SNR / 2. Over a step more than twice as long as the one before
    that is a guess: lambda is without bounds, and the last of few steps leaps far in it. There x_0_hat goes on along a line
    in sqrt(alpha_bar) = cos phi. Of that the step is solved in closed form: the ODE is x'' = -x - q in phi (Salimans and Ho
    2022, Appendix D, for q = 0, which is ddim's rotation), and q is the line's slope. It is of second order, too.
    """
    schedule = p.schedule
    half_log_snr: list[float] = (0.5 * schedule.log_snr).tolist()  # lambda_t there
    alpha_bar: list[float] = schedule.alpha_bar.tolist()
    angle: list[float] = schedule.angle.tolist()
    ratio = ((1 - schedule.alpha_bar_prev) / (1 - schedule.alpha_bar)).sqrt()
    x_t, before, h_before = x_T, x_T, 0.0
    for step in reversed(range(schedule.num_timesteps)):
        t = _everywhere(step, x_t)
        x_0_hat = p_mean_variance(p, x_t, t, clip=config.clip).x_0_hat
        on_step(step, x_t, x_0_hat)
        if step == 0:
            return x_0_hat  # alpha_bar_prev is 1: the step ends where x_0_hat is, and h is infinite
        h = half_log_snr[step - 1] - half_log_snr[step]
        gain = math.sqrt(alpha_bar[step - 1]) * -math.expm1(-h)
        x_t = gather_at(ratio, t, x_t) * x_t + gain * x_0_hat
        change = 0.0
        if 0 < h_before < math.inf and h <= 2 * h_before:  # D_i there, with 1 / (2 r) = h_i / (2 h_{i-1})
            change = gain * h / (2 * h_before)
        elif h_before > 0:  # (1 - cos(the step in phi)) / (the step before in sqrt(alpha_bar)), without cancellation
            rise = alpha_bar[step] - alpha_bar[step + 1]
            sums = math.sqrt(alpha_bar[step]) + math.sqrt(alpha_bar[step + 1])
            change = 2 * math.sin(0.5 * (angle[step] - angle[step - 1])) ** 2 * sums / rise
        x_t = x_t + change * (x_0_hat - before)
        before, h_before = x_0_hat, h
    raise AssertionError("a schedule has a step")


def heun(
    p: ReverseProcess, x_T: Float[Tensor, "b c h w"], noise: Noise, on_step: OnStep, config: SamplerConfig
) -> Float[Tensor, "b c h w"]:
    """Sample by Heun's method on the probability-flow ODE (Karras et al. 2022, Algorithm 1): a step, a second look where it
    ends, and the step again with both.

    Published, it is a trapezium rule in s = 1 / sqrt(SNR). That takes a first step from next to no signal over thousands of
    units of s times the mean of two eps_hat, so that what their errors differ by is the image; and a last leap to t = 0
    leaves half of the noise. Here x_0_hat goes along a line in sqrt(alpha_bar) from look to look, of which the step is
    solved in closed form, as in `dpm_solver`. That is of second order, too, and moves no further than the two looks differ.
    """
    schedule = p.schedule
    here, there = schedule.angle[1:], schedule.angle[:-1]
    # (1 - cos(the step in phi)) / (the step in sqrt(alpha_bar)), said without cancellation
    gain = torch.sin(0.5 * (here - there)) / torch.sin(0.5 * (here + there))
    root, deviation = schedule.alpha_bar_prev.sqrt(), (1 - schedule.alpha_bar_prev).sqrt()
    x_t = x_T
    for step in reversed(range(schedule.num_timesteps)):
        t = _everywhere(step, x_t)
        x_0_hat, eps_hat = _predictions(p, x_t, t, config.clip)
        on_step(step, x_t, x_0_hat)
        if step == 0:
            return x_0_hat  # alpha_bar_prev is 1: the step ends where x_0_hat is, and there is nothing to look at
        rotated = gather_at(root, t, x_t) * x_0_hat + gather_at(deviation, t, x_t) * eps_hat
        x_0_next = p_mean_variance(p, rotated, t - 1, clip=config.clip).x_0_hat
        x_t = rotated + gather_at(gain, t - 1, x_t) * (x_0_next - x_0_hat)
    raise AssertionError("a schedule has a step")


SAMPLERS: dict[SamplerName, Sampler] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "heun": heun,
}


def _predictions(
    p: ReverseProcess, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], clip: Clip
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """x_0_hat, and the eps_hat that leads from it to x_t."""
    x_0_hat = p_mean_variance(p, x_t, t, clip=clip).x_0_hat
    return x_0_hat, predict_eps(x_0_hat, x_t, t, p.schedule)


def _everywhere(step: int, like: Float[Tensor, "b c h w"]) -> Int[Tensor, " b"]:
    return torch.full((len(like),), step, device=like.device)
