"""The reverse step: what a network's output means, in all its dialects."""

import math
from typing import get_args

import pytest
import torch

from ddpm_core.diffusion.process import Prediction, q_posterior, q_sample, to_prediction
from ddpm_core.diffusion.reverse import (
    ReverseConfig,
    ReverseProcess,
    Variance,
    check_prediction,
    clip_x_0,
    guided,
    interpret,
    p_mean_variance,
    split_output,
)
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.types import Tensor

T = 20
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_end=0.4))
BETAS = [1e-4 + i * (0.4 - 1e-4) / (T - 1) for i in range(T)]
BAR = [math.prod(1 - b for b in BETAS[: t + 1]) for t in range(T)]
POSTERIOR = [b * (1 - prev) / (1 - bar) for b, prev, bar in zip(BETAS, [1.0, *BAR], BAR, strict=False)]
EVERY_T = torch.arange(T)
PREDICTIONS = get_args(Prediction)


def noise(seed: int, channels: int = 2) -> Tensor:
    return torch.randn(T, channels, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def per_row(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


def of_output(output: Tensor, **config) -> ReverseProcess:
    return ReverseProcess(denoiser=lambda x_t, t: output, schedule=SCHEDULE, config=ReverseConfig(**config))


def test_p_mean_is_eq_11() -> None:
    x_t, eps_hat = noise(0), noise(1)
    p = p_mean_variance(of_output(eps_hat), x_t, EVERY_T, clip="none")
    factor = per_row([b / math.sqrt(1 - bar) for b, bar in zip(BETAS, BAR, strict=True)])
    expected = (x_t - factor * eps_hat) / per_row([math.sqrt(1 - b) for b in BETAS])
    torch.testing.assert_close(p.mean, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", ["none", "static"])
def test_all_predictions_of_one_x_0_are_one_step(prediction: Prediction, clip) -> None:
    x_0, eps = noise(0).clamp(-1, 1), noise(1)
    x_t = q_sample(x_0, EVERY_T, eps, SCHEDULE)
    output = to_prediction(prediction, x_0, x_t, EVERY_T, SCHEDULE)
    p = p_mean_variance(of_output(output, prediction=prediction), x_t, EVERY_T, clip=clip)
    torch.testing.assert_close(p.x_0_hat, x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.mean, q_posterior(x_0, x_t, EVERY_T, SCHEDULE).mean, rtol=1e-10, atol=1e-10)


def test_a_predicted_mean_is_the_mean_to_the_last_bit_unless_clipped() -> None:
    x_t, output = noise(0).float(), noise(1).float()
    p = of_output(output, prediction="mean")
    free, clipped = (p_mean_variance(p, x_t, EVERY_T, clip=clip) for clip in ("none", "static"))
    assert torch.equal(free.mean, output)
    torch.testing.assert_close(clipped.mean, q_posterior(clipped.x_0_hat, x_t, EVERY_T, SCHEDULE).mean)
    assert not torch.equal(clipped.mean, output)


def test_the_original_clips_what_it_shows_of_a_predicted_mean_and_not_the_mean() -> None:
    """Its p_mean_variance: model_mean = model_output, pred_xstart = clipped; of all other predictions it clips as static."""
    x_t, output = noise(0), noise(1)
    by_mean = p_mean_variance(of_output(output, prediction="mean"), x_t, EVERY_T, clip="original")
    assert torch.equal(by_mean.mean, output)
    assert float(by_mean.x_0_hat.abs().max()) <= 1
    for prediction in ("eps", "x_0", "v"):
        p = of_output(output, prediction=prediction)
        original, static = (p_mean_variance(p, x_t, EVERY_T, clip=clip) for clip in ("original", "static"))
        assert all(torch.equal(one, other) for one, other in zip(original, static, strict=True))


def test_the_denoiser_sees_x_t_and_t() -> None:
    x_t, seen = noise(0), []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return x

    p_mean_variance(ReverseProcess(denoiser=denoiser, schedule=SCHEDULE), x_t, EVERY_T)
    ((x, t),) = seen
    assert torch.equal(x, x_t)
    assert torch.equal(t, EVERY_T)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_fixed_variances_are_section_3_2(variance: Variance) -> None:
    p = p_mean_variance(of_output(noise(1), variance=variance), noise(0), EVERY_T)
    expected = POSTERIOR if variance == "fixed_small" else [POSTERIOR[1], *BETAS[1:]]
    torch.testing.assert_close(p.variance.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)
    logs = torch.tensor([POSTERIOR[1], *expected[1:]], dtype=torch.float64).log()
    torch.testing.assert_close(p.log_variance.flatten(), logs, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("variance", "true_variance"), [("fixed_large", 1.0), ("fixed_small", 0.0)])
def test_each_fixed_variance_is_right_for_its_data(variance: Variance, true_variance: float) -> None:
    """For x_0 ~ N(0, s^2) the reverse step's variance is known: beta_t for s = 1, the posterior's for s = 0."""
    p = p_mean_variance(of_output(noise(1), variance=variance), noise(0), EVERY_T)
    for t in range(1, T):
        # x_{t-1} and x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) z are jointly normal
        before = BAR[t - 1] * true_variance + 1 - BAR[t - 1]
        after = (1 - BETAS[t]) * before + BETAS[t]
        conditional = before - (1 - BETAS[t]) * before**2 / after
        assert float(p.variance[t]) == pytest.approx(conditional, rel=1e-9)


def test_a_learned_variance_is_the_second_output() -> None:
    output = noise(1, channels=4)
    p = p_mean_variance(of_output(output, variance="learned"), noise(0), EVERY_T)
    assert torch.equal(p.log_variance, output[:, 2:])
    torch.testing.assert_close(p.variance, output[:, 2:].exp())
    fixed = p_mean_variance(of_output(output[:, :2]), noise(0), EVERY_T)
    assert torch.equal(p.mean, fixed.mean)


@pytest.mark.parametrize("share", [-1.0, -0.2, 0.0, 1.0, 1.5])
def test_a_learned_range_lies_between_the_fixed_ones(share: float) -> None:
    """Nichol and Dhariwal 2021, Eq. 15: geometrically between the posterior's variance (-1) and beta (1), or beyond."""
    output = torch.cat((noise(1), torch.full_like(noise(1), share)), dim=1)
    p = p_mean_variance(of_output(output, variance="learned_range"), noise(0), EVERY_T)
    large, small = torch.tensor(BETAS).double(), torch.tensor([POSTERIOR[1], *POSTERIOR[1:]]).double()
    expected = large ** ((1 + share) / 2) * small ** ((1 - share) / 2)
    torch.testing.assert_close(p.variance, expected[:, None, None, None].expand_as(p.variance), rtol=1e-6, atol=0)
    torch.testing.assert_close(p.log_variance, p.variance.log(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variance", get_args(Variance))
def test_a_network_of_bfloat16_is_computed_with_in_the_images_type(variance: Variance) -> None:
    config = ReverseConfig(variance=variance)
    output = noise(1, channels=config.num_outputs(2)).bfloat16()
    step = interpret(output, noise(0).float(), EVERY_T, SCHEDULE, config, clip="static")
    assert {part.dtype for part in step} == {torch.float32}
    exact = interpret(output.double(), noise(0).double(), EVERY_T, SCHEDULE, config, clip="static")
    torch.testing.assert_close(step.mean.double(), exact.mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variance", get_args(Variance))
def test_the_outputs_are_split_as_the_config_says(variance: Variance) -> None:
    config = ReverseConfig(variance=variance)
    output = noise(1, channels=config.num_outputs(2))
    value, second = split_output(output, noise(0), config)
    assert torch.equal(value, output[:, :2])
    assert second is None if not config.learns_variance else torch.equal(second, output[:, 2:])
    for channels in {2, 4, 3} - {config.num_outputs(2)}:
        message = (
            f"the network gives {channels} channels; expected {config.num_outputs(2)} for images of 2 "
            f"and a variance that is {variance}"
        )
        with pytest.raises(ValueError, match=message):
            split_output(noise(1, channels=channels), noise(0), config)


def test_eps_is_refused_where_the_schedule_ends_in_noise() -> None:
    jsd = make_schedule(ScheduleConfig(name="jsd", num_timesteps=10))
    for prediction in ("x_0", "mean", "v"):
        check_prediction(ReverseConfig(prediction=prediction), jsd)
    with pytest.raises(
        ValueError, match=r"prediction is eps and the schedule ends at alpha_bar = 0 .*; expected x_0, mean or v"
    ):
        ReverseProcess(denoiser=lambda x_t, t: x_t, schedule=jsd)


def test_the_schedules_end_is_looked_at_once() -> None:
    """A look at a GPU makes the host wait, and training makes a process each step."""
    schedule = make_schedule(ScheduleConfig(num_timesteps=10))
    assert "ends_in_noise" not in vars(schedule)
    ReverseProcess(denoiser=lambda x_t, t: x_t, schedule=schedule)
    assert vars(schedule)["ends_in_noise"] is False


def test_static_clipping_clamps() -> None:
    x = 3 * noise(0)
    assert torch.equal(clip_x_0(x, "static"), x.clamp(-1, 1))
    assert clip_x_0(x, "none") is x


def test_dynamic_clipping_is_imagens() -> None:
    """Saharia et al. 2022, Section 2.3, with numpy's percentile: threshold, then divide, an image at a time."""
    x = noise(0) * per_row([0.05 + 0.2 * row for row in range(T)])
    clipped = clip_x_0(x, "dynamic")
    for image, ours in zip(x.numpy(), clipped.numpy(), strict=True):
        size = sorted(abs(image).flatten())
        place = 0.995 * (len(size) - 1)
        low = int(place)
        percentile = size[low] + (place - low) * (size[low + 1] - size[low])
        scale = max(1.0, percentile)
        assert ours == pytest.approx(image.clip(-scale, scale) / scale, rel=1e-12)
    assert torch.equal(clipped[0], x[0])  # nothing there exceeds 1
    assert float(clipped.abs().max()) == 1


def test_dynamic_clipping_saturates_less_than_static() -> None:
    x = 2 * noise(0)
    saturated = [float((clip_x_0(x, clip).abs() == 1).double().mean()) for clip in ("static", "dynamic")]
    assert saturated[1] < 0.1 < saturated[0]


def labelled(seed: int, channels: int = 2):
    """A network that is linear in nothing in particular."""
    weight = noise(seed, channels=channels)
    return lambda x_t, t: torch.tanh(weight + x_t.repeat(1, channels // 2, 1, 1)) * (1 + 0.1 * t[:, None, None, None])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_moves_x_0_alike_whatever_is_predicted(prediction: Prediction, scale: float) -> None:
    """Ho and Salimans 2022, Eq. 6, said of x_0: (1 + w) x_0(label) - w x_0(no label)."""
    x_t = noise(0)
    targets = [noise(1), noise(2)]
    networks = [lambda x_t, t, x_0=x_0: to_prediction(prediction, x_0, x_t, t, SCHEDULE) for x_0 in targets]
    p = ReverseProcess(
        denoiser=guided(networks[0], networks[1], scale, 2),
        schedule=SCHEDULE,
        config=ReverseConfig(prediction=prediction),
    )
    expected = (1 + scale) * targets[0] - scale * targets[1]
    torch.testing.assert_close(p_mean_variance(p, x_t, EVERY_T, clip="none").x_0_hat, expected, rtol=1e-8, atol=1e-8)


def test_guidance_leaves_the_learned_variance() -> None:
    with_label, without = labelled(1, channels=4), labelled(2, channels=4)
    x_t = noise(0)
    output = guided(with_label, without, 2.0, 2)(x_t, EVERY_T)
    torch.testing.assert_close(output[:, :2], (3 * with_label(x_t, EVERY_T) - 2 * without(x_t, EVERY_T))[:, :2])
    assert torch.equal(output[:, 2:], with_label(x_t, EVERY_T)[:, 2:])


def test_no_guidance_asks_the_conditional_network_alone() -> None:
    def never(x_t: Tensor, t: Tensor) -> Tensor:
        raise AssertionError

    x_t = noise(0)
    assert torch.equal(guided(labelled(1), never, 0.0, 2)(x_t, EVERY_T), labelled(1)(x_t, EVERY_T))
