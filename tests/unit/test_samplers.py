"""The samplers, on data whose optimal denoiser is known in closed form."""

import math
from itertools import pairwise

import pytest
import torch

from ddpm_core.diffusion.process import predict_x_0
from ddpm_core.diffusion.reverse import Clip, ReverseProcess
from ddpm_core.diffusion.samplers import SamplerConfig, sample
from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule
from ddpm_core.random import Purpose, normals
from ddpm_core.types import Denoiser, Tensor

MEAN, DEVIATION = 0.3, 0.5
PAPER = make_schedule(ScheduleConfig())
SHORT = make_schedule(ScheduleConfig(num_timesteps=10, beta_start=0.02, beta_end=0.5))


def keyed(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32):
    """Noise as `generate` gives it: a function of t alone."""

    def noise(t: int) -> Tensor:
        return normals(0, Purpose.SAMPLING, torch.arange(shape[0]), shape[1:], step=t).to(dtype)

    return noise


def gaussian_denoiser(schedule: NoiseSchedule) -> Denoiser:
    """E[eps | x_t] for pixels x_0 ~ N(MEAN, DEVIATION^2), all independent."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar[t][:, None, None, None].to(x_t.dtype)
        variance = alpha_bar * DEVIATION**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * MEAN) / variance

    return denoise


def process(denoiser: Denoiser, schedule: NoiseSchedule = SHORT) -> ReverseProcess:
    """It predicts eps."""
    return ReverseProcess(denoiser=denoiser, schedule=schedule)


def bent_denoiser(x_t: Tensor, t: Tensor) -> Tensor:
    """Nothing in particular, but not linear."""
    return torch.tanh(2 * x_t + 0.1 * t[:, None, None, None])


@pytest.mark.parametrize(
    ("config", "bias"),
    [
        (SamplerConfig(variance="fixed_large", clip="none"), 0.005),
        (SamplerConfig(variance="fixed_small", clip="none"), 0.005),
        (SamplerConfig(variance="fixed_small", num_steps=250, clip="none"), 0.02),
        (SamplerConfig(name="ddim", clip="none"), 0.005),
        (SamplerConfig(name="ddim", num_steps=100, clip="none"), 0.01),
        (SamplerConfig(name="ddim", num_steps=250, eta=1.0, clip="none"), 0.02),
    ],
)
def test_gaussian_data_come_out_again(config: SamplerConfig, bias: float) -> None:
    """Mean and deviation within 4 standard errors, and the error of a finite number of steps relative to DEVIATION."""
    shape = (4, 1, 32, 32)
    noise = keyed(shape)
    x_0 = sample(process(gaussian_denoiser(PAPER), PAPER), config, noise(1000), noise).double()
    n = x_0.numel()
    assert float(x_0.mean()) == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(n) + bias * DEVIATION)
    assert float(x_0.std()) == pytest.approx(DEVIATION, abs=4 * DEVIATION / math.sqrt(2 * n) + bias * DEVIATION)


@pytest.mark.parametrize("clip", ["static", "none", "dynamic"])
@pytest.mark.parametrize("num_steps", [None, 4])
def test_ddim_with_eta_1_is_ancestral_with_fixed_small(clip: Clip, num_steps: int | None) -> None:
    shape = (2, 1, 3, 3)
    noise = keyed(shape, torch.float64)
    small = SamplerConfig(variance="fixed_small", num_steps=num_steps, clip=clip)
    ddim = SamplerConfig(name="ddim", eta=1.0, num_steps=num_steps, clip=clip)
    one, other = (sample(process(bent_denoiser), config, noise(10), noise) for config in (small, ddim))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_ancestral_is_algorithm_2() -> None:
    """In plain Python numbers, for one pixel and a denoiser that says eps_hat = x_t / 2."""
    noise = keyed((1, 1, 1, 1), torch.float64)
    x = float(noise(10))
    betas = [0.02 + t * 0.48 / 9 for t in range(10)]
    for t in reversed(range(10)):
        bar = math.prod(1 - b for b in betas[: t + 1])
        x = (x - betas[t] / math.sqrt(1 - bar) * x / 2) / math.sqrt(1 - betas[t])
        x += math.sqrt(betas[t]) * float(noise(t)) if t > 0 else 0
    config = SamplerConfig(variance="fixed_large", clip="none")
    assert float(sample(process(lambda x_t, t: x_t / 2), config, noise(10), noise)) == pytest.approx(x, rel=1e-9)


def test_ddim_is_eq_12() -> None:
    """Song et al. 2021, in plain Python numbers, three steps with eta = 0.6 and eps_hat = x_t / 2."""
    noise = keyed((1, 1, 1, 1), torch.float64)
    x = float(noise(10))
    for t, t_prev in pairwise([9, 4, 0, -1]):  # 4.5 is rounded away from T-1
        bar, prev = (float(SHORT.alpha_bar[i]) if i >= 0 else 1.0 for i in (t, t_prev))
        sigma = 0.6 * math.sqrt((1 - prev) / (1 - bar)) * math.sqrt(1 - bar / prev)
        x_0_hat = (x - math.sqrt(1 - bar) * x / 2) / math.sqrt(bar)
        x = math.sqrt(prev) * x_0_hat + math.sqrt(1 - prev - sigma**2) * x / 2 + sigma * float(noise(t))
    config = SamplerConfig(name="ddim", eta=0.6, num_steps=3, clip="none")
    assert float(sample(process(lambda x_t, t: x_t / 2), config, noise(10), noise)) == pytest.approx(x, rel=1e-9)


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (SamplerConfig(), list(range(9, 0, -1))),
        (SamplerConfig(num_steps=4), [9, 6, 3]),
        (SamplerConfig(num_steps=1), []),
        (SamplerConfig(name="ddim", eta=0.5, num_steps=4), [9, 6, 3]),
        (SamplerConfig(name="ddim", num_steps=4), []),
    ],
)
def test_noise_is_asked_for_only_where_it_is_used(config: SamplerConfig, asked: list[int]) -> None:
    noise, seen = keyed((1, 1, 2, 2)), []
    sample(process(bent_denoiser), config, noise(10), lambda t: seen.append(t) or noise(t))
    assert seen == asked


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_denoiser_and_on_step_see_the_schedules_own_timesteps(name) -> None:
    noise, denoised, steps = keyed((2, 1, 2, 2)), [], []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        denoised.append((t.tolist(), x_t.clone()))
        return bent_denoiser(x_t, t)

    config = SamplerConfig(name=name, num_steps=4, clip="none")
    sample(process(denoise), config, noise(10), noise, on_step=lambda t, x_t, x_0_hat: steps.append((t, x_t, x_0_hat)))
    assert [t for t, _ in denoised] == [[9, 9], [6, 6], [3, 3], [0, 0]]
    assert [t for t, _, _ in steps] == [9, 6, 3, 0]
    assert torch.equal(steps[0][1], noise(10))
    for (ts, seen), (_, x_t, x_0_hat) in zip(denoised, steps, strict=True):
        assert torch.equal(x_t, seen)
        t = torch.tensor(ts)
        torch.testing.assert_close(x_0_hat, predict_x_0("eps", bent_denoiser(x_t, t), x_t, t, SHORT))


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_clipping_keeps_images_in_range(name) -> None:
    noise = keyed((1, 1, 8, 8))
    x_0 = sample(process(lambda x_t, t: 0 * x_t), SamplerConfig(name=name), 3 * noise(10), noise)
    assert float(x_0.abs().max()) <= 1


def test_sampling_keeps_no_graph() -> None:
    noise, weight = keyed((1, 1, 2, 2)), torch.ones(1, requires_grad=True)
    assert not sample(process(lambda x_t, t: weight * x_t), SamplerConfig(), noise(10), noise).requires_grad


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num-steps is 0; expected 1 or more"),
        ({"eta": -0.1}, "eta is -0.1; expected 0 to 1"),
        ({"eta": 1.5}, "eta is 1.5; expected 0 to 1"),
    ],
)
def test_a_config_out_of_range_is_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**fields)


def test_more_steps_than_the_schedule_has_are_refused() -> None:
    noise = keyed((1, 1, 2, 2))
    with pytest.raises(ValueError, match="11 sampling steps of a schedule of 10; expected 1 to 10"):
        sample(process(bent_denoiser), SamplerConfig(num_steps=11), noise(10), noise)
