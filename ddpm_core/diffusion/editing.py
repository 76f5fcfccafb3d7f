"""What the chain does besides drawing anew: go part of the way and back, mix two images, complete one."""

from collections.abc import Callable, Sequence

import torch

from ddpm_core.diffusion.checks import check_images, check_latents, check_like
from ddpm_core.diffusion.process import gather_at, q_sample
from ddpm_core.diffusion.respacing import spaced_process
from ddpm_core.diffusion.reverse import Clip, ReverseProcess, p_mean_variance
from ddpm_core.diffusion.sampler_config import SamplerConfig, steps_taken
from ddpm_core.diffusion.samplers import Noise, OnStep, sample
from ddpm_core.errors import InputError
from ddpm_core.types import Bool, Float, Tensor

ResampleNoise = Callable[[int, int], Tensor]


def reconstruct(
    p: ReverseProcess,
    sampler: SamplerConfig,
    x_0: Float[Tensor, "b c h w"],
    step: int,
    eps: Float[Tensor, "b c h w"],
    noise: Noise,
) -> Float[Tensor, "b c h w"]:
    """Diffuse images to a step and denoise them from there: what the chain still knows of them at that step (Fig. 7).

    Args:
        x_0: images in [-1, 1].
        step: in [0, T-1]; a small one changes details, T-1 everything.
        eps: standard normal noise.
        noise: as `sample` asks it.

    Raises:
        InputError: if x_0 holds what is no image, or the step is out of its range.
    """
    check_images(x_0)
    return sample(p, sampler, q_sample(x_0, _all(step, x_0), eps, p.schedule), noise, start=step)


def interpolate(
    p: ReverseProcess,
    sampler: SamplerConfig,
    x_0: Float[Tensor, "b c h w"],
    x_0_other: Float[Tensor, "b c h w"],
    share: float,
    step: int,
    eps: Float[Tensor, "b c h w"],
    noise: Noise,
) -> Float[Tensor, "b c h w"]:
    """Mix two images where they are diffused, and denoise the mixture (Section 4.4, Fig. 8).

    Both are diffused by the same noise. So what it adds to the mixture is as much as to each of them.

    Args:
        x_0: images in [-1, 1].
        x_0_other: as many.
        share: of the other image, from 0 to 1 (lambda).
        step: in [0, T-1] at which they are mixed; the larger, the coarser is what they share.
        eps: standard normal noise.
        noise: as `sample` asks it; the same one for all shares gives a smooth way from image to image.

    Raises:
        InputError: if an argument is out of its range.
    """
    check_images(x_0)
    check_images(x_0_other, "x_0_other")
    check_like(x_0_other, x_0, "x_0_other", "x_0")
    if not 0 <= share <= 1:
        raise InputError(f"the share of the other image is {share}; expected 0 to 1")
    t = _all(step, x_0)
    mixed = (1 - share) * q_sample(x_0, t, eps, p.schedule) + share * q_sample(x_0_other, t, eps, p.schedule)
    return sample(p, sampler, mixed, noise, start=step)


def progressive(
    p: ReverseProcess,
    sampler: SamplerConfig,
    x_T: Float[Tensor, "b c h w"],
    noise: Noise,
    timesteps: Sequence[int],
    on_step: OnStep | None = None,
) -> tuple[Float[Tensor, "b s c h w"], Float[Tensor, "b c h w"]]:
    """x_0_hat on the way from noise to image: coarse first, then fine (Section 4.3, Fig. 6).

    Args:
        timesteps: where to look; each one a step that the sampler takes.
        on_step: as `sample` tells it.

    Returns:
        x_0_hat at each of them, in the order given, and x_0.

    Raises:
        InputError: if there are none, or the sampler does not take one of them.
    """
    taken = steps_taken(sampler, p.schedule.num_timesteps)
    if not timesteps:
        raise InputError(f"x_0_hat was asked for at 0 steps; expected 1 or more of the sampler's: {taken}")
    for t in timesteps:
        if t not in taken:
            raise InputError(f"x_0_hat was asked for at step {t}; expected one of the sampler's: {taken}")
    seen: dict[int, Tensor] = {}

    def look(t: int, x_t: Tensor, x_0_hat: Tensor) -> None:
        if t in timesteps:
            seen[t] = x_0_hat
        if on_step is not None:
            on_step(t, x_t, x_0_hat)

    x_0 = sample(p, sampler, x_T, noise, on_step=look)
    return torch.stack([seen[t] for t in timesteps], dim=1), x_0


@torch.no_grad()
def inpaint(
    p: ReverseProcess,
    x_0: Float[Tensor, "b c h w"],
    known: Tensor,
    x_T: Float[Tensor, "b c h w"],
    noise: ResampleNoise,
    *,
    num_steps: int | None = None,
    resamplings: int = 10,
    clip: Clip = "static",
) -> Float[Tensor, "b c h w"]:
    """Complete images under a mask (RePaint; Lugmayr et al. 2022, Algorithm 1).

    At every step the known part is diffused from x_0 and the rest drawn from p_theta. To bring the two into harmony a
    step is done several times over, going back by one step of q in between.

    Args:
        x_0: images in [-1, 1]; what they hold where they are not known does not matter, no number included.
        known: True or 1 where x_0 is to be kept, False or 0 where it is to be made, of any type; of whole numbers 255 is
            as good as 1. Of a shape that broadcasts to x_0's, as [h, w] or [b, 1, h, w].
        x_T: standard normal noise.
        noise: gives standard normals [b, c, h, w] for (a step t, the number of the draw at that step).
        num_steps: steps, of the schedule's; none for all of them.
        resamplings: how often each step is done, 1 or more (U there).

    Returns:
        Images in [-1, 1] that equal x_0 where it is known.

    Raises:
        InputError: if an argument is out of its range.
    """
    kept_where = _as_mask(known, x_0)
    x_0 = x_0.where(kept_where, torch.zeros_like(x_0))
    check_images(x_0)
    check_latents(x_T, "x_T")
    check_like(x_T, x_0, "x_T", "x_0")
    if resamplings < 1:
        raise InputError(f"resamplings is {resamplings}; expected 1 or more")
    original = steps_taken(SamplerConfig(num_steps=num_steps), p.schedule.num_timesteps)
    p = spaced_process(p, original)
    schedule, x_t = p.schedule, x_T
    for step in reversed(range(schedule.num_timesteps)):
        t = _all(step, x_t)
        for again in reversed(range(resamplings if step > 0 else 1)):
            reverse = p_mean_variance(p, x_t, t, clip=clip)
            if step == 0:
                return x_0.where(kept_where, reverse.mean)
            # three draws a round: the known part's, the unknown part's, the way back's
            kept = q_sample(x_0, t - 1, noise(original[step], 3 * again), schedule)
            made = reverse.mean + (0.5 * reverse.log_variance).exp() * noise(original[step], 3 * again + 1)
            x_t = kept.where(kept_where, made)
            if again > 0:  # Eq. 2: x_t from x_{t-1}
                x_t = gather_at(schedule.alphas.sqrt(), t, x_t) * x_t
                x_t = x_t + gather_at(schedule.betas.sqrt(), t, x_t) * noise(original[step], 3 * again + 2)
    raise AssertionError("a schedule has a step")


def _as_mask(known: Tensor, x_0: Float[Tensor, "b c h w"]) -> Bool[Tensor, "..."]:
    """Where x_0 is known, whatever the mask's type.

    Raises:
        InputError: if its shape or a value is no mask's.
    """
    sizes = zip(reversed(known.shape), reversed(x_0.shape), strict=False)
    if known.ndim > x_0.ndim or any(size not in (1, full) for size, full in sizes):
        raise InputError(
            f"the mask has shape {list(known.shape)}, x_0 has {list(x_0.shape)}; expected one that broadcasts"
        )
    full = (known == 255) & (not known.dtype.is_floating_point)
    other = known[(known != 0) & (known != 1) & ~full]
    if len(other) > 0:
        raise InputError(
            f"the mask has {float(other[0]):g} among its values; expected 1 where x_0 is known, 0 elsewhere"
        )
    return known.to(x_0.device) != 0


def _all(step: int, like: Float[Tensor, "b c h w"]) -> Tensor:
    return torch.full((len(like),), step, device=like.device)
