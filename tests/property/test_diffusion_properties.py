"""What holds for every schedule, and for every counter."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_core.diffusion.process import predict_eps, predict_x_0, q_posterior, q_sample
from ddpm_core.diffusion.schedule import NoiseSchedule, respace, schedule_from_betas
from ddpm_core.random import Purpose, kept, normals, words

fast = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**64 - 1)
indices = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5)


@st.composite
def schedules(draw: st.DrawFn) -> NoiseSchedule:
    betas = draw(st.lists(st.floats(1e-5, 0.9), min_size=1, max_size=40))
    return schedule_from_betas(torch.tensor(betas, dtype=torch.float64))


def images(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@fast
@given(schedules())
def test_noise_only_grows(schedule: NoiseSchedule) -> None:
    assert bool((schedule.alpha_bar > 0).all())
    assert bool((schedule.alpha_bar < schedule.alpha_bar_prev).all())
    assert bool((schedule.snr.diff() < 0).all())
    assert bool((schedule.posterior_variance <= schedule.betas * (1 + 1e-12)).all())
    assert bool(schedule.posterior_log_variance_clipped.isfinite().all())


@fast
@given(schedules(), st.data())
def test_respacing_keeps_alpha_bar(schedule: NoiseSchedule, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, schedule.num_timesteps))
    spaced, timesteps = respace(schedule, steps)
    assert len(timesteps) == spaced.num_timesteps == steps
    assert timesteps[-1] == schedule.num_timesteps - 1
    assert steps == 1 or timesteps[0] == 0
    gaps = timesteps.diff()
    assert steps == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    torch.testing.assert_close(spaced.alpha_bar, schedule.alpha_bar[timesteps], rtol=1e-9, atol=0)


@fast
@given(schedules())
def test_prediction_inverts_diffusion(schedule: NoiseSchedule) -> None:
    t = (schedule.alpha_bar > 1e-6).nonzero()[:, 0]
    x_0, eps = images(len(t), 0), images(len(t), 1)
    x_t = q_sample(x_0, t, eps, schedule)
    torch.testing.assert_close(predict_x_0(x_t, t, eps, schedule), x_0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(predict_eps(x_t, t, x_0, schedule), eps, rtol=1e-7, atol=1e-7)


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
@given(seeds, indices, st.integers(1, 30), st.integers(0, 2**24 - 1), st.sampled_from(Purpose))
def test_a_row_of_words_is_its_own(seed: int, index: list[int], count: int, step: int, purpose: Purpose) -> None:
    drawn = words(seed, purpose, torch.tensor(index), count + 5, step=step)
    assert drawn.min() >= 0
    assert drawn.max() < 2**32
    for row, i in enumerate(index):
        assert torch.equal(words(seed, purpose, torch.tensor([i]), count, step=step)[0], drawn[row, :count])


@fast
@given(seeds, indices, st.integers(1, 7), st.integers(1, 7))
def test_a_row_of_normals_or_dropout_is_its_own(seed: int, index: list[int], height: int, width: int) -> None:
    for draw in (
        lambda i: normals(seed, Purpose.EPS, i, (height, width)),
        lambda i: kept(seed, i, (height, width), 30_000, step=1),
    ):
        drawn = draw(torch.tensor(index))
        assert drawn.shape == (len(index), height, width)
        for row, i in enumerate(index):
            assert torch.equal(draw(torch.tensor([i]))[0], drawn[row])
