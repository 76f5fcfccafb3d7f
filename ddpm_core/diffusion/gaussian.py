"""Normal distributions: the divergence of two, and the likelihood of an 8-bit image under one (Ho et al. 2020, Section 3.3)."""

import math

import torch

from ddpm_core.types import Float, Tensor

_HALF_BIN = 1 / 255
"""Half the distance of two of the 256 levels, on the scale of [-1, 1]."""
_SQRT_HALF = math.sqrt(0.5)


def normal_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N_1 || N_2) of diagonal normal distributions, in nats, an element at a time; the arguments broadcast."""
    difference = log_variance_1 - log_variance_2
    # exp(d) - 1 - d by expm1: two almost equal variances would otherwise cancel
    return 0.5 * (torch.expm1(difference) - difference + (mean_1 - mean_2) ** 2 * torch.exp(-log_variance_2))


def discretized_log_likelihood(
    x_0: Float[Tensor, "b c h w"], mean: Float[Tensor, "b c h w"], log_variance: Float[Tensor, "b #c #h #w"]
) -> Float[Tensor, "b c h w"]:
    """Log-probability of each value of 8-bit images under a normal distribution cut into 256 bins (Eq. 13), in nats.

    The first and the last bin reach to infinity, so that the probabilities of all levels sum to 1. The normal CDF is exact
    and its logarithm keeps its digits in the tails; the paper's code has a tanh in its place, and 1e-12 as its least
    probability.

    Args:
        x_0: the levels, linear from 0 -> -1 to 255 -> 1.
    """
    scale = torch.exp(-0.5 * log_variance)
    centred = x_0 - mean
    # Of a bin between two levels both ends are taken on the lower side of the mean: differences there keep their digits.
    mirrored = -centred.abs()
    upper = _log_cdf(scale * (mirrored + _HALF_BIN))
    lower = _log_cdf(scale * (mirrored - _HALF_BIN))
    between = upper + torch.log(-torch.expm1(lower - upper))
    # The last bin is the first one seen in a mirror.
    outermost = _log_cdf(scale * (torch.where(x_0 < 0, centred, -centred) + _HALF_BIN))
    # The levels are 2/255 apart: half a bin tells the outermost from their neighbours, whatever the rounding.
    return torch.where(x_0.abs() > 1 - _HALF_BIN, outermost, between)


def _log_cdf(x: Tensor) -> Tensor:
    """log Phi(x), with a gradient that keeps its digits in the lower tail.

    That of torch.special.log_ndtr is exp(-x^2 / 2 - log Phi(x)), a difference of large numbers: in float32 it is wrong by
    4% at x = -1000, and inf, 0 or nan beyond.
    """
    tail, body = x.clamp(max=-1) * _SQRT_HALF, x.clamp(min=-1) * _SQRT_HALF
    below = torch.log(torch.special.erfcx(-tail) / 2) - tail**2
    return torch.where(x < -1, below, torch.log1p(-torch.erfc(body) / 2))


def bits_per_dim(nats: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Nats an element to bits a dimension, a mean over each image's elements."""
    return nats.flatten(1).mean(dim=1) / math.log(2)
