"""Seeds to images: image number 17 is the same image, whatever the batch, the machine, or who asked."""

from collections.abc import Callable
from dataclasses import replace

import torch

from ddpm_core.data.pixels import to_uint8
from ddpm_core.diffusion.reverse import ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.samplers import sample
from ddpm_core.errors import InputError
from ddpm_core.precision import whole_float32
from ddpm_core.random import Purpose, normals
from ddpm_core.types import Float, Int, Tensor, UInt8

# An image is named by its seed alone: the seed is the counter's index, the key is this constant.
_KEY = 0


@torch.no_grad()
@whole_float32()
def generate(
    p: ReverseProcess,
    sampler: SamplerConfig,
    seeds: Int[Tensor, " b"],
    shape: tuple[int, int, int],
    *,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> UInt8[Tensor, "b c h w"]:
    """Sample one image a seed.

    The noise of the reverse step from t is keyed by (seed, t); x_T by (seed, T).

    Args:
        p: for a network with classes its denoiser knows the label of each seed.
        seeds: int64, each in [0, 2^63).
        shape: channels, height, width.
        on_step: told t, x_t and x_0_hat at every step of the sampler.

    Returns:
        Images in 0..255.

    Raises:
        InputError: if a value of an image is not finite, naming its seed.
    """
    p = replace(p, schedule=p.schedule.to(seeds.device))
    noise = seeded_noise(seeds, shape)
    x_T = noise(p.schedule.num_timesteps)
    x_0 = sample(p, sampler, x_T, noise, on_step=on_step)
    _check_finite(x_0, seeds)
    return to_uint8(x_0)


def _check_finite(x_0: Float[Tensor, "b c h w"], seeds: Int[Tensor, " b"]) -> None:
    """Rounded to levels, NaN is black, and infinity white: an image like any other."""
    finite = x_0.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = seeds[~finite].tolist()
        raise InputError(
            f"the image of seed {bad[0]} has values that are not finite, as have {len(bad)} of the {len(seeds)} in its batch; "
            "expected finite ones: sample with --sample.precision float32, in more steps or by another sampler; if that "
            "does not help, another checkpoint"
        )


def seeded_noise(seeds: Int[Tensor, " b"], shape: tuple[int, int, int]) -> Callable[[int], Float[Tensor, "b c h w"]]:
    """Standard normals for a step, in [0, 2^24): a function of (seed, step) alone; x_T is that of step T."""
    return lambda step: normals(_KEY, Purpose.SAMPLING, seeds, shape, step=step)


def frames_of(
    make: Callable[[Callable[[int, Tensor, Tensor], None]], Tensor], num_frames: int
) -> tuple[UInt8[Tensor, "b f c h w"], list[int]]:
    """x_t on its way from x_T to x_0, evenly spaced over the sampler's steps.

    Args:
        make: generates one batch, and calls what it is given at every step, as `generate` does.

    Returns:
        The frames, the last of them x_0, and the t of each (0 for x_0; T for x_T).
    """
    states: list[Tensor] = []
    times: list[int] = []

    def keep(t: int, x_t: Tensor, x_0_hat: Tensor) -> None:
        states.append(to_uint8(x_t))
        times.append(t + 1)

    x_0 = make(keep)
    states, times = [*states, x_0], [*times, 0]
    # counted down from x_0, so that it is there even if it is the only one
    chosen = torch.linspace(len(states) - 1, 0, min(num_frames, len(states))).round().int().flip(0).tolist()
    return torch.stack([states[i] for i in chosen], dim=1), [times[i] for i in chosen]
