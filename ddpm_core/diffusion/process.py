"""The forward process q and the reverse process p_theta (Ho, Jain, Abbeel 2020, Sections 2 and 3)."""

from typing import Literal, NamedTuple

import torch

from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.types import Denoiser, Float, Int, Tensor

Variance = Literal["fixed_small", "fixed_large"]


class Posterior(NamedTuple):
    """q(x_{t-1} | x_t, x_0); the variances broadcast against the mean. log_variance is finite where variance is 0."""

    mean: Float[Tensor, "b c h w"]
    variance: Float[Tensor, "b #c #h #w"]
    log_variance: Float[Tensor, "b #c #h #w"]


class PMeanVariance(NamedTuple):
    """p_theta(x_{t-1} | x_t), and the x_0 that it was made from."""

    mean: Float[Tensor, "b c h w"]
    variance: Float[Tensor, "b #c #h #w"]
    log_variance: Float[Tensor, "b #c #h #w"]
    x_0_hat: Float[Tensor, "b c h w"]


def q_sample(
    x_0: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], eps: Float[Tensor, "b c h w"], schedule: NoiseSchedule
) -> Float[Tensor, "b c h w"]:
    """Diffuse x_0 to step t in closed form (Eq. 4).

    Args:
        x_0: images in [-1, 1].
        t: steps in [0, T-1].
        eps: standard normal noise.

    Returns:
        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    Raises:
        ValueError: if a t is out of its range (seen on a CPU only, as in all functions of this module).
    """
    return at(schedule.alpha_bar.sqrt(), t, x_0) * x_0 + at((1 - schedule.alpha_bar).sqrt(), t, x_0) * eps


def q_posterior(
    x_0: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], schedule: NoiseSchedule
) -> Posterior:
    """q(x_{t-1} | x_t, x_0), a normal distribution (Eqs. 6 and 7)."""
    coef_x_0, coef_x_t = schedule.posterior_mean_coef_x_0, schedule.posterior_mean_coef_x_t
    return Posterior(
        mean=at(coef_x_0, t, x_t) * x_0 + at(coef_x_t, t, x_t) * x_t,
        variance=at(schedule.posterior_variance, t, x_t),
        log_variance=at(schedule.posterior_log_variance_clipped, t, x_t),
    )


def predict_x_0(
    x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], eps: Float[Tensor, "b c h w"], schedule: NoiseSchedule
) -> Float[Tensor, "b c h w"]:
    """The x_0 that eps took to x_t: Eq. 4 solved for x_0."""
    alpha_bar = schedule.alpha_bar
    return at(alpha_bar.rsqrt(), t, x_t) * x_t - at((1 / alpha_bar - 1).sqrt(), t, x_t) * eps


def predict_eps(
    x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], x_0: Float[Tensor, "b c h w"], schedule: NoiseSchedule
) -> Float[Tensor, "b c h w"]:
    """The eps that took x_0 to x_t: Eq. 4 solved for eps."""
    alpha_bar = schedule.alpha_bar
    return (x_t - at(alpha_bar.sqrt(), t, x_t) * x_0) * at((1 - alpha_bar).rsqrt(), t, x_t)


def p_mean_variance(
    denoiser: Denoiser,
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
    *,
    variance: Variance,
    clip_x_0: bool = True,
) -> PMeanVariance:
    """One reverse step p_theta(x_{t-1} | x_t), of fixed variance (Eq. 11, by way of x_0_hat and Eq. 7).

    Args:
        variance: fixed_small is the posterior's, right for an x_0 that is one point; fixed_large is beta_t, right for
            an x_0 that is standard normal (Section 3.2).
        clip_x_0: clip x_0_hat to [-1, 1].
    """
    x_0_hat = predict_x_0(x_t, t, denoiser(x_t, t), schedule)
    if clip_x_0:
        x_0_hat = x_0_hat.clamp(-1, 1)
    posterior = q_posterior(x_0_hat, x_t, t, schedule)
    match variance:
        case "fixed_small":
            return PMeanVariance(*posterior, x_0_hat)
        case "fixed_large":
            # The published code's choice at t = 0, where only the likelihood sees it: posterior_variance[1].
            smallest = schedule.posterior_log_variance_clipped[:1].exp()
            large = torch.cat((smallest, schedule.betas[1:]))
            return PMeanVariance(posterior.mean, at(large, t, x_t), at(large.log(), t, x_t), x_0_hat)


def at(values: Float[Tensor, " T"], t: Int[Tensor, " b"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    """values[t], in the dtype of `like` and ready to multiply it.

    Raises:
        ValueError: if a t is not in [0, T-1]; a negative one would silently count from the end.
    """
    # On a GPU the check would make the host wait; there torch itself stops at an index that is too large.
    if t.device.type == "cpu" and not torch.compiler.is_compiling() and len(t):
        low, high = (int(bound) for bound in t.aminmax())
        if low < 0 or high >= len(values):
            raise ValueError(f"t is {low if low < 0 else high}; expected 0 to {len(values) - 1}")
    return values[t].to(like.dtype)[:, None, None, None]
