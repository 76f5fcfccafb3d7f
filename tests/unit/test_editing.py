"""Going part of the way and back, mixing, completing: on data whose optimal denoiser is known."""

import math
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from known_data import normal

from ddpm_core.diffusion.editing import inpaint, interpolate, progressive, reconstruct
from ddpm_core.diffusion.process import predict_x_0, q_sample
from ddpm_core.diffusion.respacing import spaced_process
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig, steps_taken
from ddpm_core.diffusion.samplers import sample
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.types import Tensor

T = 100
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, rescale=True))
RHO, VARIANCE = 2 / 3, 0.09
DATA = normal([0.1, -0.1], [[VARIANCE, RHO * VARIANCE], [RHO * VARIANCE, VARIANCE]])
P = ReverseProcess(denoiser=DATA.denoiser(SCHEDULE), schedule=SCHEDULE)
ANCESTRAL = SamplerConfig(clip="none")
DDIM = SamplerConfig(name="ddim", clip="none")
EVERY_SAMPLER = [
    ANCESTRAL,
    SamplerConfig(num_steps=7, clip="none"),
    SamplerConfig(name="ddim", eta=0.5, clip="none"),
    SamplerConfig(name="dpm_solver", num_steps=9, clip="none"),
    SamplerConfig(name="heun", num_steps=9, clip="none"),
]
KNOWN = torch.tensor([1.0, 0.0], dtype=torch.float64)[None, :, None, None]
"""Of two channels the first."""


def standard(count: int, seed: int) -> Tensor:
    return torch.randn(1, 2, 1, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(count: int, seed: int) -> Tensor:
    return DATA.draw(count, seed).T[None, :, None, :].clamp(-1, 1)


def noise(count: int):
    return lambda t: standard(count, 1000 + t)


def resample_noise(count: int):
    return lambda t, number: standard(count, 10_000 * (number + 1) + t)


def test_from_step_0_little_changes_and_from_the_last_one_everything() -> None:
    x_0, eps = drawn(2000, 0), standard(2000, 1)
    near = reconstruct(P, ANCESTRAL, x_0, 0, eps, noise(2000))
    # what is left of the noise of one step
    assert float((near - x_0).std()) < 1.1 * float((1 - SCHEDULE.alpha_bar[0]).sqrt())
    far = reconstruct(P, ANCESTRAL, x_0, T - 1, eps, noise(2000))
    correlation = torch.corrcoef(torch.stack((x_0[0, 0, 0], far[0, 0, 0])))[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(2000)


@pytest.mark.parametrize("step", [0, 20, 60, T - 1])
@pytest.mark.parametrize(("sampler", "bias"), [(DDIM, 0.005), (SamplerConfig(name="heun", clip="none"), 0.001)])
def test_reconstructions_are_distributed_as_the_data(step: int, sampler: SamplerConfig, bias: float) -> None:
    """Diffused data denoised exactly are data again; to 4 standard errors and the bias of the steps."""
    count = 10_000
    again = reconstruct(P, sampler, drawn(count, 0), step, standard(count, 1), noise(count))[0, :, 0]
    assert float((again.mean(dim=1) - DATA.mean).abs().max()) < 4 * math.sqrt(VARIANCE / count)
    # the clamp to [-1, 1] of what is drawn moves the variance by less than 1e-4
    torch.testing.assert_close(again.cov(), DATA.covariance, atol=4 * VARIANCE * math.sqrt(2 / count) + bias, rtol=0)


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_reconstruct_is_a_part_of_the_chain(sampler: SamplerConfig) -> None:
    x_0, eps = drawn(5, 0), standard(5, 1)
    x_t = q_sample(x_0, torch.tensor([40]), eps, SCHEDULE)
    steps: list[int] = []
    expected = sample(P, sampler, x_t, noise(5), start=40, on_step=lambda t, x_t, x_0_hat: steps.append(t))
    assert torch.equal(reconstruct(P, sampler, x_0, 40, eps, noise(5)), expected)
    assert (steps[0], steps[-1]) == (40, 0)


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_interpolation_ends_at_the_reconstructions(sampler: SamplerConfig) -> None:
    one, other, eps = drawn(5, 0), drawn(5, 2), standard(5, 1)
    for share, end in ((0.0, one), (1.0, other)):
        found = interpolate(P, sampler, one, other, share, 40, eps, noise(5))
        torch.testing.assert_close(found, reconstruct(P, sampler, end, 40, eps, noise(5)), rtol=0, atol=0)
    middle = interpolate(P, sampler, one, one, 0.5, 40, eps, noise(5))
    torch.testing.assert_close(middle, reconstruct(P, sampler, one, 40, eps, noise(5)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "jsd", "cosine"])
@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_there_is_a_mixture_at_every_step(sampler: SamplerConfig, name) -> None:
    """From the first, where there is next to no noise, to the last, where there may be nothing else: halfway between ends."""
    schedule = make_schedule(ScheduleConfig(name=name, num_timesteps=12))
    p = ReverseProcess(denoiser=DATA.denoiser(schedule, "v"), schedule=schedule, config=ReverseConfig(prediction="v"))
    one, other, eps = drawn(5, 0), drawn(5, 2), standard(5, 1)
    for step in range(12):
        ends = [reconstruct(p, sampler, x_0, step, eps, noise(5)) for x_0 in (one, other)]
        found = interpolate(p, sampler, one, other, 0.5, step, eps, noise(5))
        torch.testing.assert_close(found, 0.5 * (ends[0] + ends[1]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_the_exact_denoiser_mixes_linearly(sampler: SamplerConfig) -> None:
    """It is affine here, and so is every sampler: a quarter of the way lies a quarter of the way between the ends."""
    one, other, eps = drawn(5, 0), drawn(5, 2), standard(5, 1)
    ends = [reconstruct(P, sampler, x_0, 40, eps, noise(5)) for x_0 in (one, other)]
    found = interpolate(P, sampler, one, other, 0.25, 40, eps, noise(5))
    torch.testing.assert_close(found, 0.75 * ends[0] + 0.25 * ends[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm_solver", "heun"])
def test_progressive_shows_x_0_hat_along_the_chain(name) -> None:
    x_T, sampler = standard(4, 0), SamplerConfig(name=name, num_steps=10, clip="none")
    told: list[int] = []
    seen, x_0 = progressive(P, sampler, x_T, noise(4), [T - 1, 55, 0], on_step=lambda t, *_: told.append(t))
    assert told == steps_taken(sampler, T)[::-1]
    assert seen.shape == (1, 3, 2, 1, 4)
    t = torch.tensor([T - 1])
    torch.testing.assert_close(seen[:, 0], predict_x_0("eps", P.denoiser(x_T, t), x_T, t, SCHEDULE))
    torch.testing.assert_close(seen[:, 2], x_0)  # the last step ends where x_0_hat is
    assert torch.equal(x_0, sample(P, sampler, x_T, noise(4)))
    backwards, _ = progressive(P, sampler, x_T, noise(4), [0, 55, T - 1])
    assert torch.equal(backwards, seen.flip(1))


def test_progressive_refuses_a_step_that_is_not_taken_before_the_work() -> None:
    def busy(x_t: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was asked")

    p = ReverseProcess(denoiser=busy, schedule=SCHEDULE)
    with pytest.raises(
        ValueError, match=r"asked for at step 54; expected one of the sampler's: \[0, 11, 22, 33, 44, 55"
    ):
        progressive(p, SamplerConfig(num_steps=10), standard(4, 0), noise(4), [55, 54])
    with pytest.raises(ValueError, match=r"asked for at 0 steps; expected 1 or more of the sampler's: \[0, 99\]"):
        progressive(p, SamplerConfig(num_steps=2), standard(4, 0), noise(4), [])


def inpainted_moments(value: float, resamplings: int) -> tuple[float, float]:
    """Exact mean and variance of the second channel where the first is known.

    The method is affine in its noise, and pixels know nothing of each other: each pixel is given one unit of one noise.
    """
    place = {(t, n): 1 + i for i, (t, n) in enumerate((t, n) for t in range(1, T) for n in range(3 * resamplings))}
    columns = 2 * (len(place) + 2)

    def unit(column: int) -> Tensor:
        out = torch.zeros(1, 2, 1, columns, dtype=torch.float64)
        out[0, 0, 0, 2 * column] = out[0, 1, 0, 2 * column + 1] = 1
        return out

    x_0 = torch.tensor([value, 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, columns)
    p = ReverseProcess(denoiser=P.denoiser, schedule=SCHEDULE, config=ReverseConfig(variance="fixed_large"))
    made = inpaint(p, x_0, KNOWN, unit(0), lambda t, n: unit(place[t, n]), resamplings=resamplings, clip="none")[
        0, 1, 0
    ]
    mean = made[-1]  # this pixel got no noise
    return float(mean), float((made - mean).square().sum())


def test_resampling_brings_inpainting_to_the_conditional_distribution() -> None:
    """The second channel given the first is N(mean + rho (x - mean), variance (1 - rho^2)); a single pass is far off."""
    mean, variance = -0.1 + RHO * (0.5 - 0.1), VARIANCE * (1 - RHO**2)
    found = [inpainted_moments(0.5, resamplings) for resamplings in (1, 3, 8)]
    mean_errors, variance_errors = ([abs(f[i] - exact) for f in found] for i, exact in ((0, mean), (1, variance)))
    assert mean_errors == sorted(mean_errors, reverse=True)
    assert variance_errors == sorted(variance_errors, reverse=True)
    assert mean_errors[0] > 0.1
    assert mean_errors[-1] < 0.03
    assert variance_errors[-1] < 0.004
    # and no bias towards the one side or the other of what is known
    assert inpainted_moments(0.1, 1)[0] == pytest.approx(-0.1, abs=1e-3)


@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
def test_inpainting_keeps_what_is_known_bit_for_bit(clip) -> None:
    """Each image by a mask of its own, of which some pixels are known and some are not."""
    generator = torch.Generator().manual_seed(3)
    x_0 = torch.rand(4, 2, 5, 5, generator=generator) * 2 - 1
    known = (torch.rand(4, 1, 5, 5, generator=generator) < 0.5).float()
    x_T = torch.randn(4, 2, 5, 5, generator=generator)
    p = ReverseProcess(denoiser=lambda x_t, t: torch.tanh(x_t), schedule=SCHEDULE)
    made = inpaint(
        p, x_0, known, x_T, lambda t, n: torch.randn(4, 2, 5, 5, generator=generator), resamplings=2, clip=clip
    )
    assert torch.equal(known * made, known * x_0)
    assert bool((((made - x_0).abs() > 1e-3) | (known == 1)).float().mean() > 0.95)
    if clip != "none":
        assert float(made.abs().max()) <= 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 5), (1, 5, 5), (4, 1, 5, 5), (1, 1, 5, 1), (1, 1, 1, 1)])
def test_a_mask_of_any_type_and_shape_is_the_same_mask(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """And what an image holds where it is not known, even no number at all, does not matter."""
    generator = torch.Generator().manual_seed(3)
    x_0, x_T = torch.rand(4, 2, 5, 5, generator=generator) * 2 - 1, torch.randn(4, 2, 5, 5, generator=generator)
    known = torch.rand(shape, generator=generator) < 0.5
    p = ReverseProcess(denoiser=lambda x_t, t: torch.tanh(x_t), schedule=SCHEDULE)

    def completed(x_0: Tensor, mask: Tensor) -> Tensor:
        return inpaint(p, x_0, mask, x_T, lambda t, n: 0.1 * x_T * (n + 1), num_steps=5, resamplings=2)

    expected = completed(x_0, known.expand(4, 2, 5, 5).float())
    assert torch.equal(completed(x_0, known.to(dtype)), expected)
    holes = x_0.where(known.expand_as(x_0), torch.tensor(NAN))
    assert torch.equal(completed(holes, known.to(dtype)), expected)
    if dtype in (torch.uint8, torch.int64):
        assert torch.equal(completed(x_0, 255 * known.to(dtype)), expected)


def test_inpainting_in_fewer_steps_is_that_of_the_diffusion_seen_at_them_alone() -> None:
    """The noise is asked for by the schedule's own steps."""
    steps, asked = [0, 33, 66, 99], []

    def remembered(t: int, number: int) -> Tensor:
        asked.append((t, number))
        return resample_noise(3)(t, number)

    found = inpaint(P, drawn(3, 0), KNOWN, standard(3, 1), remembered, num_steps=4, resamplings=2, clip="none")
    few = spaced_process(P, steps)
    expected = inpaint(
        few, drawn(3, 0), KNOWN, standard(3, 1), lambda t, n: resample_noise(3)(steps[t], n), resamplings=2, clip="none"
    )
    assert torch.equal(found, expected)
    assert asked == [(t, n) for t in (99, 66, 33) for n in (3, 4, 5, 0, 1)]


def test_what_the_network_sees_of_the_known_part_is_x_0_diffused_to_that_step_and_by_a_step_back() -> None:
    """By the draws that are named: the known part's, then, for the second round, the way back's."""
    seen: dict[tuple[int, int], Tensor] = {}

    def looked_at(x_t: Tensor, t: Tensor) -> Tensor:
        step = int(t[0])
        seen[step, sum(key[0] == step for key in seen)] = x_t
        return P.denoiser(x_t, t)

    x_0, draw = drawn(3, 0), resample_noise(3)
    p = ReverseProcess(denoiser=looked_at, schedule=SCHEDULE)
    inpaint(p, x_0, KNOWN, standard(3, 1), draw, resamplings=2, clip="none")
    for t in (T - 1, 50, 1):
        below = torch.tensor([t - 1])
        first = q_sample(x_0, below, draw(t, 3), SCHEDULE)
        back = SCHEDULE.alphas[t].sqrt() * first + SCHEDULE.betas[t].sqrt() * draw(t, 5)
        torch.testing.assert_close(seen[t, 1][:, 0], back[:, 0])
        torch.testing.assert_close(seen[t - 1, 0][:, 0], q_sample(x_0, below, draw(t, 0), SCHEDULE)[:, 0])


def test_a_step_is_done_ten_times_over_unless_it_is_said_and_clipped_as_is_asked() -> None:
    asked: list[tuple[int, int]] = []
    few = spaced_process(P, [0, 50])
    x_T, draw = 3 * standard(3, 1), resample_noise(3)
    inpaint(few, drawn(3, 0), KNOWN, x_T, lambda t, n: asked.append((t, n)) or draw(t, n))
    assert len(asked) == 29  # three draws a round, and no way back from the last
    free, clipped = (
        inpaint(few, drawn(3, 0), KNOWN, x_T, draw, resamplings=1, clip=clip) for clip in ("none", "static")
    )
    assert not torch.equal(free, clipped)


def test_inpainting_of_nothing_known_is_sampling() -> None:
    found = inpaint(P, drawn(5, 0), 0 * KNOWN, standard(5, 1), resample_noise(5), resamplings=1, clip="none")
    expected = sample(P, ANCESTRAL, standard(5, 1), lambda t: resample_noise(5)(t, 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("resamplings", [1, 3])
def test_inpainting_asks_for_each_noise_once_and_knows_which(resamplings: int) -> None:
    """Two draws a step, and one more for each way back; none for the last step."""
    asked: list[tuple[int, int]] = []

    def remembered(t: int, number: int) -> Tensor:
        asked.append((t, number))
        return standard(3, 0)

    calls: list[int] = []

    def counted(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(int(t[0]))
        return P.denoiser(x_t, t)

    p = ReverseProcess(denoiser=counted, schedule=SCHEDULE)
    inpaint(p, drawn(3, 0), KNOWN, standard(3, 1), remembered, resamplings=resamplings, clip="none")
    assert len(set(asked)) == len(asked) == (T - 1) * (3 * resamplings - 1)
    assert calls == [t for t in reversed(range(T)) for _ in range(resamplings if t > 0 else 1)]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As without jaxtyping, whose refusal of wrong shapes and types comes first in tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


NAN = float("nan")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, e: reconstruct(P, DDIM, 3 * x, 5, e, noise(2)),
            r"x_0 has values from 1.5 to 1.5; expected images in",
        ),
        (lambda x, e: reconstruct(P, DDIM, NAN * x, 5, e, noise(2)), "x_0 has 4 values that are not finite"),
        (lambda x, e: reconstruct(P, DDIM, x[0], 5, e, noise(2)), r"x_0 has shape \[2, 1, 2\]; expected \[batch"),
        (lambda x, e: reconstruct(P, DDIM, x.int(), 5, e, noise(2)), "x_0 is of type torch.int32; expected floating"),
        (
            lambda x, e: reconstruct(P, DDIM, x, 5, e[..., :1], noise(2)),
            r"eps has shape \[1, 2, 1, 1\], x_0 has \[1, 2, 1, 2\]",
        ),
        (lambda x, e: reconstruct(P, DDIM, x, T, e, noise(2)), f"t is {T}; expected 0 to {T - 1}"),
        (lambda x, e: reconstruct(P, DDIM, x, -1, e, noise(2)), f"t is -1; expected 0 to {T - 1}"),
        (
            lambda x, e: reconstruct(P, SamplerConfig(num_steps=3, spacing="leading"), x, 40, e, noise(2)),
            "spacing is leading, whose first step below 40 is 27; expected linspace or trailing",
        ),
        (
            lambda x, e: interpolate(P, DDIM, x, x, 1.5, 5, e, noise(2)),
            "share of the other image is 1.5; expected 0 to 1",
        ),
        (
            lambda x, e: interpolate(P, DDIM, x, x, -0.5, 5, e, noise(2)),
            "share of the other image is -0.5; expected 0 to 1",
        ),
        (
            lambda x, e: interpolate(P, DDIM, x, x, 0.5, 5, e[..., :1], noise(2)),
            r"eps has shape \[1, 2, 1, 1\], x_0 has \[1, 2, 1, 2\]",
        ),
        (
            lambda x, e: inpaint(P, x, torch.tensor([1.0, 0.5]), e, lambda t, n: e),
            "the mask has 0.5 among its values; expected 1 where",
        ),
        (
            lambda x, e: interpolate(P, DDIM, x, x, NAN, 5, e, noise(2)),
            "share of the other image is nan; expected 0 to 1",
        ),
        (lambda x, e: interpolate(P, DDIM, x, 3 * x, 0.5, 5, e, noise(2)), "x_0_other has values from 1.5 to 1.5"),
        (
            lambda x, e: interpolate(P, DDIM, x, x[..., :1], 0.5, 5, e, noise(2)),
            r"x_0_other has shape \[1, 2, 1, 1\], x_0 has \[1, 2, 1, 2\]; expected equal shapes",
        ),
        (
            lambda x, e: inpaint(P, x, 0.5 + 0 * x, e, lambda t, n: e),
            "the mask has 0.5 among its values; expected 1 where",
        ),
        (lambda x, e: inpaint(P, x, NAN * x, e, lambda t, n: e), "the mask has nan among its values"),
        (
            lambda x, e: inpaint(P, x, torch.ones(1, 1, 3, 3), e, lambda t, n: e),
            r"the mask has shape \[1, 1, 3, 3\], x_0 has \[1, 2, 1, 2\]; expected one that broadcasts",
        ),
        (lambda x, e: inpaint(P, x, torch.ones(3), e, lambda t, n: e), r"the mask has shape \[3\]"),
        (
            lambda x, e: inpaint(P, x, torch.ones(1, 1, 1, 1, 1), e, lambda t, n: e),
            r"the mask has shape \[1, 1, 1, 1, 1\]",
        ),
        (lambda x, e: inpaint(P, x, 255 + 0 * x, e, lambda t, n: e), "the mask has 255 among its values; expected 1"),
        (
            lambda x, e: inpaint(P, x, 2 + (0 * x).int(), e, lambda t, n: e),
            "the mask has 2 among its values; expected 1",
        ),
        (lambda x, e: inpaint(P, NAN * x, 1 + 0 * x, e, lambda t, n: e), "x_0 has 4 values that are not finite"),
        (lambda x, e: inpaint(P, x, 0 * x, e, lambda t, n: e, resamplings=0), "resamplings is 0; expected 1 or more"),
        (lambda x, e: inpaint(P, x, 0 * x, NAN * e, lambda t, n: e), "x_T has 4 values that are not finite"),
        (lambda x, e: inpaint(P, x, 0 * x, e[..., :1], lambda t, n: e), r"x_T has shape \[1, 2, 1, 1\], x_0 has"),
    ],
)
def test_bad_arguments_are_refused(call, message: str) -> None:
    x_0 = torch.full((1, 2, 1, 2), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        call(x_0, standard(2, 0))
