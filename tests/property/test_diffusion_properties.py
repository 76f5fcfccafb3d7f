"""What holds for every schedule, and for every counter."""

from typing import get_args

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ddpm_core.diffusion.gaussian import discretized_log_likelihood, normal_kl
from ddpm_core.diffusion.losses import LossConfig, bound_term, loss_per_image, prior_term
from ddpm_core.diffusion.process import Prediction, predict_eps, predict_x_0, q_posterior, q_sample, to_prediction
from ddpm_core.diffusion.respacing import Spacing, respace, spaced_timesteps
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess, Variance, clip_x_0, interpret
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.samplers import sample
from ddpm_core.diffusion.schedule import NoiseSchedule, schedule_from_betas
from ddpm_core.random import Purpose, dropout_mask, normals, random_bits

fast = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**64 - 1)
indices = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5)
predictions = st.sampled_from(get_args(Prediction))
small_seeds = st.integers(0, 2**31)
logs = st.floats(-30, 10)


@st.composite
def schedules(draw: st.DrawFn) -> NoiseSchedule:
    betas = draw(st.lists(st.floats(1e-5, 0.9), min_size=1, max_size=40))
    if draw(st.booleans()):
        betas[-1] = 1.0
    return schedule_from_betas(torch.tensor(betas, dtype=torch.float64))


def images(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@fast
@given(schedules())
def test_noise_only_grows(schedule: NoiseSchedule) -> None:
    assert bool((schedule.alpha_bar[:-1] > 0).all())
    assert bool((schedule.alpha_bar < schedule.alpha_bar_prev).all())
    assert bool((schedule.snr.diff() < 0).all())
    assert bool((schedule.log_snr.diff() < 0).all())
    assert bool((schedule.posterior_variance <= schedule.betas * (1 + 1e-12)).all())
    finite = [name for name in vars(schedule) if name != "ends_in_noise"]
    assert all(bool(getattr(schedule, name).isfinite().all()) for name in finite)


@fast
@given(schedules(), st.floats(0, 1) | st.just(1.0))
def test_ddim_takes_no_root_of_a_negative_number(schedule: NoiseSchedule, eta: float) -> None:
    p = ReverseProcess(denoiser=lambda x_t, t: x_t / 2, schedule=schedule, config=ReverseConfig(prediction="v"))
    x_0 = sample(p, SamplerConfig(name="ddim", eta=eta), images(2, 0), lambda t: images(2, t))
    assert bool(x_0.isfinite().all())


@fast
@given(schedules(), st.data())
def test_respacing_keeps_alpha_bar(schedule: NoiseSchedule, data: st.DataObject) -> None:
    T = schedule.num_timesteps
    timesteps = sorted(data.draw(st.sets(st.integers(0, T - 1), min_size=1)))
    spaced = respace(schedule, timesteps)
    assert spaced.num_timesteps == len(timesteps)
    torch.testing.assert_close(spaced.alpha_bar, schedule.alpha_bar[timesteps], rtol=1e-12, atol=0)
    assert all(bool(value.isfinite().all()) for value in vars(spaced).values())
    # and so q(x_t | x_0) is the same at these steps
    x_0, eps = images(len(timesteps), 0), images(len(timesteps), 1)
    ours = q_sample(x_0, torch.arange(len(timesteps)), eps, spaced)
    torch.testing.assert_close(ours, q_sample(x_0, torch.tensor(timesteps), eps, schedule), rtol=1e-9, atol=1e-9)


@fast
@given(schedules(), st.data())
def test_respacing_twice_is_respacing_once(schedule: NoiseSchedule, data: st.DataObject) -> None:
    first = sorted(data.draw(st.sets(st.integers(0, schedule.num_timesteps - 1), min_size=1)))
    second = sorted(data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1)))
    twice = respace(respace(schedule, first), second)
    once = respace(schedule, [first[place] for place in second])
    for name, values in vars(once).items():
        torch.testing.assert_close(getattr(twice, name), values, rtol=1e-9, atol=1e-300)


@fast
@given(st.integers(1, 5000), st.sampled_from(get_args(Spacing)), st.data())
def test_spaced_timesteps_are_ascending_and_no_two_are_one(T: int, spacing: Spacing, data: st.DataObject) -> None:
    S = data.draw(st.integers(1, T))
    steps = spaced_timesteps(T, S, spacing)
    assert len(steps) == S
    assert steps == sorted(set(steps))
    assert steps[0] >= 0
    assert steps[-1] <= T - 1
    if spacing in ("linspace", "trailing"):
        assert steps[-1] == T - 1
    if spacing in ("linspace", "leading", "quadratic") and S > 1:
        assert steps[0] == 0


@fast
@given(schedules(), predictions, small_seeds)
def test_a_prediction_and_x_0_say_each_other(schedule: NoiseSchedule, prediction: Prediction, seed: int) -> None:
    """In float64; as far as eps and the mean tell x_0 at all, which they do by a factor that grows with the noise."""
    t = torch.arange(schedule.num_timesteps)
    if prediction == "eps":
        t = (schedule.alpha_bar > 1e-6).nonzero()[:, 0]
    if prediction == "mean":
        t = (schedule.posterior_mean_coef_x_0 > 1e-6).nonzero()[:, 0]
    x_0, eps = images(len(t), seed), images(len(t), seed + 1)
    x_t = q_sample(x_0, t, eps, schedule)
    value = to_prediction(prediction, x_0, x_t, t, schedule)
    torch.testing.assert_close(predict_x_0(prediction, value, x_t, t, schedule), x_0, rtol=1e-7, atol=1e-7)
    # the other way round: any value, not only one that an x_0 gave
    x_0_hat = predict_x_0(prediction, eps, x_t, t, schedule)
    torch.testing.assert_close(to_prediction(prediction, x_0_hat, x_t, t, schedule), eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(predict_eps(x_0, x_t, t, schedule), eps, rtol=1e-7, atol=1e-7)


@fast
@given(schedules(), small_seeds)
def test_v_turns_the_pair_of_x_0_and_eps(schedule: NoiseSchedule, seed: int) -> None:
    """(x_t, v) is (x_0, eps) turned by an angle: their squares sum to the same."""
    t = torch.arange(schedule.num_timesteps)
    x_0, eps = images(len(t), seed), images(len(t), seed + 1)
    x_t = q_sample(x_0, t, eps, schedule)
    v = to_prediction("v", x_0, x_t, t, schedule)
    torch.testing.assert_close(x_t**2 + v**2, x_0**2 + eps**2, rtol=1e-7, atol=1e-7)


@fast
@given(schedules())
def test_the_posterior_undoes_one_step_of_the_forward_process(schedule: NoiseSchedule) -> None:
    """Averaged over x_t ~ q(x_t | x_0), q(x_{t-1} | x_t, x_0) has the mean and variance of q(x_{t-1} | x_0)."""
    t = torch.arange(schedule.num_timesteps)
    x_0 = images(len(t), 0)
    alpha_bar, prev = schedule.alpha_bar[:, None, None, None], schedule.alpha_bar_prev[:, None, None, None]
    at_mean = q_posterior(x_0, alpha_bar.sqrt() * x_0, t, schedule)
    torch.testing.assert_close(at_mean.mean, prev.sqrt() * x_0, rtol=1e-8, atol=1e-10)
    spread = schedule.posterior_mean_coef_x_t**2 * (1 - schedule.alpha_bar) + schedule.posterior_variance
    torch.testing.assert_close(spread, 1 - schedule.alpha_bar_prev, rtol=1e-8, atol=1e-10)


@fast
@given(schedules(), small_seeds)
def test_the_posterior_is_bayes_rule(schedule: NoiseSchedule, seed: int) -> None:
    """log q(x_t | x_{t-1}) + log q(x_{t-1} | x_0) - log q(x_t | x_0) is its log-density, at any x_{t-1}."""
    t = torch.arange(1, schedule.num_timesteps)
    x_0, x_t, x_prev = (images(len(t), seed + i) for i in range(3))

    def log_density(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x - mean) ** 2 / variance + variance.log())

    def column(values: torch.Tensor) -> torch.Tensor:
        return values[t][:, None, None, None]

    bar, prev = column(schedule.alpha_bar), column(schedule.alpha_bar_prev)
    expected = log_density(x_t, column(schedule.alphas).sqrt() * x_prev, column(schedule.betas))
    expected = expected + log_density(x_prev, prev.sqrt() * x_0, 1 - prev) - log_density(x_t, bar.sqrt() * x_0, 1 - bar)
    posterior = q_posterior(x_0, x_t, t, schedule)
    ours = log_density(x_prev, posterior.mean, posterior.variance)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@fast
@given(st.floats(-5, 5), logs, st.floats(-5, 5), logs)
def test_a_divergence_is_never_negative(mean_1: float, log_1: float, mean_2: float, log_2: float) -> None:
    """But for the rounding of exp(d) - 1 - d, where d is a few units in the last place."""
    kl = normal_kl(*(torch.tensor(value, dtype=torch.float64) for value in (mean_1, log_1, mean_2, log_2)))
    assert float(kl) >= -1e-16 * abs(log_1 - log_2)
    close = normal_kl(*(torch.tensor(value, dtype=torch.float64) for value in (mean_1, log_1, mean_1, log_1 + 1e-13)))
    assert -1e-28 <= float(close) < 1e-25


@fast
@given(st.floats(-3, 3), st.floats(-20, 10))
def test_the_levels_share_one_probability(mean: float, log_variance: float) -> None:
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).reshape(1, 1, 16, 16)
    log_probability = discretized_log_likelihood(
        levels, torch.full_like(levels, mean), torch.full_like(levels, log_variance)
    )
    assert bool((log_probability <= 0).all())
    assert abs(float(log_probability.exp().sum()) - 1) < 1e-11


@fast
@given(schedules(), predictions, st.sampled_from(get_args(Variance)), small_seeds)
def test_the_bounds_terms_are_never_negative(
    schedule: NoiseSchedule, prediction: Prediction, variance: Variance, seed: int
) -> None:
    """L_0 is the logarithm of a probability, all others are divergences; and a right answer costs the least."""
    if prediction == "eps":  # which does not tell x_0 without a signal
        schedule = schedule_from_betas(schedule.betas.clamp(max=0.9))
    t = torch.arange(schedule.num_timesteps)
    g = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(0, 256, (len(t), 1, 2, 2), generator=g).double() / 127.5 - 1
    config = ReverseConfig(prediction=prediction, variance=variance)
    x_t, output = images(len(t), seed), images(len(t), seed + 1).repeat(1, config.num_outputs(1), 1, 1)
    step = interpret(output, x_t, t, schedule, config, clip="none")
    terms = bound_term(step, x_0, x_t, t, schedule)
    assert bool((terms >= 0).all())
    assert bool((prior_term(x_0, schedule) >= 0).all())
    true = q_posterior(x_0, x_t, t, schedule)
    right = step._replace(mean=true.mean, log_variance=true.log_variance.expand_as(true.mean))
    assert bool((bound_term(right, x_0, x_t, t, schedule)[1:] <= terms[1:] + 1e-12).all())


@fast
@given(schedules(), predictions, small_seeds, st.sampled_from(["simple", "min_snr", "bound"]))
def test_a_right_answer_has_no_squared_error(
    schedule: NoiseSchedule, prediction: Prediction, seed: int, objective
) -> None:
    """Of the bound nothing remains but L_0, if the variance is the posterior's."""
    assume(prediction != "eps" or float(schedule.alpha_bar[-1]) > 1e-12)
    t = torch.arange(schedule.num_timesteps)
    g = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(0, 256, (len(t), 1, 2, 2), generator=g).double() / 127.5 - 1
    p = ReverseProcess(
        denoiser=lambda x_t, t: to_prediction(prediction, x_0, x_t, t, schedule),
        schedule=schedule,
        config=ReverseConfig(prediction=prediction, variance="fixed_small"),
    )
    losses = loss_per_image(p, x_0, t, images(len(t), seed), LossConfig(objective=objective))
    assert bool((losses >= 0).all())
    scale = float(schedule.snr[0]) * schedule.num_timesteps
    assert bool((losses[1:] <= 1e-20 * scale).all())


@fast
@given(small_seeds, st.floats(0.1, 10), st.sampled_from(["static", "dynamic"]))
def test_clipped_images_are_images(seed: int, scale: float, clip) -> None:
    x = scale * images(3, seed)
    clipped = clip_x_0(x, clip)
    assert float(clipped.abs().max()) <= 1
    assert bool((clipped.sign() == x.sign()).all())
    inside = x.abs().amax(dim=(1, 2, 3)) <= 1
    assert torch.equal(clipped[inside], x[inside])
    torch.testing.assert_close(clip_x_0(clipped, clip), clipped, rtol=0, atol=0)


@fast
@given(seeds, indices, st.integers(1, 30), st.integers(0, 2**24 - 1), st.sampled_from(Purpose))
def test_a_row_of_words_is_its_own(seed: int, index: list[int], count: int, step: int, purpose: Purpose) -> None:
    drawn = random_bits(seed, purpose, torch.tensor(index), count + 5, step=step)
    assert drawn.min() >= 0
    assert drawn.max() < 2**32
    for row, i in enumerate(index):
        assert torch.equal(random_bits(seed, purpose, torch.tensor([i]), count, step=step)[0], drawn[row, :count])


@fast
@given(seeds, indices, st.integers(1, 7), st.integers(1, 7))
def test_a_row_of_normals_or_dropout_is_its_own(seed: int, index: list[int], height: int, width: int) -> None:
    for draw in (
        lambda i: normals(seed, Purpose.EPS, i, (height, width)),
        lambda i: dropout_mask(seed, i, (height, width), 30_000, step=1),
    ):
        drawn = draw(torch.tensor(index))
        assert drawn.shape == (len(index), height, width)
        for row, i in enumerate(index):
            assert torch.equal(draw(torch.tensor([i]))[0], drawn[row])
