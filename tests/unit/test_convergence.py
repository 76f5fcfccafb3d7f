"""The solvers' order of convergence, on the probability-flow ODE of data whose solution is known."""

import numpy as np
import pytest
import torch

from ddpm_core.diffusion.reverse import ReverseProcess
from ddpm_core.diffusion.samplers import SamplerConfig, sample
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.types import Tensor

MEAN, DEVIATION = 0.3, 0.5
# So many timesteps that those of few sampling steps lie where they should, to the rounding of one in 4,000.
FINE = make_schedule(ScheduleConfig(num_timesteps=4_000, rescale=True))
STEPS = (50, 100, 200, 400)


def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for x_0 ~ N(MEAN, DEVIATION^2)."""
    bar = FINE.alpha_bar[t][:, None, None, None]
    return (1 - bar).sqrt() * (x_t - bar.sqrt() * MEAN) / (bar * DEVIATION**2 + 1 - bar)


def exact(x_T: Tensor) -> Tensor:
    """x at t = 0: in y = x / sqrt(alpha_bar) and s = 1 / sqrt(SNR), y - MEAN grows as sqrt(DEVIATION^2 + s^2)."""
    first, last = FINE.alpha_bar[0], FINE.alpha_bar[-1]
    shrink = ((DEVIATION**2 + (1 / first - 1)) / (DEVIATION**2 + (1 / last - 1))).sqrt()
    return first.sqrt() * (MEAN + (x_T / last.sqrt() - MEAN) * shrink)


def error(name: str, num_steps: int, shift: int = 0) -> float:
    """Of x at t = 0, before the last step to x_0; root mean square."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None, None, None]
    seen: dict[int, Tensor] = {}

    def unused(t: int) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")

    def shifted(x_t: Tensor, t: Tensor) -> Tensor:
        return denoiser(x_t, (t + shift).clamp(max=FINE.num_timesteps - 1))

    p = ReverseProcess(denoiser=shifted, schedule=FINE)
    config = SamplerConfig(name=name, num_steps=num_steps, clip="none")
    sample(p, config, x_T, unused, on_step=lambda t, x_t, x_0_hat: seen.__setitem__(t, x_t))
    return float((seen[0] - exact(x_T)).square().mean().sqrt())


def slope(errors: list[float]) -> float:
    return float(-np.polyfit(np.log(STEPS), np.log(errors), 1)[0])


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm_solver", 2), ("heun", 2)])
def test_the_order_of_convergence_is_the_theoretical_one(name: str, order: int) -> None:
    errors = [error(name, steps) for steps in STEPS]
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ["dpm_solver", "heun"])
def test_a_step_off_by_one_shows(name: str) -> None:
    """A denoiser asked one timestep of the paper's too high, four of these, is seen at once."""
    assert error(name, 800, shift=4) > 5 * error(name, 800)


def test_second_order_beats_first_at_equal_passes() -> None:
    assert error("heun", 100) < error("ddim", 200) / 3
    assert error("dpm_solver", 200) < error("ddim", 200) / 2
