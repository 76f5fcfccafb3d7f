"""Where the published code does other than the paper, or other than one would think; each one decided, and shown here."""

import math

import pytest
import torch

from ddpm_core.data.pixels import to_unit
from ddpm_core.diffusion.gaussian import discretized_log_likelihood
from ddpm_core.diffusion.likelihood import variational_bound
from ddpm_core.diffusion.losses import LossConfig, loss_per_image
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess, p_mean_variance
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.evaluation.bits_per_dim import measure_bound
from ddpm_core.random import Purpose, normals
from ddpm_core.types import Tensor
from pipelines.recipes import recipes

PAPER = make_schedule(ScheduleConfig())


def test_fixed_large_takes_the_next_posterior_variance_at_t_0() -> None:
    """Not beta_0 = 1e-4, which is twice as much, but tf.concat([posterior_variance[1:2], betas[1:]])."""
    x_t = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    p = ReverseProcess(denoiser=lambda x_t, t: x_t, schedule=PAPER, config=ReverseConfig(variance="fixed_large"))
    step = p_mean_variance(p, x_t, torch.tensor([0, 1]))
    betas = 1e-4, 1e-4 + 0.0199 / 999
    second = betas[1] * betas[0] / (1 - (1 - betas[0]) * (1 - betas[1]))
    assert step.variance.flatten().tolist() == pytest.approx([second, betas[1]], rel=1e-9)
    assert step.log_variance.flatten().exp().tolist() == pytest.approx([second, betas[1]], rel=1e-9)
    assert second == pytest.approx(0.545 * betas[0], rel=1e-3)


@pytest.mark.parametrize("name", ["celebahq256", "lsun_church256", "lsun_cat256", "lsun_bedroom256"])
def test_the_256x256_recipes_have_the_small_variance(name: str) -> None:
    assert recipes.make(name).reverse == ReverseConfig(prediction="eps", variance="fixed_small")


def test_the_cifar10_recipe_has_the_large_variance() -> None:
    assert recipes.make("cifar10").reverse == ReverseConfig(prediction="eps", variance="fixed_large")


def tanh_cdf(x: Tensor) -> Tensor:
    """approx_standard_normal_cdf of the published code."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def tanh_log_likelihood(centred: Tensor, deviation: float) -> Tensor:
    """discretized_gaussian_log_likelihood of the published code, of a level between the ends."""
    upper, lower = tanh_cdf((centred + 1 / 255) / deviation), tanh_cdf((centred - 1 / 255) / deviation)
    return (upper - lower).clamp(min=1e-12).log()


def bits_of(error: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
    """Bits for a level of which the mean misses by `error`: ours, and theirs."""
    x_0 = torch.full_like(error, 1 / 255).reshape(1, 1, 1, -1)
    log_variance = torch.full_like(x_0, 2 * math.log(deviation))
    ours = discretized_log_likelihood(x_0, x_0 - error.reshape(x_0.shape), log_variance).flatten()
    return -ours / math.log(2), -tanh_log_likelihood(error, deviation) / math.log(2)


def test_how_far_the_tanh_is_from_the_normal_cdf() -> None:
    x = torch.linspace(-9, 9, 18_001, dtype=torch.float64)
    apart = (tanh_cdf(x) - torch.special.ndtr(x)).abs()
    assert 1.5e-4 < float(apart.max()) < 2.5e-4


@pytest.mark.parametrize(("rmse", "apart"), [(0.3, 1e-3), (0.95, 1e-4)])
def test_the_tanh_hardly_moves_the_papers_figures(rmse: float, apart: float) -> None:
    """In bits/dim, for normal errors as large as the paper's (RMSE 0.95 of 255), and for smaller ones."""
    deviation = math.sqrt(float(PAPER.posterior_variance[1]))
    z = torch.linspace(-6, 6, 4_001, dtype=torch.float64)
    weights = (-(z**2) / 2).softmax(dim=0)
    ours, theirs = ((weights * bits).sum() for bits in bits_of(z * rmse / 127.5, deviation))
    assert apart / 10 < float((ours - theirs).abs()) < apart


def test_the_tanh_and_its_floor_are_far_off_in_the_tails() -> None:
    """Five deviations away it asks for 1.5 bits too many; from eight on for 39.9 bits, however wrong the mean is."""
    deviation = math.sqrt(float(PAPER.posterior_variance[1]))
    error = torch.tensor([2.0, 5.0, 8.0, 11.0], dtype=torch.float64) * deviation
    ours, theirs = bits_of(error, deviation)
    assert (theirs - ours).tolist() == pytest.approx([-0.0073, 1.51, -4.63, -43.9], rel=0.02)
    assert theirs[-1] == theirs[-2] == pytest.approx(-math.log2(1e-12))


SHORT = make_schedule(ScheduleConfig(num_timesteps=20, beta_end=0.4))
PIXELS = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def overshooting(x_t: Tensor, t: Tensor) -> Tensor:
    """An x_0 that leaves [-1, 1] often."""
    return 3 * x_t


P = ReverseProcess(denoiser=overshooting, schedule=SHORT, config=ReverseConfig(prediction="x_0"))


def noise(t: int) -> Tensor:
    return normals(0, Purpose.LIKELIHOOD, torch.arange(8), (1, 4, 4), step=t)


def test_the_evaluation_clips_x_0_hat() -> None:
    measured = measure_bound(P, PIXELS, 0).bits_per_dim
    clipped, free = (variational_bound(P, to_unit(PIXELS), noise, clip=clip) for clip in ("static", "none"))
    assert measured == pytest.approx(float((clipped.prior + clipped.terms.sum(dim=1)).mean()), rel=1e-12)
    assert float(free.terms.sum()) > 2 * float(clipped.terms.sum())


def test_training_on_the_bound_does_not_clip_x_0_hat() -> None:
    free = variational_bound(P, to_unit(PIXELS), noise, clip="none").terms
    for step in range(20):
        t = torch.full((8,), step)
        losses = loss_per_image(P, to_unit(PIXELS), t, noise(step), LossConfig(objective="bound"))
        torch.testing.assert_close(losses.double(), 20 * free[:, step], rtol=1e-4, atol=1e-6)


def test_what_overshoots_still_learns() -> None:
    """A clipped x_0_hat would have no gradient."""
    output = torch.full((8, 1, 4, 4), 2.0, requires_grad=True)
    p = ReverseProcess(denoiser=lambda x_t, t: output, schedule=SHORT, config=ReverseConfig(prediction="x_0"))
    t = torch.tensor([0, 1, 2, 3, 5, 10, 15, 19])
    loss_per_image(p, to_unit(PIXELS), t, noise(3), LossConfig(objective="bound")).sum().backward()
    assert bool((output.grad > 0).all())
