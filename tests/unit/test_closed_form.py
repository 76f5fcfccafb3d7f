"""The samplers on data whose optimal denoiser, and whose probability-flow ODE, are known.

On normal data a sampler is affine in its noise. So its mean and covariance are computed without drawing anything: pixels
know nothing of each other, and each is given one unit of one noise; what comes out are the columns of the affine map.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from known_data import Mixture, even_in_log_snr, line_of, mixture, normal, probability_flow

from ddpm_core.diffusion.process import Prediction
from ddpm_core.diffusion.respacing import Spacing, respace
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig, steps_taken
from ddpm_core.diffusion.samplers import sample
from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, ScheduleName, make_schedule
from ddpm_core.types import Denoiser, Tensor

T = 101
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, rescale=True))
SHORT = make_schedule(ScheduleConfig(num_timesteps=40, rescale=True))
ZERO_TERMINAL = make_schedule(ScheduleConfig(name="jsd", num_timesteps=T))
PAIR = normal([0.3, -0.2], [[0.25, 0.12], [0.12, 0.16]])
APART = normal([0.3, -0.2], [[0.25, 0.0], [0.0, 0.16]])
THREE = mixture(
    [0.5, 0.3, 0.2],
    [[-0.5, -0.4], [0.5, -0.2], [0.1, 0.6]],
    [[[0.02, 0.01], [0.01, 0.02]], [[0.01, 0.0], [0.0, 0.03]], [[0.03, -0.01], [-0.01, 0.01]]],
)

SMALL = SamplerConfig(variance="fixed_small", clip="none")
LARGE = SamplerConfig(variance="fixed_large", clip="none")
DDIM, DDIM_HALF, DDIM_1 = (SamplerConfig(name="ddim", eta=eta, clip="none") for eta in (0.0, 0.5, 1.0))
DPM_SOLVER = SamplerConfig(name="dpm_solver", clip="none")
HEUN = SamplerConfig(name="heun", clip="none")


def process(data: Mixture, schedule: NoiseSchedule, prediction: Prediction = "eps") -> ReverseProcess:
    config = ReverseConfig(prediction=prediction)
    return ReverseProcess(denoiser=data.denoiser(schedule, prediction), schedule=schedule, config=config)


def noisy_covariance(data: Mixture, alpha_bar: Tensor) -> Tensor:
    """Of x_t."""
    return alpha_bar * data.covariance + (1 - alpha_bar) * torch.eye(len(data.mean))


def expected_covariance(data: Mixture, alpha_bar: Tensor) -> Tensor:
    """Of E[x_0 | x_t] at the last step, with which every sampler ends: a little less than the data's."""
    return alpha_bar * data.covariance @ torch.linalg.inv(noisy_covariance(data, alpha_bar)) @ data.covariance


def exact_moments(p: ReverseProcess, config: SamplerConfig, data: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of what a sampler makes of x_t as q has it at its first step, and the right covariance."""
    channels, num_timesteps = len(data.mean), p.schedule.num_timesteps
    columns = channels * (num_timesteps + 1)

    def unit(t: int) -> Tensor:
        """One unit in a channel of a pixel of its own; the last pixel gets none."""
        out = torch.zeros(1, channels, 1, columns + 1, dtype=torch.float64)
        for channel in range(channels):
            out[0, channel, 0, channels * t + channel] = 1
        return out

    steps = steps_taken(config, num_timesteps)
    first, last = p.schedule.alpha_bar[steps[-1]], p.schedule.alpha_bar[steps[0]]
    root = torch.linalg.cholesky(noisy_covariance(data, first))
    x_T = torch.einsum("cd,bdhw->bchw", root, unit(num_timesteps)) + first.sqrt() * data.mean[:, None, None]
    x_0 = sample(p, config, x_T, unit)[0, :, 0]
    response = x_0[:, :-1] - x_0[:, -1:]
    return x_0[:, -1], response @ response.T, expected_covariance(data, last)


def covariance_error(p: ReverseProcess, config: SamplerConfig, data: Mixture) -> float:
    """Relative to the largest entry; the mean is right to rounding."""
    mean, covariance, expected = exact_moments(p, config, data)
    torch.testing.assert_close(mean, data.mean, rtol=1e-10, atol=1e-10)
    return float((covariance - expected).abs().max() / expected.max())


@pytest.mark.parametrize(
    ("config", "largest", "order"),
    [
        (SMALL, 0.13, 1),
        (LARGE, 0.04, 1),
        (DDIM, 0.06, 1),
        (DDIM_HALF, 0.07, 1),
        (DDIM_1, 0.13, 1),
        (DPM_SOLVER, 0.015, None),
        (HEUN, 0.004, 2),
    ],
)
def test_normal_data_come_out_again(config: SamplerConfig, largest: float, order: int | None) -> None:
    """Of two channels drawn together; the mean exactly, the covariance with a bias that steps make small."""
    p = process(PAIR, SCHEDULE)
    few, many = (covariance_error(p, replace(config, num_steps=steps), PAIR) for steps in (26, T))
    assert many < largest
    if order is not None:
        assert 0.7 * order < math.log(few / many, 4) < 1.2 * order


@pytest.mark.parametrize("prediction", ["x_0", "v", "mean"])
@pytest.mark.parametrize("num_steps", [None, 12])
@pytest.mark.parametrize("config", [LARGE, DDIM_HALF, DPM_SOLVER, HEUN])
def test_what_is_predicted_does_not_matter(prediction: Prediction, num_steps, config: SamplerConfig) -> None:
    """A respaced sampler must not take a mean, which is of the step that was trained, for that of its own longer step."""
    x_T = torch.linspace(-2, 2, 12, dtype=torch.float64).view(1, 2, 1, 6)
    config = replace(config, num_steps=num_steps)
    by_eps, other = (
        sample(process(THREE, SHORT, kind), config, x_T, lambda t: math.cos(t) * x_T) for kind in ("eps", prediction)
    )
    torch.testing.assert_close(by_eps, other, rtol=1e-8, atol=1e-8)


def with_exact_variance(data: Mixture, schedule: NoiseSchedule, *, as_range: bool) -> Denoiser:
    """E[eps | x_t] and, as a network says it, Var(x_{t-1} | x_t); of normal channels that are independent."""
    value = data.denoiser(schedule)
    own = data.covariance.diagonal()[None, :]
    alpha_bar = schedule.alpha_bar[:, None]
    of_x_0 = own * (1 - alpha_bar) / (alpha_bar * own + 1 - alpha_bar)
    # the law of total variance
    log = (schedule.posterior_variance[:, None] + schedule.posterior_mean_coef_x_0[:, None] ** 2 * of_x_0).log()
    if as_range:
        small, large = schedule.posterior_log_variance_clipped[:, None], schedule.betas.log()[:, None]
        log = 2 * (log - small) / (large - small) - 1

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.cat((value(x_t, t), log[t][:, :, None, None].expand_as(x_t)), dim=1)

    return denoise


@pytest.mark.parametrize(
    ("num_steps", "spacing"),
    [(None, "linspace"), (50, "linspace"), (10, "trailing"), (10, "leading"), (20, "quadratic"), (2, "linspace")],
)
def test_with_the_exact_variance_any_number_of_steps_is_exact(num_steps: int | None, spacing) -> None:
    """p(x_{t-1} | x_t) is normal, and so is the p of a longer step, whose variance is not the one that was learned."""
    denoiser = with_exact_variance(APART, SCHEDULE, as_range=False)
    p = ReverseProcess(denoiser=denoiser, schedule=SCHEDULE, config=ReverseConfig(variance="learned"))
    assert covariance_error(p, SamplerConfig(num_steps=num_steps, spacing=spacing, clip="none"), APART) < 1e-7


def test_learned_range_says_the_same_variance() -> None:
    """At the network's own steps. At longer ones its place on a log scale is kept, as published: about right."""
    denoiser = with_exact_variance(APART, SCHEDULE, as_range=True)
    p = ReverseProcess(denoiser=denoiser, schedule=SCHEDULE, config=ReverseConfig(variance="learned_range"))
    assert covariance_error(p, SamplerConfig(clip="none"), APART) < 1e-9
    long_steps = covariance_error(p, SamplerConfig(num_steps=25, clip="none"), APART)
    assert long_steps < 0.5 * covariance_error(process(APART, SCHEDULE), replace(LARGE, num_steps=25), APART)


@pytest.mark.parametrize("prediction", ["x_0", "v", "mean"])
@pytest.mark.parametrize(
    ("config", "largest"),
    [(LARGE, 0.02), (DDIM, 0.04), (DDIM_HALF, 0.045), (DPM_SOLVER, 0.002), (HEUN, 0.003)],
)
def test_a_schedule_that_ends_in_noise_alone_is_sampled_right(prediction, config: SamplerConfig, largest) -> None:
    """alpha_bar is 0 at the last step: x_T tells nothing, and s = 1 / sqrt(SNR) is infinite."""
    assert float(ZERO_TERMINAL.alpha_bar[-1]) == 0
    assert covariance_error(process(PAIR, ZERO_TERMINAL, prediction), config, PAIR) < largest
    few = sample(
        process(THREE, ZERO_TERMINAL, prediction),
        replace(config, num_steps=4),
        torch.ones(1, 2, 1, 1, dtype=torch.float64),
        lambda t: torch.zeros(1, 2, 1, 1, dtype=torch.float64),
    )
    assert bool(few.isfinite().all())
    assert float(few.abs().max()) < 1


def drawn_noise(seed: int, count: int, channels: int):
    def noise(t: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_000 * seed + t)
        return torch.randn(1, channels, 1, count, dtype=torch.float64, generator=generator)

    return noise


@pytest.mark.parametrize(
    ("config", "bias"),
    [
        (SMALL, 0.03),
        (LARGE, 0.02),
        (DDIM, 0.02),
        (DDIM_HALF, 0.02),
        (replace(DPM_SOLVER, num_steps=40), 0.01),
        (replace(HEUN, num_steps=40), 0.01),
    ],
)
def test_a_mixture_comes_out_again(config: SamplerConfig, bias: float) -> None:
    """Its modes in their shares, its moments, its whole distribution: to 5 standard errors and a bias of the steps."""
    count = 10_000
    noise = drawn_noise(1, count, 2)
    x_0 = sample(process(THREE, SCHEDULE), config, noise(T), noise)[0, :, 0].T
    nearest = torch.cdist(x_0, THREE.means).argmin(dim=1)
    real = torch.cdist(THREE.draw(200_000, seed=0), THREE.means).argmin(dim=1)
    for mode in range(3):
        share = float((real == mode).double().mean())
        error = 5 * math.sqrt(share * (1 - share) / count)
        assert float((nearest == mode).double().mean()) == pytest.approx(share, abs=error + bias)
    spread = THREE.covariance.diagonal().sqrt()
    assert float(((x_0.mean(dim=0) - THREE.mean) / spread).abs().max()) < 5 / math.sqrt(count) + bias
    covariance_error = (x_0.T.cov() - THREE.covariance) / torch.outer(spread, spread)
    # the fourth moment of a normal distribution, which that of modes apart does not exceed, gives the standard error
    assert float(covariance_error.abs().max()) < 5 * math.sqrt(2 / count) + 2 * bias
    # Dvoretzky, Kiefer, Wolfowitz: the chance to be farther off is 1e-6
    x = x_0[:, 0].sort().values
    empirical = torch.arange(1, count + 1) / count
    assert float((THREE.cdf(x) - empirical).abs().max()) < math.sqrt(math.log(2e6) / (2 * count)) + bias


# Order of convergence. The steps are even in log SNR and so fine that those of 32, 64, 128 fall on some of them.

FINE_T = 4097
LINE = line_of([1.0], [0.3], [0.5])
TWO = line_of([0.4, 0.6], [-0.6, 0.5], [0.2, 0.1])
X_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 1, 9)
INTERVALS = (32, 64, 128)


FINE = even_in_log_snr(-8, 8, FINE_T)


def solver_errors(data: Mixture, schedule: NoiseSchedule, name: str, exact: Tensor, shift: int = 0) -> list[float]:
    """Root mean square error of x at t = 0, before the last step to x_0, for each number of steps."""
    exact_denoiser = data.denoiser(schedule)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return exact_denoiser(x_t, (t + shift).clamp(max=schedule.num_timesteps - 1))

    def unused(t: int) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")

    errors = []
    for intervals in INTERVALS:
        states: dict[int, Tensor] = {}
        sample(
            ReverseProcess(denoiser=denoise, schedule=schedule),
            SamplerConfig(name=name, num_steps=intervals + 1, clip="none"),
            X_T,
            unused,
            on_step=lambda t, x_t, x_0_hat, states=states: states.update({t: x_t}),
        )
        assert len(states) == intervals + 1
        errors.append(float((states[0] - exact).square().mean().sqrt()))
    return errors


def slopes(errors: list[float]) -> list[float]:
    """Each time the number of steps is doubled."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def test_the_reference_is_the_closed_form_where_there_is_one() -> None:
    """y - mean scales as sqrt(s_data^2 + s^2)."""
    s_0, s_T = (float(FINE.snr[t]) ** -0.5 for t in (0, -1))
    shrink = math.sqrt((0.25 + s_0**2) / (0.25 + s_T**2))
    closed = FINE.alpha_bar[0].sqrt() * (0.3 + (X_T / FINE.alpha_bar[-1].sqrt() - 0.3) * shrink)
    torch.testing.assert_close(probability_flow(LINE, FINE, X_T), closed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("data", [LINE, TWO], ids=["one normal", "two normals"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm_solver", 2), ("heun", 2)])
def test_the_error_falls_as_theory_says(name: str, order: int, data: Mixture) -> None:
    assert slopes(solver_errors(data, FINE, name, probability_flow(data, FINE, X_T))) == pytest.approx(
        [order, order], abs=0.15
    )


@pytest.mark.parametrize("name", ["dpm_solver", "heun"])
def test_a_timestep_that_is_off_spoils_the_order(name: str) -> None:
    """Asking the network for a timestep that is 1 in 256 too high already does."""
    assert slopes(solver_errors(LINE, FINE, name, probability_flow(LINE, FINE, X_T), shift=16))[-1] < 1.5


@pytest.mark.parametrize("num_steps", [10, 15, 20, 25, 50])
@pytest.mark.parametrize("data", [LINE, TWO], ids=["one normal", "two normals"])
def test_the_second_order_pays_on_the_papers_schedule(data: Mixture, num_steps: int) -> None:
    """Even where the last of few steps leaps in log SNR, from the middle of the chain to t = 0."""
    paper = make_schedule(ScheduleConfig())
    exact = probability_flow(data, paper, X_T, clean=True)
    ends = {}
    for name in ("ddim", "dpm_solver"):
        ends[name] = sample(
            process(data, paper), SamplerConfig(name=name, num_steps=num_steps, clip="none"), X_T, lambda t: X_T
        )
    errors = {name: float((x_0 - exact).square().mean().sqrt()) for name, x_0 in ends.items()}
    assert errors["dpm_solver"] < 0.9 * errors["ddim"]


# Every combination.

COMBINATIONS = [
    (schedule, prediction)
    for schedule in get_args(ScheduleName)
    for prediction in get_args(Prediction)
    if (schedule, prediction) != ("jsd", "eps")  # refused: alpha_bar is 0 at its end
    and schedule != "given"  # any betas
]
FACTORS = {"dpm_solver": {5: 1.2, 20: 1.15}, "heun": {5: 2.6, 20: 2.1}}
"""Of DDIM's error at as many network passes, at most. The most that was found: 1.00 and 1.10, 2.46 and 1.98."""


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("schedule", sorted({schedule for schedule, _ in COMBINATIONS}))
def test_every_solver_goes_with_every_schedule_prediction_and_spacing(schedule: ScheduleName, spacing: Spacing) -> None:
    """Held against the exact flow from where the chain begins; whatever is predicted, to the same x_0.

    tests/benchmarks/combinations.py does so at more numbers of passes.
    """
    whole = make_schedule(ScheduleConfig(name=schedule))
    for passes in (5, 20):
        ends: dict[str, list[Tensor]] = {}
        for name in ("ddim", "dpm_solver", "heun"):
            steps = (passes + 1) // 2 if name == "heun" else passes
            config = SamplerConfig(name=name, num_steps=steps, spacing=spacing, clip="none")
            begin = min(steps_taken(config, 1000)[-1], 998 if whole.ends_in_noise else 999)
            exact = probability_flow(TWO, respace(whole, range(begin + 1)), X_T, clean=True)
            ends[name] = [
                sample(process(TWO, whole, prediction), config, X_T, lambda t: X_T) - exact
                for of, prediction in COMBINATIONS
                if of == schedule and (prediction == "v" or passes == 5)
            ]
            torch.testing.assert_close(ends[name], ends[name][:1] * len(ends[name]), rtol=0, atol=1e-5)
        error = {name: float(found[0].square().mean().sqrt()) for name, found in ends.items()}
        for name, at_most in FACTORS.items():
            assert error[name] < at_most[passes] * error["ddim"], (name, passes, error)
