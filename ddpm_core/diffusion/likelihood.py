"""The variational bound of given images, term by term (Ho, Jain, Abbeel 2020, Eq. 5), and the distortion beside it (Fig. 5)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ddpm_core.diffusion.checks import check_levels
from ddpm_core.diffusion.losses import bound_term, prior_term
from ddpm_core.diffusion.process import q_sample
from ddpm_core.diffusion.reverse import Clip, ReverseProcess, p_mean_variance
from ddpm_core.errors import InputError
from ddpm_core.types import Float, Int, Tensor

Noise = Callable[[int], Tensor]


class Bound(NamedTuple):
    """The bound of b images; bits/dim, float64."""

    prior: Float[Tensor, " b"]
    """L_T."""
    terms: Float[Tensor, "b s"]
    """L_{t-1} at each t that was asked for; at t = 0 it is L_0, the decoder's."""
    x_0_mse: Float[Tensor, "b s"]
    """Mean squared error of x_0_hat there, on the scale of [-1, 1]."""


@torch.no_grad()
def variational_bound(
    p: ReverseProcess,
    x_0: Float[Tensor, "b c h w"],
    noise: Noise,
    *,
    timesteps: Sequence[int] | None = None,
    clip: Clip = "static",
) -> Bound:
    """The terms of the bound, each by one sample of x_t.

    Everything but the network is computed in float64: most terms are small differences of large numbers.

    Args:
        x_0: 8-bit levels in [-1, 1].
        noise: gives standard normals [b, c, h, w] for each t.
        timesteps: which terms; all of them by default, and only then do prior and terms sum to the bound.
        clip: what is done to x_0_hat; the paper's evaluation clips it, training does not.

    Raises:
        InputError: if x_0 holds what is no 8-bit image, the noise has another shape, or a timestep is out of its range.
    """
    check_levels(x_0)
    T = p.schedule.num_timesteps
    steps = list(range(T) if timesteps is None else timesteps)
    if not steps or min(steps) < 0 or max(steps) >= T:
        raise InputError(f"the timesteps are {steps}; expected one or more in 0 to {T - 1}")
    exact = x_0.double()

    def denoiser(x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b o h w"]:
        return p.denoiser(x_t.to(x_0.dtype), t)

    reverse = ReverseProcess(denoiser=denoiser, schedule=p.schedule, config=p.config)
    terms, errors = [], []
    for step in steps:
        t = torch.full((len(x_0),), step, device=x_0.device)
        x_t = q_sample(exact, t, noise(step), p.schedule)
        moments = p_mean_variance(reverse, x_t, t, clip=clip)
        terms.append(bound_term(moments, exact, x_t, t, p.schedule))
        errors.append((moments.x_0_hat - exact).square().mean(dim=(1, 2, 3)))
    return Bound(prior_term(exact, p.schedule), torch.stack(terms, dim=1), torch.stack(errors, dim=1))
