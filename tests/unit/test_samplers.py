"""The samplers, step by step. What they make of data that are known is in test_closed_form.py."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import jaxtyping
import pytest
import torch

from ddpm_core.diffusion.process import predict_x_0, to_prediction
from ddpm_core.diffusion.respacing import spaced_process
from ddpm_core.diffusion.reverse import Clip, ReverseConfig, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig, check_sampler, check_spacing, network_passes, steps_taken
from ddpm_core.diffusion.samplers import ancestral, sample
from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule, schedule_from_betas
from ddpm_core.random import Purpose, normals
from ddpm_core.types import Denoiser, Tensor

SHORT = make_schedule(ScheduleConfig(num_timesteps=10, beta_start=0.02, beta_end=0.5))
EVERY_SAMPLER = [
    SamplerConfig(clip="none"),
    SamplerConfig(variance="fixed_small", num_steps=4),
    SamplerConfig(name="ddim", num_steps=5, clip="dynamic"),
    SamplerConfig(name="ddim", eta=0.7, spacing="trailing", num_steps=3),
    SamplerConfig(name="dpm_solver", clip="none"),
    SamplerConfig(name="dpm_solver", spacing="leading", num_steps=5, clip="dynamic"),
    SamplerConfig(name="heun", clip="none"),
    SamplerConfig(name="heun", spacing="quadratic", num_steps=3),
]


def keyed(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32):
    """Noise as `generate` gives it: a function of t alone."""

    def noise(t: int) -> Tensor:
        return normals(0, Purpose.SAMPLING, torch.arange(shape[0]), shape[1:], step=t).to(dtype)

    return noise


def process(denoiser: Denoiser, schedule: NoiseSchedule = SHORT) -> ReverseProcess:
    """It predicts eps."""
    return ReverseProcess(denoiser=denoiser, schedule=schedule)


def bent_denoiser(x_t: Tensor, t: Tensor) -> Tensor:
    """Nothing in particular, but not linear."""
    return torch.tanh(2 * x_t + 0.1 * t[:, None, None, None])


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As without jaxtyping, whose refusal of wrong shapes and types comes first in tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("clip", ["static", "none", "dynamic"])
@pytest.mark.parametrize("num_steps", [None, 4])
def test_ddim_with_eta_1_is_ancestral_with_fixed_small(clip: Clip, num_steps: int | None) -> None:
    shape = (2, 1, 3, 3)
    noise = keyed(shape, torch.float64)
    small = SamplerConfig(variance="fixed_small", num_steps=num_steps, clip=clip)
    ddim = SamplerConfig(name="ddim", eta=1.0, num_steps=num_steps, clip=clip)
    one, other = (sample(process(bent_denoiser), config, noise(10), noise) for config in (small, ddim))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_ancestral_is_algorithm_2() -> None:
    """In plain Python numbers, for one pixel and a denoiser that says eps_hat = x_t / 2."""
    noise = keyed((1, 1, 1, 1), torch.float64)
    x = float(noise(10))
    betas = [0.02 + t * 0.48 / 9 for t in range(10)]
    for t in reversed(range(10)):
        bar = math.prod(1 - b for b in betas[: t + 1])
        x = (x - betas[t] / math.sqrt(1 - bar) * x / 2) / math.sqrt(1 - betas[t])
        x += math.sqrt(betas[t]) * float(noise(t)) if t > 0 else 0
    config = SamplerConfig(variance="fixed_large", clip="none")
    assert float(sample(process(lambda x_t, t: x_t / 2), config, noise(10), noise)) == pytest.approx(x, rel=1e-9)


def test_ddim_is_eq_12() -> None:
    """Song et al. 2021, in plain Python numbers, three steps with eta = 0.6 and eps_hat = x_t / 2."""
    noise = keyed((1, 1, 1, 1), torch.float64)
    x = float(noise(10))
    for t, t_prev in pairwise([9, 4, 0, -1]):  # 4.5 is rounded away from T-1
        bar, prev = (float(SHORT.alpha_bar[i]) if i >= 0 else 1.0 for i in (t, t_prev))
        sigma = 0.6 * math.sqrt((1 - prev) / (1 - bar)) * math.sqrt(1 - bar / prev)
        x_0_hat = (x - math.sqrt(1 - bar) * x / 2) / math.sqrt(bar)
        x = math.sqrt(prev) * x_0_hat + math.sqrt(1 - prev - sigma**2) * x / 2 + sigma * float(noise(t))
    config = SamplerConfig(name="ddim", eta=0.6, num_steps=3, clip="none")
    assert float(sample(process(lambda x_t, t: x_t / 2), config, noise(10), noise)) == pytest.approx(x, rel=1e-9)


def half(x_t: Tensor, t: Tensor) -> Tensor:
    """eps_hat = x_t / 2."""
    return x_t / 2


@pytest.mark.parametrize(
    ("steps", "spacing", "leap"), [([9, 6, 3, 0], "linspace", True), ([9, 7, 5, 3, 1], "trailing", False)]
)
def test_dpm_solver_is_the_published_algorithm(steps: list[int], spacing, leap: bool) -> None:
    """DPM-Solver++(2M) in the words of Lu et al. 2022b, Algorithm 2: h, r, D; in plain Python numbers.

    But for a leap, the last step to t = 0, before which r is below 1/2: there x_0_hat goes on along a line in alpha, and
    x = alpha x_0_hat + sigma eps_hat turns by the angle whose cosine alpha is, which in the words of
    x'' = -x - q, q constant, is x + (1 - cos) (x_0_hat - before) / (alpha - alpha before).
    """
    schedule = make_schedule(ScheduleConfig(num_timesteps=10, beta_start=0.002, beta_end=0.5))
    noise = keyed((1, 1, 1, 1), torch.float64)
    x, ratios = float(noise(10)), []
    before = h_before = alpha_before = math.nan
    for t, t_next in pairwise(steps):
        alpha, alpha_next = (math.sqrt(float(schedule.alpha_bar[i])) for i in (t, t_next))
        sigma, sigma_next = (math.sqrt(1 - a**2) for a in (alpha, alpha_next))
        x_0_hat = (x - sigma * x / 2) / alpha
        h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
        D, turned = x_0_hat, 0.0
        if t != steps[0]:
            r = h_before / h
            ratios.append(r)
            if leap and t_next == 0:
                slope = (x_0_hat - before) / (alpha - alpha_before)
                turned = slope * (1 - math.cos(math.acos(alpha) - math.acos(alpha_next)))
            else:
                D = (1 + 1 / (2 * r)) * x_0_hat - 1 / (2 * r) * before
        x = sigma_next / sigma * x - alpha_next * (math.exp(-h) - 1) * D + turned
        before, h_before, alpha_before = x_0_hat, h, alpha
    assert [r < 0.5 for r in ratios] == [False] * (len(ratios) - 1) + [leap]
    bar = float(schedule.alpha_bar[steps[-1]])
    x = (x - math.sqrt(1 - bar) * x / 2) / math.sqrt(bar)  # the last estimate
    config = SamplerConfig(name="dpm_solver", num_steps=len(steps), spacing=spacing, clip="none")
    assert steps_taken(config, 10)[::-1] == steps
    assert float(sample(process(half, schedule), config, noise(10), noise)) == pytest.approx(x, rel=1e-9)


def test_dpm_solver_passes_a_first_step_on_which_nothing_changes() -> None:
    """Float64's least number, 2^-1074, times 0.6 is itself again: log SNR stands still, and r would be 0 / 0."""
    schedule = schedule_from_betas(torch.tensor([1 - 2**-50] * 21 + [0.5] * 24 + [0.4], dtype=torch.float64))
    assert float(schedule.log_snr[-1]) == float(schedule.log_snr[-2])
    p = ReverseProcess(denoiser=half, schedule=schedule, config=ReverseConfig(prediction="v"))
    noise, seen = keyed((1, 1, 2, 2), torch.float64), []
    config = SamplerConfig(name="dpm_solver", clip="none")
    sample(p, config, noise(46), noise, on_step=lambda t, x_t, x_0_hat: seen.append(x_t))
    assert torch.equal(seen[1], noise(46))


def test_heun_looks_twice_and_turns() -> None:
    """x'' = -x - q in phi, x_0_hat on a line of slope q in cos phi through both looks; in plain Python numbers."""
    noise = keyed((1, 1, 1, 1), torch.float64)
    bars = {t: float(SHORT.alpha_bar[t]) for t in (9, 6, 3, 0)} | {-1: 1.0}
    x = float(noise(10))

    def x_0_hat(x: float, phi: float) -> float:
        """Of eps_hat = x / 2."""
        return (x - math.sin(phi) * x / 2) / math.cos(phi)

    for t, t_next in pairwise([9, 6, 3, 0, -1]):
        phi, phi_next = (math.acos(math.sqrt(bars[i])) for i in (t, t_next))
        look = x_0_hat(x, phi)
        turned = math.cos(phi_next) * look + math.sin(phi_next) * x / 2
        if t_next == -1:
            x = turned
        else:
            q = (x_0_hat(turned, phi_next) - look) / (math.cos(phi_next) - math.cos(phi))
            x = turned + q * (1 - math.cos(phi_next - phi))
    config = SamplerConfig(name="heun", num_steps=4, clip="none")
    assert float(sample(process(half), config, noise(10), noise)) == pytest.approx(x, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "exact"), [("heun", [True, True, True]), ("dpm_solver", [False, True, True]), ("ddim", [False] * 3)]
)
def test_where_x_0_hat_is_a_line_in_sqrt_alpha_bar_its_step_is_exact(name, exact: list[bool]) -> None:
    """x_0_hat = a + b cos phi solves to x / sin phi = a cot phi + b / sin phi + a constant. From alpha_bar = 0 on, which is
    infinitely far in log SNR, dpm_solver's second step has such a line, and its last, a leap, has another."""
    schedule, a, b = make_schedule(ScheduleConfig(name="jsd")), -0.3, 0.7
    p = ReverseProcess(
        denoiser=lambda x_t, t: a + b * schedule.alpha_bar[t].sqrt()[:, None, None, None].expand_as(x_t),
        schedule=schedule,
        config=ReverseConfig(prediction="x_0"),
    )
    noise, states = keyed((1, 1, 2, 2), torch.float64), {}
    config = SamplerConfig(name=name, num_steps=4, clip="none")
    sample(p, config, noise(1000), noise, on_step=lambda t, x_t, x_0_hat: states.update({t: x_t}))
    assert list(states) == [999, 666, 333, 0]
    for (t, t_next), is_exact in zip(pairwise(states), exact, strict=True):
        phi, phi_next = (math.acos(math.sqrt(float(schedule.alpha_bar[i]))) for i in (t, t_next))
        constant = states[t] / math.sin(phi) - a / math.tan(phi) - b / math.sin(phi)
        expected = math.sin(phi_next) * (a / math.tan(phi_next) + b / math.sin(phi_next) + constant)
        assert torch.allclose(states[t_next], expected, rtol=0, atol=1e-12) == is_exact


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (SamplerConfig(), list(range(9, 0, -1))),
        (SamplerConfig(num_steps=4), [9, 6, 3]),
        (SamplerConfig(num_steps=3, spacing="trailing"), [9, 6]),  # the last step is from 2
        (SamplerConfig(num_steps=1), []),
        (SamplerConfig(name="ddim", eta=0.5, num_steps=4), [9, 6, 3]),
        (SamplerConfig(name="ddim", num_steps=4), []),
        (SamplerConfig(name="dpm_solver"), []),
        (SamplerConfig(name="heun"), []),
    ],
)
def test_noise_is_asked_for_only_where_it_is_used(config: SamplerConfig, asked: list[int]) -> None:
    noise, seen = keyed((1, 1, 2, 2)), []
    sample(process(bent_denoiser), config, noise(10), lambda t: seen.append(t) or noise(t))
    assert seen == asked


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm_solver", "heun"])
def test_denoiser_and_on_step_see_the_schedules_own_timesteps(name) -> None:
    noise, denoised, steps = keyed((2, 1, 2, 2)), [], []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        denoised.append((t.tolist(), x_t.clone()))
        return bent_denoiser(x_t, t)

    config = SamplerConfig(name=name, num_steps=4, clip="none")
    sample(process(denoise), config, noise(10), noise, on_step=lambda t, x_t, x_0_hat: steps.append((t, x_t, x_0_hat)))
    times = [9, 6, 6, 3, 3, 0, 0] if name == "heun" else [9, 6, 3, 0]
    assert [t for t, _ in denoised] == [[t, t] for t in times]
    if name == "heun":  # its second look is at where Euler's step would end
        denoised = [denoised[0], *denoised[2::2]]
    assert [t for t, _, _ in steps] == [9, 6, 3, 0]
    assert torch.equal(steps[0][1], noise(10))
    for (ts, seen), (_, x_t, x_0_hat) in zip(denoised, steps, strict=True):
        assert torch.equal(x_t, seen)
        t = torch.tensor(ts)
        torch.testing.assert_close(x_0_hat, predict_x_0("eps", bent_denoiser(x_t, t), x_t, t, SHORT))


@pytest.mark.parametrize("config", EVERY_SAMPLER)
def test_the_network_is_asked_as_often_as_is_said(config: SamplerConfig) -> None:
    noise, calls = keyed((1, 1, 2, 2)), []
    sample(process(lambda x_t, t: calls.append(int(t[0])) or bent_denoiser(x_t, t)), config, noise(10), noise)
    assert len(calls) == network_passes(config, 10)


@pytest.mark.parametrize("config", EVERY_SAMPLER)
def test_an_image_does_not_depend_on_its_neighbours(config: SamplerConfig) -> None:
    """Not by one bit: nothing of an image enters another's. (A network's own matrix products may round otherwise.)"""
    noise = keyed((5, 2, 3, 3))
    together = sample(process(bent_denoiser), config, 2 * noise(10), noise)
    for i in range(5):
        alone = sample(process(bent_denoiser), config, 2 * noise(10)[i : i + 1], lambda t, i=i: noise(t)[i : i + 1])
        assert torch.equal(alone, together[i : i + 1])


@pytest.mark.parametrize("config", EVERY_SAMPLER)
def test_the_dtype_of_x_T_is_kept(config: SamplerConfig) -> None:
    """A network under autocast may speak bfloat16; the chain stays in its own."""
    noise, exact = keyed((2, 1, 4, 4)), keyed((2, 1, 4, 4), torch.float64)
    single = sample(process(bent_denoiser), config, noise(10), noise)
    double = sample(process(bent_denoiser), config, exact(10), exact)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    spoken = process(lambda x_t, t: bent_denoiser(x_t, t).bfloat16())
    assert sample(spoken, config, noise(10), noise).dtype == torch.float32


@pytest.mark.parametrize(
    "config",
    [c for c in EVERY_SAMPLER if c.name != "dpm_solver"],
)
@pytest.mark.parametrize("place", [1, 2])
def test_a_chain_can_be_taken_up_where_it_was_left(config: SamplerConfig, place: int) -> None:
    """From x_t at one of its steps, the steps below it being the same; dpm_solver alone remembers the step before."""
    noise, states = keyed((2, 1, 3, 3)), {}
    config = replace(config, num_steps=None, spacing="linspace")
    x_0 = sample(
        process(bent_denoiser), config, noise(10), noise, on_step=lambda t, x_t, x_0_hat: states.update({t: x_t})
    )
    start = sorted(states)[-1 - place]
    again = sample(process(bent_denoiser), config, states[start], noise, start=start)
    torch.testing.assert_close(again, x_0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "start", "steps"),
    [
        (SamplerConfig(), 3, [0, 1, 2, 3]),
        (SamplerConfig(num_steps=3), 6, [0, 3, 6]),
        (SamplerConfig(num_steps=3, spacing="trailing"), 5, [1, 3, 5]),
        (SamplerConfig(num_steps=9), 2, [0, 1, 2]),  # no more than there are
        (SamplerConfig(num_steps=9, spacing="leading"), 2, [0, 1, 2]),
        (SamplerConfig(num_steps=2), 0, [0]),
        (SamplerConfig(num_steps=4), None, [0, 3, 6, 9]),
        (SamplerConfig(num_steps=4, spacing="leading"), None, [0, 2, 5, 7]),
    ],
)
@pytest.mark.parametrize("name", ["ancestral", "heun"])
def test_a_part_of_the_chain_begins_at_its_start(
    config: SamplerConfig, start: int | None, steps: list[int], name
) -> None:
    noise, seen = keyed((1, 1, 2, 2)), []
    config = replace(config, name=name)
    assert steps_taken(config, 10, start) == steps
    sample(
        process(bent_denoiser), config, noise(10), noise, start=start, on_step=lambda t, x_t, x_0_hat: seen.append(t)
    )
    assert seen == steps[::-1]


@pytest.mark.parametrize(
    ("config", "start", "message"),
    [
        (
            SamplerConfig(num_steps=4, spacing="leading"),
            8,
            "spacing is leading, whose first step below 8 is 6; expected linsp",
        ),
        (
            SamplerConfig(num_steps=3, spacing="quadratic"),
            8,
            "spacing is quadratic, whose first step below 8 is 7; expected",
        ),
        (SamplerConfig(), 10, "the start is step 10; expected 0 to 9"),
        (SamplerConfig(), -1, "the start is step -1; expected 0 to 9"),
        (SamplerConfig(num_steps=11), None, "11 sampling steps of a schedule of 10; expected 1 to 10"),
        (SamplerConfig(num_steps=11), 5, "11 sampling steps of a schedule of 10; expected 1 to 10"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(config: SamplerConfig, start: int | None, message: str) -> None:
    noise = keyed((1, 1, 2, 2))
    with pytest.raises(ValueError, match=message):
        sample(process(bent_denoiser), config, noise(10), noise, start=start)


def says(prediction, schedule: NoiseSchedule = SHORT) -> ReverseProcess:
    """The bent denoiser's estimate, said in another way: a mean is that of the step from t to t-1."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        x_0_hat = predict_x_0("eps", bent_denoiser(x_t, t), x_t, t, schedule)
        return to_prediction(prediction, x_0_hat, x_t, t, schedule)

    return ReverseProcess(denoiser=denoise, schedule=schedule, config=ReverseConfig(prediction=prediction))


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v", "mean"])
@pytest.mark.parametrize("config", EVERY_SAMPLER)
def test_all_predictions_of_one_network_give_one_image(prediction, config: SamplerConfig) -> None:
    noise = keyed((2, 1, 3, 3), torch.float64)
    expected = sample(process(bent_denoiser), config, noise(10), noise)
    torch.testing.assert_close(sample(says(prediction), config, noise(10), noise), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mean_survives_respacing_in_float32(dtype: torch.dtype) -> None:
    """Its coefficient of x_0 is about 1e-4 at the paper's last step: by way of it x_0 keeps three digits."""
    paper = make_schedule(ScheduleConfig())
    noise = keyed((2, 1, 3, 3), dtype)
    config = SamplerConfig(num_steps=20)
    x_0 = sample(says("mean", paper), config, noise(1000), noise)
    expected = sample(process(bent_denoiser, paper), config, noise(1000), noise)
    torch.testing.assert_close(x_0, expected, rtol=0, atol=0.01 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("said", [-50.0, 0.0, 50.0])
def test_a_learned_variance_stays_between_its_bounds_when_respaced(said: float) -> None:
    """Whatever the network says of its short step: posterior_variance and beta of the long one."""
    paper = make_schedule(ScheduleConfig())
    p = ReverseProcess(
        denoiser=lambda x_t, t: torch.cat((0 * x_t, 0 * x_t + said), dim=1),
        schedule=paper,
        config=ReverseConfig(variance="learned"),
    )
    steps = list(range(0, 1000, 111))
    spaced = spaced_process(p, steps)
    t = torch.arange(1, 10)
    log_variance = spaced.denoiser(torch.zeros(9, 1, 1, 1), t)[:, 1].flatten().double()
    bounds = spaced.schedule.posterior_variance[1:], spaced.schedule.betas[1:]
    torch.testing.assert_close(log_variance.exp(), bounds[0 if said < 0 else 1], rtol=1e-5, atol=0)


def says_a_mean_and_a_variance(variance, spoken: torch.dtype = torch.float32) -> ReverseProcess:
    """Nothing in particular, in a type of its own."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.cat((0.9 * x_t, torch.sin(x_t) - 0.05 * t[:, None, None, None]), dim=1).to(spoken)

    return ReverseProcess(denoiser=denoise, schedule=SHORT, config=ReverseConfig(prediction="mean", variance=variance))


def test_the_place_between_the_variances_stays_the_networks_own_when_respaced() -> None:
    """Though the mean beside it is said anew."""
    p = says_a_mean_and_a_variance("learned_range")
    x_t, t = keyed((3, 1, 2, 2))(0), torch.arange(3)
    spaced = spaced_process(p, [2, 5, 9])
    said = p.denoiser(x_t, torch.tensor([2, 5, 9]))
    found = spaced.denoiser(x_t, t)
    assert torch.equal(found[:, 1:], said[:, 1:])
    assert not bool((found[:, :1] == said[:, :1]).any())


def test_what_is_said_in_half_precision_is_respaced_in_the_images_type() -> None:
    p = says_a_mean_and_a_variance("learned", torch.bfloat16)
    widened = replace(p, denoiser=lambda x_t, t: p.denoiser(x_t, t).float())
    x_t, t = keyed((3, 1, 2, 2))(0), torch.arange(3)
    found, expected = (spaced_process(each, [2, 5, 9]).denoiser(x_t, t) for each in (p, widened))
    assert torch.equal(found, expected)


def test_all_the_steps_are_asked_for_as_the_network_says_them() -> None:
    """Without respacing nothing is said anew."""
    p = ReverseProcess(
        denoiser=lambda x_t, t: torch.cat((x_t, 0 * x_t - 3), dim=1),
        schedule=SHORT,
        config=ReverseConfig(prediction="mean", variance="learned"),
    )
    x_t, t = torch.ones(1, 1, 1, 1), torch.tensor([4])
    spaced = spaced_process(p, list(range(7)))
    assert torch.equal(spaced.denoiser(x_t, t), p.denoiser(x_t, t))
    assert spaced.config == p.config


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm_solver", "heun"])
@pytest.mark.parametrize("prediction", ["eps", "mean"])
def test_networks_that_learn_the_variance_are_sampled_by_all(variance, name, prediction) -> None:
    """The others have no use for it."""
    plain = says(prediction)
    p = ReverseProcess(
        denoiser=lambda x_t, t: torch.cat((plain.denoiser(x_t, t), torch.sin(x_t)), dim=1),
        schedule=SHORT,
        config=ReverseConfig(prediction=prediction, variance=variance),
    )
    noise, config = keyed((2, 2, 3, 3)), SamplerConfig(name=name, num_steps=4)
    x_0 = sample(p, config, noise(10), noise)
    assert x_0.shape == (2, 2, 3, 3)
    assert bool(x_0.isfinite().all())
    if name != "ancestral":
        torch.testing.assert_close(x_0, sample(plain, config, noise(10), noise))


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_fixed_variance_of_a_network_that_learned_its_own_is_refused(variance) -> None:
    p = ReverseProcess(denoiser=bent_denoiser, schedule=SHORT, config=ReverseConfig(variance=variance))
    message = f"sampler.variance is fixed_small and the model's own is {variance}; expected none"
    noise = keyed((1, 1, 2, 2))
    with pytest.raises(ValueError, match=message):
        sample(p, SamplerConfig(variance="fixed_small"), noise(10), noise)
    with pytest.raises(ValueError, match=message):
        check_sampler(SamplerConfig(variance="fixed_small"), variance, 10)


@pytest.mark.parametrize(
    ("schedule", "spacing", "num_steps", "said"),
    [
        (
            "cosine",
            "quadratic",
            10,
            "quadratic, which begins 10 steps at t = 800, where an image is still there by 0.31 of",
        ),
        ("cosine", "leading", 5, "leading, which begins 5 steps at t = 800, where"),
        ("cosine", "leading", 8, None),  # 0.19
        ("jsd", "leading", 20, "leading, which begins 20 steps at t = 950, where an image is still there by 0.22 of"),
        ("jsd", "leading", 50, None),
        ("linear", "quadratic", 5, None),
        ("linear", "leading", 2, "leading, which begins 2 steps at t = 500, where"),
        ("linear", "leading", 1, "leading, which begins 1 steps at t = 0, where an image is still there by 0.99 of"),
        ("sigmoid", "quadratic", 5, None),
        (
            "constant",
            "trailing",
            10,
            "trailing, which ends 10 steps at t = 99, where the noise's deviation is still 0.93",
        ),
        ("constant", "trailing", 44, "trailing, which ends 44 steps at t = 22, where"),
        ("constant", "trailing", 50, None),
        ("warmup10", "trailing", 10, "trailing, which ends 10 steps at t = 99, where"),
        ("warmup10", "trailing", 20, None),
        ("linear", "trailing", 5, None),
        ("linear", "trailing", 2, "trailing, which ends 2 steps at t = 499, where the noise's deviation is still 0.96"),
        ("constant", "linspace", 2, None),
        ("constant", "trailing", 1, None),  # one step says what it is
    ],
)
def test_steps_that_begin_or_end_in_the_wrong_noise_are_refused(schedule, spacing, num_steps, said) -> None:
    numbers = make_schedule(ScheduleConfig(name=schedule))
    config = SamplerConfig(name="ddim", spacing=spacing, num_steps=num_steps)
    if said is None:
        check_spacing(config, numbers)
        return
    with pytest.raises(ValueError, match=said):
        check_spacing(config, numbers)
    check_spacing(replace(config, spacing="linspace"), numbers)


def test_what_is_missing_or_left_is_said_of_the_step_itself() -> None:
    """Of ten steps neighbours differ: [0, 3, 6] begin at alpha_bar 0.2348 of 0.0387, and [4, 9] end at 0.4985."""
    with pytest.raises(ValueError, match=r"at t = 6, where an image is still there by 0\.29 of"):
        check_spacing(SamplerConfig(num_steps=3, spacing="leading"), SHORT)
    with pytest.raises(ValueError, match=r"at t = 4, where the noise's deviation is still 0\.71 and"):
        check_spacing(SamplerConfig(num_steps=2, spacing="trailing"), SHORT)


@pytest.mark.parametrize("own", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("asked", [None, "fixed_small", "fixed_large"])
def test_the_models_fixed_variance_can_be_exchanged(own, asked) -> None:
    noise = keyed((1, 1, 2, 2), torch.float64)
    p = ReverseProcess(denoiser=bent_denoiser, schedule=SHORT, config=ReverseConfig(variance=own))
    expected = ReverseProcess(denoiser=bent_denoiser, schedule=SHORT, config=ReverseConfig(variance=asked or own))
    found = sample(p, SamplerConfig(variance=asked), noise(10), noise)
    assert torch.equal(found, sample(expected, SamplerConfig(), noise(10), noise))


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm_solver", "heun"])
@pytest.mark.parametrize("clip", ["static", "dynamic"])
def test_clipping_keeps_images_in_range(name, clip: Clip) -> None:
    noise = keyed((1, 1, 8, 8))
    x_0 = sample(process(lambda x_t, t: 0 * x_t), SamplerConfig(name=name, clip=clip), 3 * noise(10), noise)
    assert float(x_0.abs().max()) <= 1


@pytest.mark.parametrize("config", EVERY_SAMPLER)
def test_sampling_keeps_no_graph(config: SamplerConfig) -> None:
    noise, weight = keyed((1, 1, 2, 2)), torch.ones(1, requires_grad=True)
    assert not sample(process(lambda x_t, t: weight * x_t), config, noise(10), noise).requires_grad


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
@pytest.mark.parametrize("num_steps", [None, 4])
def test_sampling_stays_on_the_device(name, num_steps: int | None) -> None:
    """The other two look at the schedule's values, which a meta tensor has not."""
    devices = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        devices.extend((x_t.device.type, t.device.type))
        return x_t

    away = torch.zeros(2, 1, 3, 3, device="meta")
    # v: of eps the schedule's end is looked at
    p = ReverseProcess(denoiser=denoise, schedule=SHORT.to("meta"), config=ReverseConfig(prediction="v"))
    config = SamplerConfig(name=name, num_steps=num_steps, eta=0.5)
    assert sample(p, config, away, lambda t: away).is_meta
    # not respaced, the network is given t itself
    ancestral(p, away, lambda t: away, lambda t, x_t, x_0_hat: None, SamplerConfig(clip="none"))
    assert set(devices) == {"meta"}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num-steps is 0; expected 1 or more"),
        ({"eta": -0.1}, "eta is -0.1; expected 0 to 1"),
        ({"eta": 1.5}, "eta is 1.5; expected 0 to 1"),
        ({"eta": math.nan}, "eta is nan; expected 0 to 1"),
        ({"name": "dim"}, "sampler.name is dim; expected one of ancestral, ddim, dpm_solver, heun"),
        ({"spacing": "even"}, "sampler.spacing is even; expected one of linspace, leading, trailing, quadratic"),
        ({"clip": "hard"}, "sampler.clip is hard; expected one of none, static, dynamic"),
        ({"variance": "learned"}, "sampler.variance is learned; expected one of fixed_small, fixed_large"),
    ],
)
def test_a_config_out_of_range_is_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**fields)


@pytest.mark.parametrize("fields", [{"num_steps": 1}, {"eta": 0.0}, {"eta": 1.0}])
def test_the_ends_of_the_ranges_are_in_them(fields) -> None:
    SamplerConfig(**fields)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x_T", "message"),
    [
        (
            torch.tensor([0.0, math.nan, math.inf, 1.0]).view(1, 1, 2, 2),
            "x_T has 2 values that are not finite; expected",
        ),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), "x_T is of type torch.int64; expected floating point values"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "x_T is of type torch.uint8; expected floating point values"),
        (torch.zeros(1, 2, 2), r"x_T has shape \[1, 2, 2\]; expected \[batch, channels, height, width\]"),
        (torch.zeros(1, 1, 1, 2, 2), r"x_T has shape \[1, 1, 1, 2, 2\]; expected \[batch, channels, height, width\]"),
    ],
)
def test_what_is_no_noise_is_refused(x_T: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(process(bent_denoiser), SamplerConfig(), x_T, keyed((1, 1, 2, 2)))


def test_a_batch_of_none_is_sampled() -> None:
    assert sample(process(bent_denoiser), SamplerConfig(), torch.zeros(0, 1, 2, 2), keyed((0, 1, 2, 2))).shape == (
        0,
        1,
        2,
        2,
    )
