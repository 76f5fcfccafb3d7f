"""Seeds to images: the law of the noise, and that an image is its seed's alone."""

import math
from itertools import pairwise

import pytest
import torch

from ddpm_core.data.pixels import to_uint8
from ddpm_core.diffusion.respacing import respace
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.samplers import sample
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.random import Purpose, normals
from ddpm_core.sampling.generate import frames_of, generate
from ddpm_core.types import Tensor

T = 12
SHAPE = (2, 3, 4)
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_start=0.01, beta_end=0.4))
EVERY_SAMPLER = [
    SamplerConfig(),
    SamplerConfig(variance="fixed_small", num_steps=5),
    SamplerConfig(name="ddim", num_steps=5),
    SamplerConfig(name="ddim", eta=0.5, clip="dynamic"),
    SamplerConfig(name="dpm_solver", num_steps=5),
    SamplerConfig(name="heun", num_steps=5),
]


def bent(x_t: Tensor, t: Tensor) -> Tensor:
    """Nothing in particular, but not linear."""
    return torch.tanh(2 * x_t - x_t.roll(1, dims=3) + 0.1 * t[:, None, None, None])


P = ReverseProcess(denoiser=bent, schedule=SCHEDULE)


@pytest.mark.parametrize("config", EVERY_SAMPLER)
def test_the_image_of_a_seed_does_not_depend_on_who_else_is_asked_for(config: SamplerConfig) -> None:
    seeds = torch.tensor([17, 3, 2**63 - 1, 0, 2**40])
    together = generate(P, config, seeds, SHAPE)
    assert (together.dtype, together.shape) == (torch.uint8, (5, *SHAPE))
    for i in range(5):
        assert torch.equal(generate(P, config, seeds[i : i + 1], SHAPE)[0], together[i])
    order = torch.tensor([4, 1, 0, 3, 2])
    assert torch.equal(generate(P, config, seeds[order], SHAPE), together[order])
    assert len({tuple(image.flatten().tolist()) for image in together}) == 5


@pytest.mark.parametrize("steps", [list(range(T)), [0, 5, 11]])
def test_noise_is_keyed_by_the_seed_of_the_image_and_the_step(steps: list[int]) -> None:
    """x_T by (seed, T); the noise of the step from t, found again in what it did, by (seed, t), the schedule's own t."""
    seeds, states = torch.tensor([5, 2**33 + 1]), []
    config = ReverseConfig(prediction="x_0", variance="fixed_large")
    p = ReverseProcess(denoiser=lambda x_t, t: 0 * x_t, schedule=SCHEDULE, config=config)
    sampler = SamplerConfig(num_steps=len(steps))
    generate(p, sampler, seeds, SHAPE, on_step=lambda t, x_t, x_0_hat: states.append((t, x_t.double())))
    assert [t for t, _ in states] == steps[::-1]
    assert torch.equal(states[0][1], normals(0, Purpose.SAMPLING, seeds, SHAPE, step=T).double())
    taken = respace(SCHEDULE, steps)
    for (t, x_t), (_, x_next) in pairwise(states):
        # Eq. 7 of an x_0_hat of 0
        mean = float(taken.posterior_mean_coef_x_t[steps.index(t)]) * x_t
        eps = (x_next - mean) / math.sqrt(float(taken.betas[steps.index(t)]))
        expected = normals(0, Purpose.SAMPLING, seeds, SHAPE, step=t).double()
        torch.testing.assert_close(eps, expected, rtol=0, atol=1e-5)


def test_images_are_levels_of_what_is_sampled() -> None:
    seeds = torch.arange(4)

    def noise(t: int) -> Tensor:
        return normals(0, Purpose.SAMPLING, seeds, SHAPE, step=t)

    x_0 = sample(P, SamplerConfig(clip="none"), noise(T), noise)
    images = generate(P, SamplerConfig(clip="none"), seeds, SHAPE)
    assert torch.equal(images, to_uint8(x_0))
    outside = x_0.abs() > 1 + 1 / 127.5
    assert bool(outside.any())
    assert torch.equal(images[outside] == 255, x_0[outside] > 0)


@pytest.mark.parametrize("config", EVERY_SAMPLER)
@pytest.mark.parametrize("num_frames", [1, 2, 4, 6, 100])
def test_the_strip_goes_from_noise_to_the_image(config: SamplerConfig, num_frames: int) -> None:
    """Its labels count as the paper does: T is x_T, 0 is x_0."""
    seeds, seen = torch.tensor([7, 8]), {}
    image = generate(P, config, seeds, SHAPE, on_step=lambda t, x_t, x_0_hat: seen.update({t + 1: to_uint8(x_t)}))
    frames, times = frames_of(lambda look: generate(P, config, seeds, SHAPE, on_step=look), num_frames)
    assert frames.shape == (2, len(times), *SHAPE)
    assert len(times) == min(num_frames, len(seen) + 1)
    assert torch.equal(frames[:, -1], image)
    assert times[-1] == 0
    assert times == sorted(set(times), reverse=True)
    if num_frames > 1:
        assert times[0] == T
    for i, t in enumerate(times[:-1]):
        assert torch.equal(frames[:, i], seen[t])


def test_generating_keeps_no_graph_and_leaves_the_process_as_it_is() -> None:
    weight = torch.ones(1, requires_grad=True)
    p = ReverseProcess(denoiser=lambda x_t, t: weight * x_t, schedule=SCHEDULE)
    seen: list[bool] = []
    generate(p, SamplerConfig(), torch.arange(2), SHAPE, on_step=lambda t, x_t, x_0_hat: seen.append(x_t.requires_grad))
    assert not any(seen)
    assert p.schedule is SCHEDULE
