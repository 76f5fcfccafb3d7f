"""Loss-aware choice of t: uniform at first, then by the losses seen, and the mean stays that of a uniform t."""

import pytest
import torch

from ddpm_core.training.timesteps import LossAwareTimesteps, uniform_timesteps

T = 8
LEVELS = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05], dtype=torch.float64)


def warm(levels: torch.Tensor = LEVELS) -> LossAwareTimesteps:
    """Ten losses at each t, whose root mean square is the level."""
    timesteps = LossAwareTimesteps(len(levels))
    signs = torch.tensor([0.6, 0.8] * 5, dtype=torch.float64) * 2**0.5  # their squares have the mean 1
    for sign in signs:
        timesteps.update(torch.arange(len(levels)), sign * levels)
    return timesteps


def test_it_is_uniform_until_every_step_has_had_ten_losses() -> None:
    timesteps, steps = LossAwareTimesteps(T), torch.arange(T)
    for _ in range(9):
        timesteps.update(steps, LEVELS)
    timesteps.update(steps[1:].repeat(20), LEVELS[1:].repeat(20))  # all but one
    assert torch.equal(timesteps.probabilities, torch.full((T,), 1 / T, dtype=torch.float64))
    timesteps.update(steps[:1], LEVELS[:1])
    assert float(timesteps.probabilities[0]) > 0.5


@pytest.mark.parametrize("num_timesteps", [1, 7, 1000])
def test_until_then_the_draws_are_those_of_a_uniform_t(num_timesteps: int) -> None:
    positions = torch.arange(20_000) + 2**33
    t, weights = LossAwareTimesteps(num_timesteps).draw(5, positions)
    assert torch.equal(t, uniform_timesteps(5, positions, num_timesteps))
    torch.testing.assert_close(weights, torch.ones(len(t)))


def test_then_it_is_proportional_to_the_root_mean_square_but_for_a_thousandth() -> None:
    expected = 0.999 * LEVELS / LEVELS.sum() + 0.001 / T
    torch.testing.assert_close(warm().probabilities, expected, rtol=1e-12, atol=0)
    assert float(warm().probabilities.sum()) == pytest.approx(1, abs=1e-14)


def test_draws_come_as_often_as_the_probabilities_say() -> None:
    timesteps, num = warm(), 40_000
    counts = torch.bincount(timesteps.draw(0, torch.arange(num))[0], minlength=T)
    expected = num * timesteps.probabilities
    assert float(expected.min()) > 40
    assert float(((counts - expected) ** 2 / expected).sum()) < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001


def test_the_weighted_mean_is_that_of_a_uniform_t() -> None:
    """sum_t p(t) w(t) f(t) = mean f, whatever f."""
    timesteps = warm()
    t, weights = timesteps.draw(0, torch.arange(40_000))
    of_step = torch.zeros(T).index_put((t,), weights)
    assert bool((of_step[t] == weights).all())  # a weight is a function of t, and every t was drawn
    assert bool((of_step > 0).all())
    g = torch.Generator().manual_seed(0)
    for f in (torch.ones(T), LEVELS, torch.randn(T, generator=g)):
        mean = (timesteps.probabilities * of_step * f).sum()
        assert float(mean) == pytest.approx(float(f.double().mean()), rel=1e-6)


def test_the_weighted_loss_varies_less_where_losses_differ_by_orders() -> None:
    timesteps = warm()
    t, weights = timesteps.draw(0, torch.arange(20_000))
    uniform = LEVELS[uniform_timesteps(0, torch.arange(20_000), T)]
    assert float((weights * LEVELS[t]).std()) < 0.1 * float(uniform.std())


def test_draws_belong_to_positions_not_to_the_batch() -> None:
    timesteps, positions = warm(), torch.arange(2**35, 2**35 + 200)
    t, weights = timesteps.draw(3, positions)
    chosen = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:33]
    part = timesteps.draw(3, positions[chosen])
    assert torch.equal(part[0], t[chosen])
    assert torch.equal(part[1], weights[chosen])
    assert not torch.equal(timesteps.draw(4, positions)[0], t)


def test_the_last_ten_losses_count_in_the_order_they_came() -> None:
    timesteps = LossAwareTimesteps(2)
    timesteps.update(torch.zeros(13, dtype=torch.int64), torch.arange(1.0, 14.0))
    timesteps.update(torch.ones(10, dtype=torch.int64), torch.full((10,), 2.0))
    assert timesteps.counts.tolist() == [13, 10]
    assert sorted(timesteps.losses[0].tolist()) == list(range(4, 14))
    ratio = (sum(loss**2 for loss in range(4, 14)) / 10) ** 0.5 / 2
    without_uniform = (timesteps.probabilities - 0.0005) / 0.999
    assert float(without_uniform[0] / without_uniform[1]) == pytest.approx(ratio, rel=1e-12)


def test_a_batch_is_taken_in_as_one_after_the_other() -> None:
    g = torch.Generator().manual_seed(0)
    t, losses = torch.randint(0, T, (300,), generator=g), torch.rand(300, generator=g)
    at_once, in_parts, reversed_ = LossAwareTimesteps(T), LossAwareTimesteps(T), LossAwareTimesteps(T)
    at_once.update(t, losses)
    for start in range(0, 300, 70):
        in_parts.update(t[start : start + 70], losses[start : start + 70])
    reversed_.update(t.flip(0), losses.flip(0))
    assert torch.equal(in_parts.losses, at_once.losses)
    assert torch.equal(in_parts.counts, at_once.counts)
    assert not torch.equal(reversed_.losses, at_once.losses)  # so that the order of the stream is what counts
