"""The variational bound on data whose entropy is known, with the best denoiser that there is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import pytest
import torch

from ddpm_core.diffusion.likelihood import Bound, variational_bound
from ddpm_core.diffusion.losses import prior_term
from ddpm_core.diffusion.process import q_sample
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess, Variance, p_mean_variance
from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule, schedule_from_betas
from ddpm_core.types import Tensor

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
SHORT = make_schedule(ScheduleConfig(num_timesteps=12, beta_start=0.001, beta_end=0.4))
# Nodes and weights of the trapezium rule for an expectation over eps; it converges exponentially.
NODES = torch.linspace(-7, 7, 41, dtype=torch.float64)
WEIGHTS = torch.exp(-(NODES**2) / 2) / math.sqrt(2 * math.pi) * (NODES[1] - NODES[0])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small and many: two threads on a busy machine are several times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Pixels:
    """Independent pixels, drawn from a mixture of normal distributions and rounded to 8 bits."""

    components: tuple[tuple[float, float, float], ...]
    """Weight, mean, deviation."""

    @cached_property
    def distribution(self) -> tuple[Tensor, Tensor]:
        """The levels that occur, and how often."""
        edges = torch.cat((LEVELS[:1] - 9, LEVELS[1:] - 1 / 255, LEVELS[-1:] + 9))
        parts = [w * torch.special.ndtr((edges - mean) / deviation).diff() for w, mean, deviation in self.components]
        probability = torch.stack(parts).sum(dim=0)
        kept = probability > 1e-9
        return LEVELS[kept], probability[kept] / probability[kept].sum()

    @property
    def entropy(self) -> float:
        """Bits a pixel: no code is shorter, and so no bound lower."""
        probability = self.distribution[1]
        return float(-(probability * probability.log2()).sum())

    def moments(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_0 given x_t, by Bayes' rule over the levels."""
        levels, probability = self.distribution
        alpha_bar = alpha_bar[:, None, None, None, None]
        residual = x_t[..., None] - alpha_bar.sqrt() * levels
        weights = (probability.log() - residual**2 / (2 * (1 - alpha_bar))).softmax(dim=-1)
        mean = (weights * levels).sum(dim=-1)
        return mean, (weights * (levels - mean[..., None]) ** 2).sum(dim=-1)


NORMAL = Pixels(((1.0, 0.1, 0.03),))
MIXTURE = Pixels(((0.3, -0.5, 0.01), (0.5, 0.0, 0.02), (0.2, 0.6, 0.015)))


def even_schedule(T: int) -> NoiseSchedule:
    """log SNR falls evenly, from where the levels lie 14 deviations apart to where nothing is seen of them."""
    alpha_bar = torch.linspace(15, -9, T, dtype=torch.float64).sigmoid()
    return schedule_from_betas(1 - alpha_bar / torch.cat((torch.ones(1, dtype=torch.float64), alpha_bar[:-1])))


def best_process(data: Pixels, schedule: NoiseSchedule, variance: Variance) -> ReverseProcess:
    """The denoiser E[x_0 | x_t]; and if the variance is learned, that of x_{t-1} given x_t."""

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        mean, spread = data.moments(x_t, schedule.alpha_bar[t])
        if variance != "learned":
            return mean
        # of the total variance; at t = 0 the fixed one, as for a decoder that knows x_0
        coef, own = schedule.posterior_mean_coef_x_0[t], schedule.posterior_log_variance_clipped[t].exp()
        total = own[:, None, None, None] + (t > 0)[:, None, None, None] * coef[:, None, None, None] ** 2 * spread
        return torch.cat((mean, total.log()), dim=1)

    return ReverseProcess(
        denoiser=denoiser, schedule=schedule, config=ReverseConfig(prediction="x_0", variance=variance)
    )


def expected_bound(data: Pixels, p: ReverseProcess) -> float:
    """Over x_0 and over eps, without a sample: images of one pixel for every pair of a level and a node."""
    levels, probability = data.distribution
    x_0 = levels.repeat_interleave(len(NODES)).reshape(-1, 1, 1, 1)
    eps = NODES.repeat(len(levels)).reshape(-1, 1, 1, 1)
    bound = variational_bound(p, x_0, lambda t: eps)
    weights = (probability[:, None] * WEIGHTS).flatten()
    return float((weights * (bound.prior + bound.terms.sum(dim=1))).sum())


def gaps(data: Pixels, variance: Variance, steps: tuple[int, ...]) -> list[float]:
    """Bits by which the bound of schedules of so many steps exceeds the entropy."""
    return [expected_bound(data, best_process(data, even_schedule(T), variance)) - data.entropy for T in steps]


@pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["normal", "mixture"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_bound_falls_to_the_entropy_as_1_over_T(data: Pixels, variance: Variance) -> None:
    steps = (50, 100, 200, 400) if data is NORMAL else (50, 100, 200)
    excess = gaps(data, variance, steps)
    assert min(excess) > 0
    ratios = [gap / half for gap, half in pairwise(excess)]
    assert all(abs(later - 2) < 0.6 * abs(ratio - 2) for ratio, later in pairwise(ratios)), ratios
    assert ratios[-1] == pytest.approx(2, abs=0.12)


@pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["normal", "mixture"])
def test_with_the_best_variance_the_bound_falls_faster(data: Pixels) -> None:
    excess = gaps(data, "learned", (50, 100, 200))
    assert min(excess) > 0
    ratios = [gap / half for gap, half in pairwise(excess)]
    assert 2.9 < ratios[0] < ratios[1] < 4, ratios
    assert excess[-1] < 0.02


def test_no_other_denoiser_has_a_lower_bound() -> None:
    """The best one minimises the bound: a little more or less of x_0, or one that takes a pixel for another, is worse."""
    p = best_process(NORMAL, SHORT, "fixed_large")
    least = expected_bound(NORMAL, p)
    for worse in (lambda x_t, t: 1.02 * p.denoiser(x_t, t), lambda x_t, t: p.denoiser(0.98 * x_t, t)):
        assert expected_bound(NORMAL, ReverseProcess(denoiser=worse, schedule=SHORT, config=p.config)) > least


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_every_term_is_the_snrs_difference_times_the_error(variance: Variance) -> None:
    """E L_{t-1} = (SNR_{t-1} - SNR_t) / 2 E |x_0 - x_0_hat|^2, in closed form for a denoiser that is linear in x_t.

    That is for the posterior's variance; beta_t divides it by beta_t / beta_tilde, and has a term of its own.
    """
    gain = torch.linspace(1.0, 0.1, 12, dtype=torch.float64)
    p = ReverseProcess(
        denoiser=lambda x_t, t: gain[t][:, None, None, None] * x_t,
        schedule=SHORT,
        config=ReverseConfig(prediction="x_0", variance=variance),
    )
    for x in LEVELS[[0, 100, 255]]:
        images = x.expand(len(NODES), 1, 1, 1)
        bound = variational_bound(p, images, lambda t: NODES.reshape(-1, 1, 1, 1), clip="none")
        ours = (WEIGHTS[:, None] * bound.terms).sum(dim=0)
        error = ((gain * SHORT.alpha_bar.sqrt() - 1) * x) ** 2 + gain**2 * (1 - SHORT.alpha_bar)
        torch.testing.assert_close((WEIGHTS[:, None] * bound.x_0_mse).sum(dim=0), error, rtol=1e-9, atol=0)
        nats = 0.5 * (SHORT.snr[:-1] - SHORT.snr[1:]) * error[1:]
        if variance == "fixed_large":
            share = SHORT.posterior_variance[1:] / SHORT.betas[1:]
            nats = share * nats + 0.5 * (share - 1 - share.log())
        torch.testing.assert_close(ours[1:], nats / math.log(2), rtol=1e-9, atol=0)


def eight_bit_images(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randint(0, 256, (rows, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    return drawn.to(dtype) / 127.5 - 1


def keyed_noise(rows: int, dtype: torch.dtype = torch.float64) -> Callable[[int], Tensor]:
    def noise(t: int) -> Tensor:
        return torch.randn(rows, 3, 4, 4, generator=torch.Generator().manual_seed(t), dtype=torch.float64).to(dtype)

    return noise


def bent(x_t: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(2 * x_t + 0.1 * t[:, None, None, None])


P = ReverseProcess(denoiser=bent, schedule=SHORT)


def test_a_few_timesteps_are_those_terms_of_the_whole() -> None:
    x_0, noise = eight_bit_images(3), keyed_noise(3)
    whole = variational_bound(P, x_0, noise)
    assert whole.terms.shape == whole.x_0_mse.shape == (3, 12)
    part = variational_bound(P, x_0, noise, timesteps=[7, 0, 7, 11])
    assert torch.equal(part.prior, whole.prior)
    assert torch.equal(part.prior, prior_term(x_0, SHORT))
    assert torch.equal(part.terms, whole.terms[:, [7, 0, 7, 11]])
    assert torch.equal(part.x_0_mse, whole.x_0_mse[:, [7, 0, 7, 11]])


def test_an_image_has_its_own_bound() -> None:
    whole = variational_bound(P, eight_bit_images(3), keyed_noise(3))
    alone = variational_bound(P, eight_bit_images(3)[1:2], lambda t: keyed_noise(3)(t)[1:2])
    for ours, other in zip(alone, whole, strict=True):
        torch.testing.assert_close(ours, other[1:2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("clip", ["static", "dynamic", "none"])
def test_the_error_is_that_of_x_0_hat_as_it_is_clipped(clip) -> None:
    x_0, noise = eight_bit_images(3), keyed_noise(3)
    bound = variational_bound(P, x_0, noise, timesteps=[5], clip=clip)
    t = torch.full((3,), 5)
    step = p_mean_variance(P, q_sample(x_0, t, noise(5), SHORT), t, clip=clip)
    torch.testing.assert_close(bound.x_0_mse[:, 0], (step.x_0_hat - x_0).square().mean(dim=(1, 2, 3)))


def test_all_but_the_network_is_float64() -> None:
    """A network of float32 gives the bound of the same network in float64, to what its own rounding is worth."""
    seen = set()

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        seen.add(x_t.dtype)
        return bent(x_t, t)

    p = ReverseProcess(denoiser=network, schedule=make_schedule(ScheduleConfig()))
    steps = [0, 1, 10, 500, 999]
    bound = variational_bound(p, eight_bit_images(3, torch.float32), keyed_noise(3, torch.float32), timesteps=steps)
    assert seen == {torch.float32}
    assert {part.dtype for part in bound} == {torch.float64}
    # the noise's own rounding aside
    rounded = keyed_noise(3, torch.float32)
    exact = variational_bound(p, eight_bit_images(3), lambda t: rounded(t).double(), timesteps=steps)
    torch.testing.assert_close(bound.terms, exact.terms, rtol=1e-5, atol=0)


def test_nothing_is_kept_for_a_gradient() -> None:
    weight = torch.ones((), requires_grad=True)
    p = ReverseProcess(denoiser=lambda x_t, t: weight * x_t, schedule=SHORT)
    bound: Bound = variational_bound(p, eight_bit_images(1), keyed_noise(1))
    assert not any(part.requires_grad for part in bound)


def test_the_bound_stays_on_the_device() -> None:
    devices = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        devices.extend((x_t.device.type, t.device.type))
        return x_t

    away = torch.zeros(2, 3, 4, 4, device="meta")
    # v: of eps the schedule's end is looked at
    p = ReverseProcess(denoiser=denoise, schedule=SHORT.to("meta"), config=ReverseConfig(prediction="v"))
    bound = variational_bound(p, away, lambda t: away, timesteps=[0, 5, 11])
    assert all(part.is_meta for part in bound)
    assert set(devices) == {"meta"}
