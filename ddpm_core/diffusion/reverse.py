"""The reverse process p_theta: a denoiser, and what its output means (Ho, Jain, Abbeel 2020, Section 3.2)."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from ddpm_core.diffusion.checks import check_like, check_name
from ddpm_core.diffusion.process import Prediction, gather_at, predict_x_0, q_posterior
from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.errors import InputError
from ddpm_core.types import Denoiser, Float, Int, Tensor

Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]
Clip = Literal["none", "static", "dynamic", "original"]

_DYNAMIC_QUANTILE = 0.995


@dataclass(frozen=True, kw_only=True)
class ReverseConfig:
    """What the network's output means.

    Raises:
        InputError: if a name is unknown.
    """

    prediction: Prediction = "eps"
    """What it predicts: eps (the paper's choice), x_0, the posterior's mean, or v."""
    variance: Variance = "fixed_large"
    """Of a reverse step. fixed_small is the posterior's, right for an x_0 that is one point; fixed_large is beta_t,
    right for an x_0 that is standard normal; learned is the network's own log-variance, learned_range its place
    between those two (Nichol and Dhariwal 2021, Eq. 15)."""

    def __post_init__(self) -> None:
        check_name(self.prediction, Prediction, "reverse.prediction")
        check_name(self.variance, Variance, "reverse.variance")

    @property
    def learns_variance(self) -> bool:
        """Whether the network gives a second output of the image's shape."""
        return self.variance in ("learned", "learned_range")

    def num_outputs(self, channels: int) -> int:
        """Channels of the network's output for images of so many."""
        return 2 * channels if self.learns_variance else channels


class PMeanVariance(NamedTuple):
    """p_theta(x_{t-1} | x_t), and the x_0 that it was made from."""

    mean: Float[Tensor, "b c h w"]
    variance: Float[Tensor, "b #c #h #w"]
    log_variance: Float[Tensor, "b #c #h #w"]
    x_0_hat: Float[Tensor, "b c h w"]


@dataclass(frozen=True, kw_only=True)
class ReverseProcess:
    """p_theta: a denoiser, the schedule at whose timesteps it is asked, and what its output means.

    Raises:
        InputError: if the network predicts eps and the schedule ends without signal.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    config: ReverseConfig = field(default_factory=ReverseConfig)

    def __post_init__(self) -> None:
        check_prediction(self.config, self.schedule)


def check_prediction(config: ReverseConfig, schedule: NoiseSchedule) -> None:
    """Refuse eps-prediction where x_T holds nothing of x_0: eps is x_T itself there, and x_0 does not follow from it.

    Raises:
        InputError: if so.
    """
    if config.prediction == "eps" and schedule.ends_in_noise:
        raise InputError(
            "reverse.prediction is eps and the schedule ends at alpha_bar = 0 (zero terminal SNR, as jsd's does), "
            "where eps does not tell x_0; expected x_0, mean or v"
        )


def p_mean_variance(
    p: ReverseProcess, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], *, clip: Clip = "static"
) -> PMeanVariance:
    """One reverse step p_theta(x_{t-1} | x_t) (Eq. 11, by way of x_0_hat and Eq. 7).

    Args:
        clip: what is done to x_0_hat; see `clip_x_0`.
    """
    return interpret(p.denoiser(x_t, t), x_t, t, p.schedule, p.config, clip=clip)


def interpret(
    output: Float[Tensor, "b o h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
    config: ReverseConfig,
    *,
    clip: Clip,
) -> PMeanVariance:
    """The reverse step that a network's output means.

    Args:
        output: c channels, or 2c of which the second half says the variance.
        clip: of x_0_hat, from which the mean follows. Where the network predicts the mean, the paper's published code clips
            the x_0_hat that it shows and leaves the mean as predicted: original does that, static does not.

    Raises:
        InputError: if the output has another shape.
    """
    # Under autocast the network speaks bfloat16; what follows from its words is computed as x_t is.
    value, second = split_output(output.to(x_t.dtype), x_t, config)
    x_0_hat = clip_x_0(predict_x_0(config.prediction, value, x_t, t, schedule), clip)
    mean = q_posterior(x_0_hat, x_t, t, schedule).mean
    # A prediction of the mean that was not clipped is the mean itself, free of the rounding on the way to x_0 and back.
    if config.prediction == "mean" and clip in ("none", "original"):
        mean = value
    variance, log_variance = _variance(config.variance, second, x_t, t, schedule)
    return PMeanVariance(mean, variance, log_variance, x_0_hat)


def split_output(
    output: Float[Tensor, "b o h w"], x_t: Float[Tensor, "b c h w"], config: ReverseConfig
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"] | None]:
    """The network's prediction, and what it says of the variance if that is learned.

    Raises:
        InputError: if the output has not as many channels as the config asks for, or not x_t's other dimensions.
    """
    channels = x_t.shape[1]
    expected = config.num_outputs(channels)
    if output.shape[1] != expected:
        raise InputError(
            f"the network gives {output.shape[1]} channels; expected {expected} for images of {channels} "
            f"and a variance that is {config.variance}"
        )
    value = output[:, :channels]
    check_like(value, x_t, "the network's prediction", "x_t")
    return value, output[:, channels:] if config.learns_variance else None


def _variance(
    variance: Variance,
    second: Float[Tensor, "b c h w"] | None,
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
) -> tuple[Float[Tensor, "b #c #h #w"], Float[Tensor, "b #c #h #w"]]:
    """Variance and log-variance of the reverse step."""
    small = gather_at(schedule.posterior_log_variance_clipped, t, x_t)
    match variance:
        case "fixed_small":
            return gather_at(schedule.posterior_variance, t, x_t), small
        case "fixed_large":
            # The published code's choice at t = 0, where only the likelihood sees it: posterior_variance[1].
            smallest = schedule.posterior_log_variance_clipped[:1].exp()
            large = torch.cat((smallest, schedule.betas[1:]))
            return gather_at(large, t, x_t), gather_at(large.log(), t, x_t)
        case "learned":
            assert second is not None
            return second.exp(), second
        case "learned_range":
            assert second is not None
            # Nichol and Dhariwal 2021, Eq. 15; their code's v runs over [-1, 1]
            share = (second + 1) / 2
            log_variance = share * gather_at(schedule.betas.log(), t, x_t) + (1 - share) * small
            return log_variance.exp(), log_variance


def clip_x_0(x_0_hat: Float[Tensor, "b c h w"], clip: Clip) -> Float[Tensor, "b c h w"]:
    """Bring x_0_hat into [-1, 1], where images are.

    Args:
        clip: none leaves it, static clamps it, dynamic first divides it by the 99.5th percentile of its magnitude, an
            image at a time, where that exceeds 1 (Saharia et al. 2022, Section 2.3): less saturation under guidance.
            original clamps it as static does; a predicted mean then stays as it is (see `interpret`).

    Raises:
        InputError: if the name is unknown.
    """
    check_name(clip, Clip, "sampler.clip")
    match clip:
        case "none":
            return x_0_hat
        case "static" | "original":
            return x_0_hat.clamp(-1, 1)
        case "dynamic":
            scale = x_0_hat.abs().flatten(1).quantile(_DYNAMIC_QUANTILE, dim=1).clamp(min=1)[:, None, None, None]
            return x_0_hat.clamp(-scale, scale) / scale


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float, channels: int) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, Eq. 6): away from what is drawn without a label.

    The four predictions are affine in each other with the same coefficients for both networks, so that guiding one
    guides all. A learned variance stays the conditional network's.

    Args:
        scale: w; 0 is the conditional network itself.
        channels: of an image; the output may have twice as many.
    """

    def denoiser(x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b o h w"]:
        with_label = conditional(x_t, t)
        if scale == 0:
            return with_label
        without = unconditional(x_t, t)
        value = (1 + scale) * with_label[:, :channels] - scale * without[:, :channels]
        return torch.cat((value, with_label[:, channels:]), dim=1)

    return denoiser
