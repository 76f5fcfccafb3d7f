"""The simple loss."""

import pytest
import torch

from ddpm_core.diffusion.losses import simple_loss
from ddpm_core.diffusion.process import q_sample
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule

SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=10))


def test_it_is_the_mean_squared_error_of_each_image() -> None:
    g = torch.Generator().manual_seed(0)
    x_0, eps, error = (torch.randn(3, 2, 4, 5, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0, 4, 9])
    loss = simple_loss(lambda x_t, t: eps + error, x_0, t, eps, SCHEDULE)
    assert loss.tolist() == pytest.approx([float((e * e).sum() / 40) for e in error])


def test_the_denoiser_sees_the_diffused_images() -> None:
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(3, 1, 4, 4, generator=g), torch.randn(3, 1, 4, 4, generator=g)
    t = torch.tensor([0, 4, 9])
    expected = (q_sample(x_0, t, eps, SCHEDULE) * t[:, None, None, None] - eps).square().mean(dim=(1, 2, 3))
    loss = simple_loss(lambda x_t, t: x_t * t[:, None, None, None], x_0, t, eps, SCHEDULE)
    torch.testing.assert_close(loss, expected)
