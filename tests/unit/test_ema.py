"""The averaged weights."""

import pytest
import torch

from ddpm_core.model.ema import ema_update


def test_the_first_update_copies() -> None:
    ema = {"a": torch.zeros(3), "b": torch.full((2,), 9.0)}
    params = {"b": torch.ones(2, requires_grad=True), "a": torch.arange(3.0)}
    ema_update(ema, params, 0.9999, num_updates=0)
    assert torch.equal(ema["a"], params["a"])
    assert torch.equal(ema["b"], params["b"])
    assert ema["b"] is not params["b"]
    assert not ema["b"].requires_grad


def test_later_updates_are_the_weighted_sum_of_all_weights_so_far() -> None:
    decay, history = 0.9, [float(i * i) for i in range(6)]
    ema = {"a": torch.zeros(1, dtype=torch.float64)}
    for step, value in enumerate(history):
        ema_update(ema, {"a": torch.tensor([value], dtype=torch.float64)}, decay, num_updates=step)
    expected = decay**5 * history[0] + sum((1 - decay) * decay ** (5 - i) * history[i] for i in range(1, 6))
    assert float(ema["a"]) == pytest.approx(expected, rel=1e-12)


def test_it_is_in_place() -> None:
    average = torch.zeros(2)
    ema_update({"a": average}, {"a": torch.ones(2)}, 0.75, num_updates=1)
    assert average.tolist() == [0.25, 0.25]
