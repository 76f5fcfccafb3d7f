"""The forward process q, and the four ways to say what took x_0 to x_t (Ho, Jain, Abbeel 2020, Sections 2 and 3).

Given x_t and t, each of eps, x_0, the posterior's mean and v fixes the other three: they are affine in each other.
"""

from typing import Literal, NamedTuple

import torch

from ddpm_core.diffusion.checks import check_like, check_name
from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.errors import InputError
from ddpm_core.types import Float, Int, Tensor

Prediction = Literal["eps", "x_0", "mean", "v"]


class Posterior(NamedTuple):
    """q(x_{t-1} | x_t, x_0); the variances broadcast against the mean. log_variance is finite where variance is 0."""

    mean: Float[Tensor, "b c h w"]
    variance: Float[Tensor, "b #c #h #w"]
    log_variance: Float[Tensor, "b #c #h #w"]


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
        InputError: if the shapes differ, x_0 holds integers, or a t is out of its range (that is seen on a CPU only, as
            in all functions of this module).
    """
    check_like(eps, x_0, "eps", "x_0")
    return gather_at(schedule.alpha_bar.sqrt(), t, x_0) * x_0 + gather_at((1 - schedule.alpha_bar).sqrt(), t, x_0) * eps


def q_posterior(
    x_0: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], schedule: NoiseSchedule
) -> Posterior:
    """q(x_{t-1} | x_t, x_0), a normal distribution (Eqs. 6 and 7)."""
    coef_x_0, coef_x_t = schedule.posterior_mean_coef_x_0, schedule.posterior_mean_coef_x_t
    return Posterior(
        mean=gather_at(coef_x_0, t, x_t) * x_0 + gather_at(coef_x_t, t, x_t) * x_t,
        variance=gather_at(schedule.posterior_variance, t, x_t),
        log_variance=gather_at(schedule.posterior_log_variance_clipped, t, x_t),
    )


def predict_x_0(
    prediction: Prediction,
    value: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
) -> Float[Tensor, "b c h w"]:
    """The x_0 that a prediction of any kind means.

    Args:
        prediction: what `value` is. eps is the noise of Eq. 4; mean is the posterior's, mu_tilde of Eq. 7; v is
            sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022, Section 4).

    Returns:
        x_0_hat, neither clipped nor checked; not finite for eps where alpha_bar is 0.
    """
    check_name(prediction, Prediction, "reverse.prediction")
    alpha_bar = schedule.alpha_bar
    match prediction:
        case "eps":  # Eq. 4 solved for x_0
            return gather_at(alpha_bar.rsqrt(), t, x_t) * x_t - gather_at((1 / alpha_bar - 1).sqrt(), t, x_t) * value
        case "x_0":
            return value
        case "mean":  # Eq. 7 solved for x_0
            coef_x_0, coef_x_t = schedule.posterior_mean_coef_x_0, schedule.posterior_mean_coef_x_t
            return gather_at(1 / coef_x_0, t, x_t) * value - gather_at(coef_x_t / coef_x_0, t, x_t) * x_t
        case "v":
            return gather_at(alpha_bar.sqrt(), t, x_t) * x_t - gather_at((1 - alpha_bar).sqrt(), t, x_t) * value


def predict_eps(
    x_0: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], schedule: NoiseSchedule
) -> Float[Tensor, "b c h w"]:
    """The eps that took x_0 to x_t: Eq. 4 solved for eps."""
    alpha_bar = schedule.alpha_bar
    return (x_t - gather_at(alpha_bar.sqrt(), t, x_t) * x_0) * gather_at((1 - alpha_bar).rsqrt(), t, x_t)


def to_prediction(
    prediction: Prediction,
    x_0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
) -> Float[Tensor, "b c h w"]:
    """The pair (x_0, x_t) said as a prediction of any kind: the inverse of `predict_x_0`, and what a network learns."""
    check_name(prediction, Prediction, "reverse.prediction")
    match prediction:
        case "eps":
            return predict_eps(x_0, x_t, t, schedule)
        case "x_0":
            return x_0
        case "mean":
            return q_posterior(x_0, x_t, t, schedule).mean
        case "v":
            alpha_bar, eps = schedule.alpha_bar, predict_eps(x_0, x_t, t, schedule)
            return gather_at(alpha_bar.sqrt(), t, x_t) * eps - gather_at((1 - alpha_bar).sqrt(), t, x_t) * x_0


def gather_at(
    values: Float[Tensor, " T"], t: Int[Tensor, " b"], like: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b 1 1 1"]:
    """values[t], in the dtype of `like` and ready to multiply it.

    Raises:
        InputError: if `like` holds integers, in which all coefficients would be 0; or a t is not in [0, T-1], of which a
            negative one would silently count from the end.
    """
    if not like.dtype.is_floating_point:
        raise InputError(f"the images are of type {like.dtype}; expected floating point values, in [-1, 1]")
    # On a GPU the check would make the host wait; there torch itself stops at an index that is too large.
    if t.device.type == "cpu" and not torch.compiler.is_compiling() and len(t):
        low, high = (int(bound) for bound in t.aminmax())
        if low < 0 or high >= len(values):
            raise InputError(f"t is {low if low < 0 else high}; expected 0 to {len(values) - 1}")
    return values[t].to(like.dtype)[:, None, None, None]
