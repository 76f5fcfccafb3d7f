"""Figures that Ho, Jain, Abbeel 2020 print."""

import math

import pytest
import torch

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


def test_the_prior_term_is_about_1e_5_bits_a_dimension() -> None:
    alpha_bar = float(make_schedule(ScheduleConfig()).alpha_bar[-1])
    mean_square = 1 / 3  # of pixels uniform in [-1, 1]
    kl = 0.5 * (-math.log(1 - alpha_bar) - alpha_bar + alpha_bar * mean_square)
    assert kl / math.log(2) == pytest.approx(1e-5, rel=0.1)
