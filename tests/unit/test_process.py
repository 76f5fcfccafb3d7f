"""Forward and reverse process against the paper's equations."""

import math

import pytest
import torch

from ddpm_core.diffusion.process import p_mean_variance, predict_eps, predict_x_0, q_posterior, q_sample
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule

T = 20
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_end=0.4))
BETAS = [1e-4 + i * (0.4 - 1e-4) / (T - 1) for i in range(T)]
BAR = [math.prod(1 - b for b in BETAS[: t + 1]) for t in range(T)]
EVERY_T = torch.arange(T)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(T, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def per_row(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


def test_q_sample_is_eq_4() -> None:
    x_0, eps = noise(0), noise(1)
    expected = per_row([math.sqrt(b) for b in BAR]) * x_0 + per_row([math.sqrt(1 - b) for b in BAR]) * eps
    torch.testing.assert_close(q_sample(x_0, EVERY_T, eps, SCHEDULE), expected, rtol=1e-12, atol=1e-12)


def test_q_sample_keeps_the_dtype() -> None:
    assert q_sample(noise(0).float(), EVERY_T, noise(1).float(), SCHEDULE).dtype == torch.float32


def test_q_posterior_is_bayes_rule() -> None:
    """q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0), normalised: of two normals the precisions add."""
    x_0, x_t = noise(0), noise(1)
    posterior = q_posterior(x_0, x_t, EVERY_T, SCHEDULE)
    for t in range(1, T):
        from_x_t, from_x_0 = (1 - BETAS[t]) / BETAS[t], 1 / (1 - BAR[t - 1])
        variance = 1 / (from_x_t + from_x_0)
        mean = variance * (from_x_t * x_t[t] / math.sqrt(1 - BETAS[t]) + from_x_0 * math.sqrt(BAR[t - 1]) * x_0[t])
        torch.testing.assert_close(posterior.mean[t], mean, rtol=1e-9, atol=1e-9)
        assert float(posterior.variance[t]) == pytest.approx(variance, rel=1e-9)
        assert float(posterior.log_variance[t]) == pytest.approx(math.log(variance), rel=1e-9)


def test_q_posterior_at_t_0_is_x_0() -> None:
    x_0, x_t = noise(0)[:1], noise(1)[:1]
    posterior = q_posterior(x_0, x_t, torch.tensor([0]), SCHEDULE)
    torch.testing.assert_close(posterior.mean, x_0)
    assert float(posterior.variance) == 0


def test_x_0_and_eps_are_recovered() -> None:
    x_0, eps = noise(0), noise(1)
    x_t = q_sample(x_0, EVERY_T, eps, SCHEDULE)
    torch.testing.assert_close(predict_x_0(x_t, EVERY_T, eps, SCHEDULE), x_0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(predict_eps(x_t, EVERY_T, x_0, SCHEDULE), eps, rtol=1e-10, atol=1e-10)


def test_p_mean_is_eq_11() -> None:
    x_t, eps_hat = noise(0), noise(1)
    p = p_mean_variance(lambda x_t, t: eps_hat, x_t, EVERY_T, SCHEDULE, variance="fixed_small", clip_x_0=False)
    factor = per_row([b / math.sqrt(1 - bar) for b, bar in zip(BETAS, BAR, strict=True)])
    expected = (x_t - factor * eps_hat) / per_row([math.sqrt(1 - b) for b in BETAS])
    torch.testing.assert_close(p.mean, expected, rtol=1e-10, atol=1e-10)


def test_the_denoiser_sees_x_t_and_t() -> None:
    x_t, seen = noise(0), []
    p_mean_variance(lambda x, t: seen.append((x, t)) or x, x_t, EVERY_T, SCHEDULE, variance="fixed_small")
    ((x, t),) = seen
    assert torch.equal(x, x_t)
    assert torch.equal(t, EVERY_T)


def test_the_variances_are_section_3_2() -> None:
    small, large = (
        p_mean_variance(lambda x_t, t: x_t, noise(0), EVERY_T, SCHEDULE, variance=name)
        for name in ("fixed_small", "fixed_large")
    )
    posterior = [b * (1 - prev) / (1 - bar) for b, prev, bar in zip(BETAS, [1.0, *BAR], BAR, strict=False)]
    torch.testing.assert_close(small.variance.flatten(), torch.tensor(posterior, dtype=torch.float64))
    torch.testing.assert_close(large.variance.flatten(), torch.tensor([posterior[1], *BETAS[1:]], dtype=torch.float64))
    torch.testing.assert_close(large.log_variance, large.variance.log())
    assert bool(small.log_variance.isfinite().all())


def test_x_0_hat_is_clipped_when_asked() -> None:
    x_t = 5 * noise(0)
    clipped, free = (
        p_mean_variance(lambda x_t, t: 0 * x_t, x_t, EVERY_T, SCHEDULE, variance="fixed_small", clip_x_0=clip)
        for clip in (True, False)
    )
    assert float(free.x_0_hat.abs().max()) > 2
    assert torch.equal(clipped.x_0_hat, free.x_0_hat.clamp(-1, 1))
    torch.testing.assert_close(clipped.mean, q_posterior(clipped.x_0_hat, x_t, EVERY_T, SCHEDULE).mean)


@pytest.mark.parametrize("bad", [-1, T])
def test_a_t_out_of_range_is_refused(bad: int) -> None:
    x = noise(0)[:2]
    with pytest.raises(ValueError, match=f"t is {bad}; expected 0 to {T - 1}"):
        q_sample(x, torch.tensor([3, bad]), x, SCHEDULE)
