"""The divergence of two normal distributions, and the likelihood of 8-bit images, against scipy and 50 digits."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from ddpm_core.diffusion.gaussian import bits_per_dim, discretized_log_likelihood, normal_kl
from ddpm_core.types import Tensor

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
DIGITS = mp.workdps(50)
# Outside [-1, 1], on a level, between levels, at half a bin from one.
MEANS = (-3.0, -1.0, -0.99, -0.3, 0.0, float(LEVELS[127]), float(LEVELS[200]) + 1 / 255, 0.5, 1.0, 1.7)
LOG_VARIANCES = (-20.0, -9.21, -6.0, -3.0, 0.0, 2.0)


def log_likelihood(levels: Tensor, mean: Tensor | float, log_variance: Tensor | float) -> Tensor:
    """Of a row of levels, all under the same distribution."""
    mean, log_variance = (torch.as_tensor(value, dtype=levels.dtype) for value in (mean, log_variance))
    x_0 = levels.reshape(1, 1, 1, -1)
    return discretized_log_likelihood(x_0, mean.expand_as(x_0), log_variance.expand_as(x_0)).flatten()


def exact(x: float, mean: float, log_variance: float) -> mp.mpf:
    """Eq. 13 by mpmath's erfc; to be called with many digits."""
    deviation, half = mp.exp(mp.mpf(log_variance) / 2), mp.mpf(1) / 255

    def cdf(z):
        return mp.erfc(-z / mp.sqrt(2)) / 2

    centred = mp.mpf(x) - mp.mpf(mean)
    if x < -0.999:
        return mp.log(cdf((centred + half) / deviation))
    if x > 0.999:
        return mp.log(cdf((half - centred) / deviation))
    below = -abs(centred)  # where no digits are lost
    return mp.log(cdf((below + half) / deviation) - cdf((below - half) / deviation))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
def test_the_likelihood_is_eq_13_with_all_its_digits(dtype: torch.dtype, error: float) -> None:
    """Relative error where the logarithm is larger than 1, absolute where it is smaller; down to e^-1,000,000."""
    levels = LEVELS[[0, 1, 2, 100, 127, 128, 200, 254, 255]].to(dtype)
    smallest = 0.0
    for mean in torch.tensor(MEANS, dtype=dtype):
        for log_variance in LOG_VARIANCES:
            ours = log_likelihood(levels, mean, log_variance)
            assert ours.dtype == dtype
            for x, value in zip(levels.tolist(), ours.tolist(), strict=True):
                with DIGITS:
                    expected = exact(x, float(mean), log_variance)
                    assert abs(value - expected) <= error * max(1, abs(expected)), (x, mean, log_variance)
                smallest = min(smallest, value)
    assert smallest < -1e9


@pytest.mark.parametrize("log_variance", [-9.0, -4.0, 0.0])
def test_the_likelihood_is_that_of_scipys_normal(log_variance: float) -> None:
    """Differences of its CDF, on the side where they keep their digits."""
    mean, deviation = 0.123, math.exp(log_variance / 2)
    normal, x = stats.norm(mean, deviation), LEVELS.numpy()
    lower = np.where(x < -0.999, -np.inf, x - 1 / 255)
    upper = np.where(x > 0.999, np.inf, x + 1 / 255)
    with np.errstate(divide="ignore"):
        expected = np.where(
            x < mean,
            normal.logcdf(upper) + np.log1p(-np.exp(normal.logcdf(lower) - normal.logcdf(upper))),
            normal.logsf(lower) + np.log1p(-np.exp(normal.logsf(upper) - normal.logsf(lower))),
        )
    np.testing.assert_allclose(log_likelihood(LEVELS, mean, log_variance).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("log_variance", [-30.0, -12.0, -9.2, -6.0, -2.0, 0.0, 3.0, 20.0])
def test_the_256_bins_sum_to_1(log_variance: float) -> None:
    error = 1e-12 + 1e-16 * math.exp(-log_variance / 2)  # a bin's end is rounded, too
    for mean in (*MEANS, *torch.linspace(-1.2, 1.2, 23).tolist()):
        assert float(log_likelihood(LEVELS, mean, log_variance).exp().sum()) == pytest.approx(1, abs=error)


def test_the_likelihood_is_even() -> None:
    for mean in MEANS:
        ours, mirrored = log_likelihood(LEVELS, mean, -5.0), log_likelihood(-LEVELS.flip(0), -mean, -5.0)
        torch.testing.assert_close(ours, mirrored.flip(0), rtol=1e-11, atol=1e-11)


def test_rounding_does_not_move_a_level_into_another_bin() -> None:
    """The outermost bins are known by half a bin: a level that float16 rounds, or that misses 1 by a bit, stays where it is."""
    for shift in (-1e-3, 1e-3):
        for k in (0, 1, 254, 255):
            moved = log_likelihood(LEVELS[[k]] + shift, float(LEVELS[k]), -9.0)
            assert float(moved) == pytest.approx(float(log_likelihood(LEVELS[[k]], float(LEVELS[k]), -9.0)), abs=0.1)


def test_the_variance_may_be_one_for_an_image() -> None:
    x_0 = LEVELS.reshape(2, 2, 8, 8)
    each = torch.tensor([-5.0, -3.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    ours = discretized_log_likelihood(x_0, 0.9 * x_0, each)
    assert torch.equal(ours, discretized_log_likelihood(x_0, 0.9 * x_0, each.expand_as(x_0).contiguous()))


@pytest.mark.parametrize("log_variance", [-9.0, -4.0, 0.0])
def test_the_gradient_is_that_of_finite_differences(log_variance: float) -> None:
    levels = LEVELS[[0, 1, 90, 128, 200, 254, 255]]
    mean = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64).requires_grad_()
    log_variances = torch.full((7,), log_variance, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v: log_likelihood(levels, m, v), (mean, log_variances), rtol=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("k", "mean", "log_variance"),
    [
        (200, -1.0, -9.0),
        (10, 1.0, -12.0),
        (128, 0.5, -6.0),
        (128, 0.03125, -14.0),
        (40, 0.5, -20.0),
        (0, 1.0, -20.0),
        (255, -1.0, -9.0),
    ],
)
def test_the_gradient_in_the_tails_is_the_exact_one(
    dtype: torch.dtype, error: float, k: int, mean: float, log_variance: float
) -> None:
    """Of Eq. 13 in 50 digits, as far as 40,000 deviations from the mean; the largest one stands for itself."""
    at = torch.tensor(mean, dtype=dtype, requires_grad=True)
    spread = torch.tensor(log_variance, dtype=dtype, requires_grad=True)
    level = LEVELS[[k]].to(dtype)
    log_likelihood(level, at, spread).sum().backward()
    with DIGITS:
        by_mean = mp.diff(lambda m: exact(float(level), m, log_variance), mean)
        by_variance = mp.diff(lambda v: exact(float(level), mean, v), log_variance)
    assert float(at.grad) == pytest.approx(float(by_mean), rel=error)
    assert float(spread.grad) == pytest.approx(float(by_variance), rel=error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_wherever_a_network_may_go(dtype: torch.dtype) -> None:
    """All levels, means far outside, deviations from 1e-9 to 1e4: nothing overflows, in the branch not taken either."""
    mean = torch.tensor([-100.0, -1.0, 0.0, 1e-3, 1.0, 100.0], dtype=dtype)
    spread = torch.tensor([-41.0, -20.0, -9.0, 0.0, 9.0, 18.0], dtype=dtype)
    grid = torch.cartesian_prod(LEVELS[[0, 1, 128, 254, 255]].to(dtype), mean, spread)
    x_0, mean, spread = (column.reshape(-1, 1, 1, 1).clone().requires_grad_() for column in grid.T)
    ours = discretized_log_likelihood(x_0, mean, spread)
    ours.sum().backward()
    assert bool(ours.isfinite().all())
    assert bool((ours <= 0).all())
    assert bool(mean.grad.isfinite().all())
    assert bool(spread.grad.isfinite().all())
    # of a level between the ends the mean is pulled towards it; a deviation of 8,000 is too wide to tell
    pulled = ((x_0 - mean).abs() > 0.1) & (x_0.abs() < 0.999) & (spread < 10)
    assert torch.equal(mean.grad.sign()[pulled], (x_0 - mean).sign()[pulled])


def random_normals(seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(4)]


def test_kl_is_torch_distributions() -> None:
    mean_1, log_variance_1, mean_2, log_variance_2 = random_normals(0)
    first, second = (
        Normal(mean, (log_variance / 2).exp())
        for mean, log_variance in ((mean_1, log_variance_1), (mean_2, log_variance_2))
    )
    ours = normal_kl(mean_1, log_variance_1, mean_2, log_variance_2)
    torch.testing.assert_close(ours, kl_divergence(first, second), rtol=1e-12, atol=1e-12)


def test_kl_of_almost_equal_distributions_keeps_its_digits() -> None:
    for mean, log_variance in [(0.0, 1e-3), (0.0, -1e-6), (1e-7, 0.0), (1e-5, 1e-5)]:
        with DIGITS:
            # the difference that the numbers have once they are float64
            d = mp.mpf(-9.0 + log_variance) + 9
            exact_kl = (mp.exp(d) - 1 - d + mp.mpf(mean) ** 2 * mp.exp(9)) / 2
        ours = normal_kl(*(torch.tensor(v, dtype=torch.float64) for v in (mean, -9.0 + log_variance, 0.0, -9.0)))
        assert float(ours) == pytest.approx(float(exact_kl), rel=1e-9, abs=0)


def test_kl_of_equal_distributions_is_0() -> None:
    mean, log_variance, _, _ = random_normals(0)
    assert not bool(normal_kl(mean, log_variance, mean, log_variance).any())


def test_bits_per_dim_is_a_mean_in_base_2() -> None:
    nats = torch.stack([torch.full((3, 4, 4), 8 * math.log(2)), torch.arange(48.0).reshape(3, 4, 4)])
    assert bits_per_dim(nats).tolist() == pytest.approx([8, 23.5 / math.log(2)])


def test_a_uniform_image_needs_8_bits() -> None:
    """Under a very wide distribution all levels between the ends are as likely; a bin of it says how much so."""
    wide = log_likelihood(LEVELS[1:-1], 0.0, 20.0)
    assert float(wide.std()) < 1e-8
    density = -0.5 * (20 + math.log(2 * math.pi))
    assert float(wide.mean()) == pytest.approx(density + math.log(2 / 255), rel=1e-9)
