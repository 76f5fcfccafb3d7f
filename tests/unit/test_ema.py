"""The averaged weights: how they are moved, how fast they forget, and how much of them is still their beginning."""

from dataclasses import replace

import pytest
import torch

from ddpm_core.model.ema import ema_update
from ddpm_core.serialization import to_json
from ddpm_core.training.averages import decay_of, start_share, young_average, young_weights
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import new_state
from ddpm_core.training.step import advance

CONFIGS = [
    TrainConfig(batch_size=64),
    TrainConfig(batch_size=64, ema_half_life=3_000, ema_warmup=0.3),
    TrainConfig(batch_size=7, ema_half_life=50, ema_warmup=1.0),  # warm until the 7th update
    TrainConfig(batch_size=64, ema_half_life=960, ema_warmup=0.5),  # the limit is met by an update, the 30th
    TrainConfig(batch_size=64, ema_half_life=10, ema_warmup=1.0),  # never warm
    TrainConfig(batch_size=64, ema_half_life=2_000, ema_warmup=0.0),
    TrainConfig(ema_decay=0.9999),
    TrainConfig(ema_decay=0.9),
    TrainConfig(ema_decay=0.0),
]


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


def test_after_the_half_life_what_was_averaged_counts_half() -> None:
    config, counted = TrainConfig(batch_size=64, ema_half_life=6_400, ema_warmup=0.0), 1.0
    for update in range(5, 105):  # 6,400 images
        counted *= decay_of(config, update)
    assert counted == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("update", "half_life"),
    [(0, 3.2), (1, 6.4), (9, 32), (639, 2_048), (156_249, 500_000), (156_250, 500_000), (10**7, 500_000)],
)
def test_the_half_life_is_at_most_a_share_of_the_images_seen(update: int, half_life: float) -> None:
    """Those of the update itself included."""
    assert decay_of(TrainConfig(batch_size=64), update) == pytest.approx(0.5 ** (64 / half_life), rel=1e-12)


def test_a_fixed_decay_takes_the_place_of_both() -> None:
    assert [decay_of(TrainConfig(ema_decay=0.99), update) for update in (0, 1, 10**6)] == [0.99] * 3


@pytest.mark.parametrize("config", CONFIGS)
def test_a_step_averages_by_the_decay_of_its_update(config: TrainConfig) -> None:
    config = replace(config, warmup_steps=0, learning_rate=0.1)
    state, decays = new_state(torch.nn.Linear(3, 2), config.learning_rate), []
    for step in range(8):
        before = state.ema["weight"].double()
        for p in state.network.parameters():
            p.grad = torch.full_like(p, float(step + 1))
        advance(state, config, update=step != 4)  # a skipped step averages nothing, and is no update
        if step == 4:
            assert torch.equal(state.ema["weight"].double(), before)
        elif step:
            after, moved = state.ema["weight"].double(), before - state.network.weight.detach().double()
            decays.append(float(((after - state.network.weight.detach().double()) / moved).mean()))
    assert decays == pytest.approx([decay_of(config, update) for update in range(1, 7)], abs=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_share_of_the_beginning_is_its_weight_in_the_sum(config: TrainConfig) -> None:
    """Of weights that are 1 until the first update, and 0 after it, the average is the share itself."""
    ema = {"a": torch.ones(1, dtype=torch.float64)}
    assert start_share(config, 0) == 1
    for update in range(1_000):
        weights = {"a": torch.full((1,), float(update == 0), dtype=torch.float64)}
        ema_update(ema, weights, decay_of(config, update), num_updates=update)
        assert start_share(config, update + 1) == pytest.approx(float(ema["a"]), rel=1e-9, abs=1e-300)


def test_the_share_of_millions_of_steps_is_still_a_number() -> None:
    assert 0 <= start_share(TrainConfig(), 2_400_000) < 1e-100
    assert start_share(TrainConfig(ema_decay=0.9999), 10**9) == 0


def test_a_young_average_is_told_with_its_step_and_what_to_do() -> None:
    assert young_average(TrainConfig(ema_decay=0.9999), 640) == (
        "the averaged weights of step 640 are still 93.8% those that they began with (train.ema-decay 0.9999), so their "
        "images show little of what was learned; expected at most 1%: train on to step 46,051, or anew with a smaller "
        "--train.ema-decay"
    )
    said = young_average(TrainConfig(batch_size=64, ema_warmup=0.0), 640)
    assert "94.5% those that they began with (train.ema-half-life 500,000 images, train.ema-warmup 0)" in said
    assert said.endswith("or anew with a smaller --train.ema-half-life")


@pytest.mark.parametrize("config", CONFIGS)
def test_the_step_that_is_told_is_the_first_of_at_most_a_hundredth(config: TrainConfig) -> None:
    told = int(young_average(config, 1).partition("train on to step ")[2].partition(", or")[0].replace(",", ""))
    assert start_share(config, told) <= 0.01 < start_share(config, told - 1)
    assert young_average(config, told) == ""
    assert young_average(config, told - 1) != ""


def test_the_default_is_old_enough_within_a_few_steps() -> None:
    for batch_size in (1, 64, 4_096):
        config = TrainConfig(batch_size=batch_size)
        assert [young_average(config, step) != "" for step in (0, 1, 2, 640, 800_000)] == [True, True, *[False] * 3]


def test_weights_know_it_by_their_run_s_config() -> None:
    config = TrainConfig(ema_decay=0.9999)
    of_a_run = {key: value for key, value in to_json(config).items() if key not in ("ema_half_life", "ema_warmup")}
    assert young_weights({"train": of_a_run}, 640) == young_average(config, 640) != ""
    assert young_weights({"train": of_a_run}, 60_000) == ""
    half_life = replace(config, ema_decay=None, ema_warmup=0.0)
    of_a_run = {key: value for key, value in to_json(half_life).items() if key != "ema_decay"}
    assert young_weights({"train": of_a_run}, 640) == young_average(half_life, 640) != ""


@pytest.mark.parametrize("config", [{}, {"train": {}}, {"train": {"label_dropout": 0.1, "batch_size": 64}}])
def test_of_weights_from_elsewhere_nothing_is_known(config: dict[str, object]) -> None:
    assert young_weights(config, 0) == ""
