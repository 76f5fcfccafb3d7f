"""What training minimises: the simple loss, the variational bound, the two together, and min-SNR weighting."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ddpm_core.diffusion.checks import (
    check_images,
    check_latents,
    check_levels,
    check_like,
    check_name,
    check_timesteps,
)
from ddpm_core.diffusion.gaussian import bits_per_dim, discretized_log_likelihood, normal_kl
from ddpm_core.diffusion.process import Prediction, gather_at, q_posterior, q_sample, to_prediction
from ddpm_core.diffusion.reverse import PMeanVariance, ReverseConfig, ReverseProcess, interpret, split_output
from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.errors import InputError
from ddpm_core.types import Float, Int, Tensor

Objective = Literal["simple", "bound", "hybrid", "min_snr"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective.

    Raises:
        InputError: if a field is out of its range.
    """

    objective: Objective = "simple"
    """simple is the paper's Eq. 14; bound is the variational bound, Eq. 5; hybrid is simple for the mean and the bound
    for a learned variance (Nichol and Dhariwal 2021, Eq. 16); min_snr weighs simple by the signal left (Hang et al. 2023)."""
    hybrid_weight: float = 1e-3
    """Of hybrid: the bound's weight, lambda."""
    min_snr_gamma: float = 5.0
    """Of min_snr: the signal-to-noise ratio from which on all steps weigh the same in x_0."""

    def __post_init__(self) -> None:
        check_name(self.objective, Objective, "loss.objective")
        for name in ("hybrid_weight", "min_snr_gamma"):
            if not getattr(self, name) > 0:
                raise InputError(f"loss.{name.replace('_', '-')} is {getattr(self, name)}; expected more than 0")


def check_objective(loss: LossConfig, reverse: ReverseConfig) -> None:
    """Refuse a learned variance that nothing trains, and a hybrid without one.

    Raises:
        InputError: if so.
    """
    if reverse.learns_variance and loss.objective in ("simple", "min_snr"):
        raise InputError(
            f"reverse.variance is {reverse.variance} and loss.objective is {loss.objective}, which does not see the "
            "variance; expected bound or hybrid, or a fixed variance"
        )
    if loss.objective == "hybrid" and not reverse.learns_variance:
        raise InputError(
            f"loss.objective is hybrid and reverse.variance is {reverse.variance}, which the bound's part cannot "
            "train; expected learned or learned_range, or another objective"
        )


def loss_per_image(
    p: ReverseProcess,
    x_0: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    eps: Float[Tensor, "b c h w"],
    config: LossConfig,
) -> Float[Tensor, " b"]:
    """The objective at one step t of each image, as a mean over channels and pixels.

    With t uniform in [0, T-1], its mean is that of Eq. 14 for simple, and for bound the variational bound in bits/dim
    but for L_T, which does not depend on the network.

    Args:
        x_0: images in [-1, 1]; for the bound they are 8-bit levels.
        t: steps in [0, T-1].
        eps: standard normal noise.

    Raises:
        InputError: if one of them is of the wrong shape or type, or holds other values (that is seen on a CPU only).
    """
    (check_levels if config.objective in ("bound", "hybrid") else check_images)(x_0)
    check_timesteps(t, x_0, "x_0")
    check_latents(eps, "eps")
    check_like(eps, x_0, "eps", "x_0")
    x_t = q_sample(x_0, t, eps, p.schedule)
    output = p.denoiser(x_t, t).to(x_t.dtype)  # under autocast the network speaks bfloat16
    return OBJECTIVES[config.objective](Seen(output, x_0, x_t, t, eps), p, config)


def squared_error(
    output: Float[Tensor, "b o h w"],
    x_0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    eps: Float[Tensor, "b c h w"],
    p: ReverseProcess,
) -> Float[Tensor, " b"]:
    """Of the prediction, whatever it predicts (Eq. 14, where that is eps)."""
    value, _ = split_output(output, x_t, p.config)
    # eps itself, not eps by way of x_t: the rounding on that way is large where there is little noise
    target = eps if p.config.prediction == "eps" else to_prediction(p.config.prediction, x_0, x_t, t, p.schedule)
    return (target - value).square().mean(dim=(1, 2, 3))


def min_snr_weight(prediction: Prediction, schedule: NoiseSchedule, gamma: float) -> Float[Tensor, " T"]:
    """What makes the squared error of a prediction that of x_0 times min(SNR, gamma) (Hang et al. 2023, Section 3.4)."""
    check_name(prediction, Prediction, "reverse.prediction")
    capped = schedule.snr.clamp(max=gamma)
    match prediction:
        case "x_0":
            return capped
        case "eps":  # an error of eps is one of x_0 times sqrt(SNR)
            return capped / schedule.snr
        case "v":  # ... times sqrt(SNR + 1)
            return capped / (schedule.snr + 1)
        case "mean":  # ... times the coefficient of x_0 in Eq. 7
            return capped / schedule.posterior_mean_coef_x_0**2


class Seen(NamedTuple):
    """What an objective is told of a batch."""

    output: Float[Tensor, "b o h w"]
    x_0: Float[Tensor, "b c h w"]
    x_t: Float[Tensor, "b c h w"]
    t: Int[Tensor, " b"]
    eps: Float[Tensor, "b c h w"]


def _simple(seen: Seen, p: ReverseProcess, config: LossConfig) -> Float[Tensor, " b"]:
    return squared_error(*seen, p)


def _min_snr(seen: Seen, p: ReverseProcess, config: LossConfig) -> Float[Tensor, " b"]:
    weight = min_snr_weight(p.config.prediction, p.schedule, config.min_snr_gamma)[seen.t]
    return weight.to(seen.x_t.dtype) * squared_error(*seen, p)


def _bound(seen: Seen, p: ReverseProcess, config: LossConfig) -> Float[Tensor, " b"]:
    """T times the term of t: with t uniform, an unbiased estimate of the sum. Training does not clip x_0_hat."""
    step = interpret(seen.output, seen.x_t, seen.t, p.schedule, p.config, clip="none")
    return p.schedule.num_timesteps * bound_term(step, seen.x_0, seen.x_t, seen.t, p.schedule)


def _hybrid(seen: Seen, p: ReverseProcess, config: LossConfig) -> Float[Tensor, " b"]:
    value, second = split_output(seen.output, seen.x_t, p.config)
    assert second is not None
    # Nichol and Dhariwal 2021, Section 3.1: the bound moves the variance alone
    variance_alone = torch.cat((value.detach(), second), dim=1)
    bound = _bound(seen._replace(output=variance_alone), p, config)
    return squared_error(*seen, p) + config.hybrid_weight * bound


OBJECTIVES: dict[Objective, Callable[[Seen, ReverseProcess, LossConfig], Tensor]] = {
    "simple": _simple,
    "bound": _bound,
    "hybrid": _hybrid,
    "min_snr": _min_snr,
}
"""The loss of each image by name."""


def bound_term(
    step: PMeanVariance,
    x_0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
) -> Float[Tensor, " b"]:
    """A term of the variational bound in bits/dim (Eq. 5): L_{t-1} of Eq. 8 for t > 0, the decoder's L_0 at t = 0.

    Args:
        step: p_theta(x_{t-1} | x_t).
        x_0: 8-bit levels in [-1, 1].
    """
    true = q_posterior(x_0, x_t, t, schedule)
    kl = bits_per_dim(normal_kl(true.mean, true.log_variance, step.mean, step.log_variance))
    decoder = bits_per_dim(-discretized_log_likelihood(x_0, step.mean, step.log_variance))
    return torch.where(t == 0, decoder, kl)


def prior_term(x_0: Float[Tensor, "b c h w"], schedule: NoiseSchedule) -> Float[Tensor, " b"]:
    """L_T = KL(q(x_T | x_0) || N(0, 1)) in bits/dim (Eq. 5): what the last step still tells of x_0."""
    last = torch.full((len(x_0),), schedule.num_timesteps - 1, device=x_0.device)
    mean = gather_at(schedule.alpha_bar.sqrt(), last, x_0) * x_0
    log_variance = gather_at((-schedule.alpha_bar).log1p(), last, x_0)
    zero = torch.zeros_like(log_variance)
    return bits_per_dim(normal_kl(mean, log_variance, zero, zero))
