"""The forward process and what it is to undo it, against the paper's equations in plain Python numbers."""

import math
from typing import get_args

import pytest
import torch

from ddpm_core.diffusion.process import Prediction, predict_eps, predict_x_0, q_posterior, q_sample, to_prediction
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule

T = 20
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_end=0.4))
PAPER = make_schedule(ScheduleConfig())
BETAS = [1e-4 + i * (0.4 - 1e-4) / (T - 1) for i in range(T)]
BAR = [math.prod(1 - b for b in BETAS[: t + 1]) for t in range(T)]
EVERY_T = torch.arange(T)
PREDICTIONS = get_args(Prediction)


def noise(seed: int, rows: int = T) -> torch.Tensor:
    return torch.randn(rows, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def per_row(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


def bayes(t: int) -> tuple[float, float, float]:
    """Variance of q(x_{t-1} | x_t, x_0) and what x_0 and x_t count for in its mean.

    It is q(x_t | x_{t-1}) q(x_{t-1} | x_0), normalised: of two normals the precisions add.
    """
    from_x_t, from_x_0 = (1 - BETAS[t]) / BETAS[t], 1 / (1 - BAR[t - 1])
    variance = 1 / (from_x_t + from_x_0)
    return variance, variance * from_x_0 * math.sqrt(BAR[t - 1]), variance * from_x_t / math.sqrt(1 - BETAS[t])


def test_q_sample_is_eq_4() -> None:
    x_0, eps = noise(0), noise(1)
    expected = per_row([math.sqrt(b) for b in BAR]) * x_0 + per_row([math.sqrt(1 - b) for b in BAR]) * eps
    torch.testing.assert_close(q_sample(x_0, EVERY_T, eps, SCHEDULE), expected, rtol=1e-12, atol=1e-12)


def test_q_sample_is_the_chain_of_eq_2() -> None:
    """x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise, done step by step: mean, and variance by its recursion."""
    mean, variance = 1.0, 0.0
    ones, zeros = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for t, beta in enumerate(BETAS):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert float(q_sample(ones, torch.tensor([t]), zeros, SCHEDULE)) == pytest.approx(mean, rel=1e-12)
        assert float(q_sample(zeros, torch.tensor([t]), ones, SCHEDULE)) == pytest.approx(
            math.sqrt(variance), rel=1e-12
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_is_that_of_the_images(dtype: torch.dtype) -> None:
    x_0, x_t = noise(0).to(dtype), noise(1).to(dtype)
    assert q_sample(x_0, EVERY_T, x_t, SCHEDULE).dtype == dtype
    assert {part.dtype for part in q_posterior(x_0, x_t, EVERY_T, SCHEDULE)} == {dtype}
    for prediction in PREDICTIONS:
        assert predict_x_0(prediction, x_0, x_t, EVERY_T, SCHEDULE).dtype == dtype
        assert to_prediction(prediction, x_0, x_t, EVERY_T, SCHEDULE).dtype == dtype


def test_q_posterior_is_bayes_rule() -> None:
    x_0, x_t = noise(0), noise(1)
    posterior = q_posterior(x_0, x_t, EVERY_T, SCHEDULE)
    for t in range(1, T):
        variance, coef_x_0, coef_x_t = bayes(t)
        torch.testing.assert_close(posterior.mean[t], coef_x_0 * x_0[t] + coef_x_t * x_t[t], rtol=1e-11, atol=1e-11)
        assert float(posterior.variance[t]) == pytest.approx(variance, rel=1e-11)
        assert float(posterior.log_variance[t]) == pytest.approx(math.log(variance), rel=1e-11)


def test_q_posterior_at_t_0_is_x_0() -> None:
    x_0, x_t = noise(0, rows=1), noise(1, rows=1)
    posterior = q_posterior(x_0, x_t, torch.tensor([0]), SCHEDULE)
    torch.testing.assert_close(posterior.mean, x_0, rtol=1e-12, atol=0)
    assert float(posterior.variance) == 0
    assert float(posterior.log_variance) == pytest.approx(math.log(bayes(1)[0]), rel=1e-11)


def said(prediction: Prediction, x_0: torch.Tensor, eps: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
    """What each prediction is by its definition, in plain numbers."""
    match prediction:
        case "eps":
            return eps
        case "x_0":
            return x_0
        case "mean":
            weights = [(0.0, 1.0, 0.0), *map(bayes, range(1, T))]
            return per_row([w[1] for w in weights]) * x_0 + per_row([w[2] for w in weights]) * x_t
        case "v":  # Salimans and Ho 2022, Section 4
            return per_row([math.sqrt(b) for b in BAR]) * eps - per_row([math.sqrt(1 - b) for b in BAR]) * x_0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_says_x_0_and_follows_from_it(prediction: Prediction) -> None:
    x_0, eps = noise(0), noise(1)
    x_t = q_sample(x_0, EVERY_T, eps, SCHEDULE)
    value = said(prediction, x_0, eps, x_t)
    torch.testing.assert_close(predict_x_0(prediction, value, x_t, EVERY_T, SCHEDULE), x_0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_prediction(prediction, x_0, x_t, EVERY_T, SCHEDULE), value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(predict_eps(x_0, x_t, EVERY_T, SCHEDULE), eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("prediction", "error"), [("eps", 1e-4), ("x_0", 0.0), ("mean", 3e-3), ("v", 1e-6)])
def test_what_float32_costs_on_the_papers_schedule(prediction: Prediction, error: float) -> None:
    """The worst error of x_0 over all t, there and back in float32: of the mean's kind it is multiplied by 1 / coef_x_0."""
    t = torch.arange(1000)
    x_0 = noise(0, rows=1000).clamp(-1, 1).float()
    x_t = q_sample(x_0, t, noise(1, rows=1000).float(), PAPER)
    again = predict_x_0(prediction, to_prediction(prediction, x_0, x_t, t, PAPER), x_t, t, PAPER)
    worst = float((again - x_0).abs().max())
    assert worst <= error
    assert worst >= error / 100


@pytest.mark.parametrize("prediction", [name for name in PREDICTIONS if name != "eps"])
def test_without_terminal_signal_all_but_eps_say_x_0(prediction: Prediction) -> None:
    schedule = make_schedule(ScheduleConfig(name="jsd", num_timesteps=4))
    t = torch.arange(4)
    x_0, eps = noise(0, rows=4), noise(1, rows=4)
    x_t = q_sample(x_0, t, eps, schedule)
    assert torch.equal(x_t[-1], eps[-1])
    value = to_prediction(prediction, x_0, x_t, t, schedule)
    torch.testing.assert_close(predict_x_0(prediction, value, x_t, t, schedule), x_0, rtol=1e-12, atol=1e-12)


def test_without_terminal_signal_eps_says_nothing() -> None:
    schedule = make_schedule(ScheduleConfig(name="jsd", num_timesteps=4))
    eps = noise(1, rows=1)
    assert not bool(predict_x_0("eps", eps, eps, torch.tensor([3]), schedule).isfinite().any())


@pytest.mark.parametrize("bad", [-1, T])
def test_a_t_out_of_range_is_refused(bad: int) -> None:
    x, t = noise(0, rows=2), torch.tensor([3, bad])
    for refused in (
        lambda: q_sample(x, t, x, SCHEDULE),
        lambda: q_posterior(x, x, t, SCHEDULE),
        lambda: predict_x_0("eps", x, x, t, SCHEDULE),
        lambda: predict_eps(x, x, t, SCHEDULE),
        lambda: to_prediction("mean", x, x, t, SCHEDULE),
    ):
        with pytest.raises(ValueError, match=f"t is {bad}; expected 0 to {T - 1}"):
            refused()


def test_no_images_are_no_mistake() -> None:
    empty = noise(0, rows=0)
    assert q_sample(empty, torch.arange(0), empty, SCHEDULE).shape == empty.shape
