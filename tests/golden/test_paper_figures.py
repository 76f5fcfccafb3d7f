"""Figures that the papers print."""

import math

import pytest
import torch

from ddpm_core.diffusion.gaussian import discretized_log_likelihood
from ddpm_core.diffusion.losses import prior_term
from ddpm_core.diffusion.respacing import spaced_timesteps
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.model.unet import UNet, UNetConfig


@pytest.mark.parametrize(
    ("config", "image_size", "millions"),
    [
        (UNetConfig(), 32, 35.7),
        (UNetConfig(channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0), 256, 114),
    ],
)
def test_the_networks_have_the_papers_sizes(config: UNetConfig, image_size: int, millions: float) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in UNet(config, image_size=image_size, channels=3).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.005)
    if image_size == 32:
        assert count == 35_746_307


def test_the_papers_schedule() -> None:
    """Ho et al. 2020, Section 4."""
    schedule = make_schedule(ScheduleConfig())
    assert (float(schedule.betas[0]), float(schedule.betas[-1]), schedule.num_timesteps) == (1e-4, 0.02, 1000)


def test_the_prior_term_is_about_1e_5_bits_a_dimension() -> None:
    """Ho et al. 2020, Section 4: L_T, here of pixels that are equally often of each level."""
    pixels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).reshape(1, 1, 16, 16)
    assert float(prior_term(pixels, make_schedule(ScheduleConfig()))) == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize(
    ("config", "snr", "signal"),
    [
        (ScheduleConfig(), 4.035993e-05, 0.006353),
        (ScheduleConfig(name="cosine"), 2.428735e-09, 4.928220e-05),
        (ScheduleConfig(name="quadratic", beta_start=8.5e-4, beta_end=0.012), 0.004682, 0.068265),
    ],
)
def test_the_terminal_signal_to_noise_ratios(config: ScheduleConfig, snr: float, signal: float) -> None:
    """Lin et al. 2024, Table 1: SNR(T) and sqrt(alpha_bar_T) of the linear, the cosine and Stable Diffusion's schedule."""
    schedule = make_schedule(config)
    assert float(schedule.snr[-1]) == pytest.approx(snr, rel=2e-4)
    assert float(schedule.alpha_bar[-1].sqrt()) == pytest.approx(signal, rel=2e-4)


def test_an_error_of_0_95_costs_1_97_bits_a_dimension() -> None:
    """Ho et al. 2020, Section 4.3: a distortion of 1.97 bits/dim beside an RMSE of 0.95 on the scale of 0..255.

    Computed for errors that are normal, under the decoder's fixed variance.
    """
    z = torch.linspace(-6, 6, 4_001, dtype=torch.float64)
    x_0 = torch.full_like(z, 1 / 255).reshape(1, 1, 1, -1)
    log_variance = make_schedule(ScheduleConfig()).posterior_log_variance_clipped[0].expand_as(x_0)
    nats = -discretized_log_likelihood(x_0, x_0 + z.reshape(x_0.shape) * 0.95 / 127.5, log_variance).flatten()
    bits = float(((-(z**2) / 2).softmax(dim=0) * nats).sum()) / math.log(2)
    assert bits == pytest.approx(1.97, abs=0.006)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        # Lin et al. 2024, Table 2, for T = 1000 and S = 10, counted from 1
        ("linspace", [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
        ("leading", [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        ("trailing", [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
    ],
)
def test_the_samplers_timesteps(spacing, expected: list[int]) -> None:
    assert [t + 1 for t in spaced_timesteps(1000, 10, spacing)[::-1]] == expected
