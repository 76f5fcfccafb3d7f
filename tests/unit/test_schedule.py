"""The schedule against the paper's equations in plain Python floats."""

import math

import pytest
import torch

from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule, respace, schedule_from_betas

NAMES = ["linear", "quadratic", "constant", "cosine"]


def python_betas(name: str, T: int) -> list[float]:
    start, end = 1e-4, 0.02

    def f(t: float) -> float:
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    position = [i / (T - 1) for i in range(T)]
    return {
        "linear": [start + x * (end - start) for x in position],
        "quadratic": [(start**0.5 + x * (end**0.5 - start**0.5)) ** 2 for x in position],
        "constant": [end] * T,
        "cosine": [min(1 - (f(t + 1) / f(0)) / (f(t) / f(0)), 0.999) for t in range(T)],
    }[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [2, 10, 1000])
def test_every_field_is_what_the_paper_says(name, T: int) -> None:
    schedule = make_schedule(ScheduleConfig(name=name, num_timesteps=T))
    assert schedule.num_timesteps == T
    bar = 1.0
    for t, beta in enumerate(python_betas(name, T)):
        bar_prev, bar = bar, bar * (1 - beta)
        posterior = beta * (1 - bar_prev) / (1 - bar)
        expected = {
            "betas": beta,
            "alphas": 1 - beta,
            "alpha_bar": bar,
            "alpha_bar_prev": bar_prev,
            "snr": bar / (1 - bar),
            "posterior_variance": posterior,
            "posterior_mean_coef_x_0": math.sqrt(bar_prev) * beta / (1 - bar),
            "posterior_mean_coef_x_t": math.sqrt(1 - beta) * (1 - bar_prev) / (1 - bar),
        }
        if t > 0:
            expected["posterior_log_variance_clipped"] = math.log(posterior)
        for field, value in expected.items():
            tensor = getattr(schedule, field)
            assert tensor.dtype == torch.float64
            assert float(tensor[t]) == pytest.approx(value, rel=1e-9, abs=1e-15), (field, t)
    log_variance = schedule.posterior_log_variance_clipped
    assert log_variance[0] == log_variance[1]


def test_the_papers_betas_end_where_it_says() -> None:
    betas = make_schedule(ScheduleConfig()).betas
    assert (float(betas[0]), float(betas[-1]), len(betas)) == (1e-4, 0.02, 1000)


def test_the_cosine_schedule_is_clipped() -> None:
    assert float(make_schedule(ScheduleConfig(name="cosine")).betas[-1]) == 0.999


def test_a_schedule_of_one_step_is_finite() -> None:
    schedule = make_schedule(ScheduleConfig(num_timesteps=1))
    assert float(schedule.posterior_variance[0]) == 0
    assert float(schedule.posterior_log_variance_clipped[0]) == pytest.approx(math.log(1e-4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_timesteps": 0}, "num-timesteps is 0; expected 1 or more"),
        ({"beta_start": 0.0}, "beta-start is 0.0; expected more than 0"),
        ({"beta_end": 1.0}, "beta-end is 1.0; expected more than 0 and less than 1"),
        ({"beta_end": math.nan}, "beta-end is nan"),
    ],
)
def test_a_config_out_of_range_is_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**fields)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, math.nan])
def test_a_beta_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"beta at t = 1 is {bad}; expected"):
        schedule_from_betas(torch.tensor([0.1, bad, 0.2], dtype=torch.float64))


def test_no_betas_are_refused() -> None:
    with pytest.raises(ValueError, match="0 betas; expected 1 or more"):
        schedule_from_betas(torch.tensor([], dtype=torch.float64))


@pytest.mark.parametrize(("steps", "expected"), [(1, [9]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10)))])
def test_respace_spreads_evenly(steps: int, expected: list[int]) -> None:
    schedule = make_schedule(ScheduleConfig(num_timesteps=10))
    spaced, timesteps = respace(schedule, steps)
    assert timesteps.tolist() == expected
    torch.testing.assert_close(spaced.alpha_bar, schedule.alpha_bar[timesteps], rtol=1e-12, atol=0)


def test_respace_to_all_steps_changes_nothing() -> None:
    schedule = make_schedule(ScheduleConfig())
    spaced, _ = respace(schedule, 1000)
    torch.testing.assert_close(spaced.betas, schedule.betas, rtol=1e-10, atol=0)


@pytest.mark.parametrize("steps", [0, 11])
def test_respace_refuses_other_counts(steps: int) -> None:
    with pytest.raises(ValueError, match=f"{steps} sampling steps of a schedule of 10; expected 1 to 10"):
        respace(make_schedule(ScheduleConfig(num_timesteps=10)), steps)


def test_to_moves_every_field() -> None:
    moved = make_schedule(ScheduleConfig(num_timesteps=3)).to("meta")
    assert isinstance(moved, NoiseSchedule)
    assert all(tensor.is_meta for tensor in vars(moved).values())
