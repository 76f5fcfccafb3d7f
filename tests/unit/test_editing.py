"""Going part of the way and back, mixing, completing: on data whose optimal denoiser is known."""

import math

import pytest
import torch

from ddpm_core.diffusion.editing import inpaint, interpolate, progressive, reconstruct
from ddpm_core.diffusion.process import predict_x_0
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.samplers import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.types import Tensor

T = 100
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_end=0.15))
SMALL = ReverseConfig(variance="fixed_small")
COVARIANCE = torch.tensor([[0.09, 0.06], [0.06, 0.09]], dtype=torch.float64)
ANCESTRAL = SamplerConfig(clip="none")
DDIM = SamplerConfig(name="ddim", clip="none")


def correlated(x_t: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for two channels drawn together from N(0, COVARIANCE)."""
    bar = SCHEDULE.alpha_bar[t][:, None, None]
    noisy = bar * COVARIANCE + (1 - bar) * torch.eye(2, dtype=torch.float64)
    eps: Tensor = (1 - bar).sqrt() * torch.linalg.solve(noisy, x_t[:, :, 0, 0, None])
    return eps[..., None]


P = ReverseProcess(denoiser=correlated, schedule=SCHEDULE, config=SMALL)


def normal(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(rows: int, seed: int) -> Tensor:
    return (torch.linalg.cholesky(COVARIANCE) @ normal(rows, seed)[:, :, 0]).clamp(-1, 1)[..., None]


def noise(rows: int):
    return lambda t: normal(rows, 1000 + t)


def test_from_step_0_little_changes_and_from_the_last_one_everything() -> None:
    x_0, eps = drawn(500, 0), normal(500, 1)
    near = reconstruct(P, ANCESTRAL, x_0, 0, eps, noise(500))
    assert float((near - x_0).abs().max()) < 0.06
    far = reconstruct(P, ANCESTRAL, x_0, T - 1, eps, noise(500))
    assert abs(float((far * x_0).mean() / x_0.square().mean())) < 0.1


@pytest.mark.parametrize("step", [20, 60, T - 1])
def test_reconstructions_are_distributed_as_the_data(step: int) -> None:
    """Diffused data denoised exactly are data again; within 4 standard errors and the bias of 100 steps of ddim."""
    x_0 = drawn(8_000, 0)
    again = reconstruct(P, DDIM, x_0, step, normal(8_000, 1), noise(8_000))[:, :, 0, 0]
    error = 4 * 0.09 * math.sqrt(2 / 8_000) + 0.003
    torch.testing.assert_close(again.T.cov(), COVARIANCE, atol=error, rtol=0)


@pytest.mark.parametrize("sampler", [ANCESTRAL, DDIM])
def test_interpolation_ends_at_the_reconstructions(sampler: SamplerConfig) -> None:
    one, other, eps = drawn(5, 0), drawn(5, 2), normal(5, 1)
    for share, end in ((0.0, one), (1.0, other)):
        found = interpolate(P, sampler, one, other, share, 40, eps, noise(5))
        torch.testing.assert_close(found, reconstruct(P, sampler, end, 40, eps, noise(5)))
    middle = interpolate(P, sampler, one, one, 0.5, 40, eps, noise(5))
    torch.testing.assert_close(middle, reconstruct(P, sampler, one, 40, eps, noise(5)))


def test_the_exact_denoiser_mixes_linearly() -> None:
    """It is linear here, and so is ddim: half way lies the mean of the two ends."""
    one, other, eps = drawn(5, 0), drawn(5, 2), normal(5, 1)
    ends = [reconstruct(P, DDIM, x_0, 40, eps, noise(5)) for x_0 in (one, other)]
    found = interpolate(P, DDIM, one, other, 0.5, 40, eps, noise(5))
    torch.testing.assert_close(found, (ends[0] + ends[1]) / 2, rtol=1e-9, atol=1e-9)


def test_progressive_shows_x_0_hat_along_the_chain() -> None:
    x_T = normal(4, 0)
    seen, x_0 = progressive(P, SamplerConfig(num_steps=10, clip="none"), x_T, noise(4), [T - 1, 55, 0])
    assert seen.shape == (4, 3, 2, 1, 1)
    t = torch.full((4,), T - 1)
    torch.testing.assert_close(seen[:, 0], predict_x_0("eps", correlated(x_T, t), x_T, t, SCHEDULE))
    torch.testing.assert_close(seen[:, 2], x_0)  # the last step ends where x_0_hat is
    with pytest.raises(ValueError, match="asked for at step 54; expected one of the sampler's: "):
        progressive(P, SamplerConfig(num_steps=10), x_T, noise(4), [54])


@pytest.mark.parametrize(("resamplings", "largest_error"), [(1, None), (10, 0.02)])
def test_inpainting_draws_what_belongs_to_what_is_known(resamplings: int, largest_error: float | None) -> None:
    """One channel known, the other is N(rho x, 0.09 (1 - rho^2)) with rho = 2/3; going back and forth brings it there."""
    rows, known = 6_000, torch.tensor([1.0, 0.0], dtype=torch.float64)[None, :, None, None]
    x_0 = drawn(rows, 0)

    def resample_noise(t: int, number: int) -> Tensor:
        return normal(rows, 10_000 * (number + 1) + t)

    made = inpaint(P, x_0, known, normal(rows, 1), resample_noise, resamplings=resamplings, clip="none")
    assert torch.equal(made[:, 0], x_0[:, 0])
    a, b = made[:, 0, 0, 0], made[:, 1, 0, 0]
    slope = float((a * b).mean() / a.square().mean())
    if largest_error is None:
        assert slope < 0.62  # a single pass hardly looks at what is known: that is why the method resamples
    else:
        assert slope == pytest.approx(2 / 3, abs=0.05)
        assert float((b - slope * a).var()) == pytest.approx(0.09 * (1 - 4 / 9), abs=largest_error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, e: reconstruct(P, DDIM, 3 * x, 5, e, noise(2)), "expected images in"),
        (lambda x, e: reconstruct(P, DDIM, x, T, e, noise(2)), f"t is {T}; expected 0 to {T - 1}"),
        (
            lambda x, e: interpolate(P, DDIM, x, x, 1.5, 5, e, noise(2)),
            "share of the other image is 1.5; expected 0 to 1",
        ),
        (lambda x, e: inpaint(P, x, 0.5 + 0 * x, e, lambda t, n: e), "the mask has 0.5 among its values"),
        (lambda x, e: inpaint(P, x, 0 * x, e, lambda t, n: e, resamplings=0), "resamplings is 0; expected 1 or more"),
        (lambda x, e: inpaint(P, x * float("nan"), 0 * x, e, lambda t, n: e), "not finite"),
    ],
)
def test_bad_arguments_are_refused(call, message: str) -> None:
    x_0 = torch.full((2, 2, 1, 1), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        call(x_0, normal(2, 0))
