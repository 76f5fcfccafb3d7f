"""Bits/dim of a set: the same whoever measures which part, exact by all steps, unbiased by a few."""

from dataclasses import fields, replace
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm_core.data.pixels import to_unit
from ddpm_core.diffusion.likelihood import variational_bound
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.evaluation.bits_per_dim import (
    GROUP,
    BoundStats,
    bits_per_image,
    measure_bound,
    progress_table,
    strata,
)
from ddpm_core.evaluation.plots import bound_curves
from ddpm_core.random import Purpose, normals

T = 60
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_end=0.3))
IMAGES = torch.randint(100, 156, (80, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def denoiser(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] for pixels of mean 0 and deviation 0.13, about those of IMAGES."""
    alpha_bar = SCHEDULE.alpha_bar[t][:, None, None, None].to(x_t.dtype)
    return (1 - alpha_bar).sqrt() * x_t / (alpha_bar * 0.13**2 + 1 - alpha_bar)


P = ReverseProcess(denoiser=denoiser, schedule=SCHEDULE)


def measured(images: torch.Tensor, num_steps: int | None = None) -> BoundStats:
    parts = [measure_bound(P, images[i : i + GROUP], i, num_steps) for i in range(0, len(images), GROUP)]
    return reduce(BoundStats.merge, parts)


def test_a_predicted_mean_is_measured_as_it_is_or_clipped_as_is_asked() -> None:
    """The bound sees the mean alone, which the original's way leaves; the image that is shown is clipped both ways."""
    p = ReverseProcess(denoiser=lambda x_t, t: 1.5 * x_t, schedule=P.schedule, config=ReverseConfig(prediction="mean"))
    free, static, original = (measure_bound(p, IMAGES[:4], 0, clip=clip) for clip in ("none", "static", "original"))
    assert original.total == pytest.approx(free.total, rel=1e-12)
    assert original.total != pytest.approx(static.total, rel=1e-3)
    assert original.rmse == pytest.approx(static.rmse, rel=1e-12)
    assert float(bits_per_image(p, IMAGES[:4], 0, clip="original").sum()) == pytest.approx(original.total)


def test_all_steps_are_the_whole_bound() -> None:
    def noise(t: int) -> torch.Tensor:
        return normals(0, Purpose.LIKELIHOOD, torch.arange(GROUP), (1, 4, 4), step=t)

    bound = variational_bound(P, to_unit(IMAGES[:GROUP]), noise)
    each = bound.prior + bound.terms.sum(dim=1)
    stats = measured(IMAGES[:GROUP])
    assert stats.bits_per_dim == pytest.approx(float(each.mean()), rel=1e-12)
    assert stats.standard_error == pytest.approx(float(each.std()) / GROUP**0.5, rel=1e-6)
    assert stats.distortion == pytest.approx(float(bound.terms[:, 0].mean()), rel=1e-12)
    assert stats.rate == pytest.approx(float((bound.prior + bound.terms[:, 1:].sum(dim=1)).mean()), rel=1e-9)
    assert stats.rmse[0] == pytest.approx(127.5 * float(bound.x_0_mse[:, 0].mean().sqrt()), rel=1e-9)


def test_what_was_received_before_the_last_step_is_the_rate() -> None:
    stats = measured(IMAGES)
    assert stats.received[0] == pytest.approx(stats.rate, rel=1e-9)
    assert stats.received[-1] == pytest.approx(stats.prior / stats.count, rel=1e-12)
    assert (np.diff(stats.received) < 0).all()
    assert stats.rmse[-1] > stats.rmse[0]


def test_parts_merge_to_the_whole() -> None:
    whole = measured(IMAGES)
    assert whole.count == 80
    halves = [measure_bound(P, IMAGES[i : i + GROUP], i) for i in (32, 64, 0)]
    again = reduce(BoundStats.merge, halves)
    assert again.bits_per_dim == pytest.approx(whole.bits_per_dim, rel=1e-12)
    np.testing.assert_allclose(again.terms, whole.terms, rtol=1e-12)
    with pytest.raises(ValueError, match="bounds of 60 and of 20 steps"):
        whole.merge(replace(whole, terms=whole.terms[:20]))


@pytest.mark.parametrize("num_steps", [3, 7, 40, 59, 60, None])
def test_strata_cover_every_step_once(num_steps: int | None) -> None:
    ranges = strata(T, num_steps)
    assert ranges[0] == range(1)
    assert [t for width in ranges for t in width] == list(range(T))
    assert len(ranges) <= (num_steps or T)
    assert all(len(a) <= len(b) + 1 for a, b in pairwise(ranges))


def test_a_few_steps_estimate_the_bound_without_bias() -> None:
    """The mean over 40 groups of estimates by 8 steps each lies within 4 standard errors of the exact bound."""
    many = IMAGES[:GROUP].repeat(40, 1, 1, 1)
    groups = [measure_bound(P, many[:GROUP], GROUP * i, 8).bits_per_dim for i in range(40)]
    exact = measured(many[: 8 * GROUP]).bits_per_dim
    error = np.std(groups, ddof=1) / 40**0.5
    assert 0 < error < 0.1
    assert np.mean(groups) == pytest.approx(exact, abs=4 * error)


def test_a_group_that_is_not_aligned_is_refused() -> None:
    with pytest.raises(ValueError, match="32 images from number 5 on; expected a group of 32, aligned"):
        measure_bound(P, IMAGES[:32], 5)
    with pytest.raises(ValueError, match="33 images from number 0 on"):
        measure_bound(P, IMAGES[:33], 0)


@pytest.mark.parametrize("num_steps", [None, 8])
def test_the_chart_is_a_png(num_steps: int | None) -> None:
    assert bound_curves(measured(IMAGES, num_steps)).startswith(b"\x89PNG")


def test_bytes_keep_every_bit() -> None:
    stats = measured(IMAGES, 7)
    back = BoundStats.from_bytes(stats.to_bytes())
    for field in fields(BoundStats):
        one, other = getattr(back, field.name), getattr(stats, field.name)
        assert type(one) is type(other), field.name
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), field.name


def test_the_progress_table_is_table_4() -> None:
    """After all T steps the rate is whole; before, rate falls and error rises."""
    stats = measured(IMAGES)
    rows = progress_table(stats)
    assert [step for step, _, _ in rows] == [60, 54, 48, 42, 36, 30, 24, 18, 12, 6]
    assert rows[0][1:] == (pytest.approx(stats.rate), pytest.approx(float(stats.rmse[0])))
    assert rows[3][1:] == (pytest.approx(float(stats.received[18])), pytest.approx(float(stats.rmse[18])))
    assert sorted(rate for _, rate, _ in rows) == [rate for _, rate, _ in reversed(rows)]
    errors = [error for _, _, error in rows]
    assert sorted(errors[:4]) == errors[:4]  # above, x_t says so little of x_0 that all guesses are the mean
