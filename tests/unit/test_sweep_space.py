"""A search space: what is read from words, drawn once, and refused before anything starts."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_core.errors import InputError
from pipelines.recipes.config import Recipe, SweepStage
from pipelines.recipes.recipes import make
from pipelines.recipes.spaces import SPACES
from pipelines.sweeping.plan import checker, settings_of, space_of, steps_in_all, trials_at
from pipelines.sweeping.setting import apply, flags_of, key_of, read_part, words_of
from pipelines.sweeping.space import Choice, Range, check_space, draws, grid, is_wider, read_space

DIGITS = make("digits")
CHECK: Callable[[Recipe], None] = checker((8, 1))


def test_words_become_values_of_the_fields_types() -> None:
    space = read_space(
        {
            "schedule.beta_end": ["loguniform:0.005:0.05"],
            "unet.base-channels": ["integers:16:48:16"],
            "unet.channel-multipliers": ["1,2", "1,2,2"],
            "train.ema-decay": ["none", "0.99"],
            "train.flip": ["true", "false"],
        }
    )
    assert space.domains["schedule.beta-end"] == Range(0.005, 0.05, log=True)
    assert space.domains["unet.base-channels"] == Choice((16, 32, 48))
    assert space.domains["unet.channel-multipliers"] == Choice(((1, 2), (1, 2, 2)))
    assert space.domains["train.ema-decay"] == Choice((None, 0.99))
    assert space.domains["train.flip"] == Choice((True, False))


def test_the_recipes_own_words_are_among_those_of_an_open_space() -> None:
    """Of a project that predicts x_0, a sweep over eps and v could not find that it is right."""
    sweep, mnist = SweepStage(space="quick"), make("mnist")
    assert mnist.reverse.prediction == "x_0"
    assert space_of(mnist, {}, sweep).domains["reverse.prediction"] == Choice(("eps", "v", "x_0"))
    assert space_of(DIGITS, {}, sweep) == read_space(SPACES["quick"])
    assert space_of(mnist, {}, SweepStage(space="paper-table-2")) == read_space(SPACES["paper-table-2"])
    assert space_of(mnist, {"reverse.prediction": ("v",)}, sweep) == read_space({"reverse.prediction": ("v",)})


def test_words_of_a_space_are_read_as_the_same_space() -> None:
    for words in SPACES.values():
        space = read_space(words)
        assert read_space({path: domain.words for path, domain in space.domains.items()}) == space


@pytest.mark.parametrize(
    ("path", "words", "told"),
    [
        ("schedule.nam", ["linear"], "did you mean space.schedule.name?"),
        ("schedule.name", ["linaer"], "space.schedule.name has 'linaer'; expected one of linear"),
        ("schedule.name", [], "is empty"),
        ("schedule.name", ["linear", "linear"], "expected each value once"),
        ("schedule.beta-end", ["loguniform:0:0.1"], "LOW above 0"),
        ("schedule.beta-end", ["uniform:0.1:0.01"], "LOW below HIGH"),
        ("schedule.beta-end", ["uniform:nan:0.01"], "LOW below HIGH"),
        ("schedule.beta-end", ["uniform:0.01:0.02", "0.3"], "expected uniform:LOW:HIGH"),
        ("unet.base-channels", ["uniform:16:32"], "takes no range"),
        ("unet.base-channels", ["integers:16:8"], "integers:LOW:HIGH"),
        ("unet.base-channels", ["16.5"], "expected a whole number"),
        ("train.flip", ["maybe"], "expected true or false"),
        ("train.steps", ["100"], "trials train to the sweep's rungs"),
        ("train.num-workers", ["1", "2"], "no field that can be searched"),
        ("data.image-size", ["8"], "no field that can be searched"),
    ],
)
def test_what_is_no_space_is_refused_in_a_line(path: str, words: list[str], told: str) -> None:
    with pytest.raises(InputError, match="space") as refused:
        read_space({path: words})
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            {"unet.base-channels": ["7"]},
            "space.unet.base-channels has 7, which no setting can have: unet.base-channels",
        ),
        ({"reverse.variance": ["fixed_small", "learned"]}, "has learned, which no setting can have"),
        ({"schedule.name": ["linear", "jsd"], "reverse.prediction": ["eps"]}, "has jsd, which no setting can have"),
        ({"sample.sampler.num-steps": ["10", "5000"]}, "has 5000, which no setting can have"),
        ({"schedule.beta-end": ["uniform:0.01:1.5"]}, "has 1.5, which no setting can have"),
    ],
)
def test_a_value_that_no_model_takes_is_refused(words: dict[str, list[str]], told: str) -> None:
    with pytest.raises(InputError) as refused:
        check_space(read_space(words), DIGITS, CHECK)
    assert told in str(refused.value)


def test_a_value_that_others_make_possible_stands() -> None:
    space = read_space({"reverse.variance": ["fixed_small", "learned"], "loss.objective": ["simple", "hybrid"]})
    check_space(space, DIGITS, CHECK)
    assert [words_of(each) for each in grid(space, DIGITS, CHECK)] == [
        "variance fixed_small, objective simple",
        "variance learned, objective hybrid",
    ]


def test_what_a_schedule_does_not_read_is_not_drawn() -> None:
    space = read_space(
        {
            "schedule.name": ["linear", "cosine", "constant"],
            "schedule.beta-start": ["1e-4", "2e-4"],
            "schedule.beta-end": ["0.02"],
        }
    )
    assert [words_of(each) for each in grid(space, DIGITS, CHECK)] == [
        "linear, beta-start 0.0001, beta-end 0.02",
        "linear, beta-start 0.0002, beta-end 0.02",
        "cosine",
        "constant, beta-end 0.02",
    ]


def test_the_papers_table_2_has_its_six_cells() -> None:
    assert len(grid(read_space(SPACES["paper-table-2"]), DIGITS, CHECK)) == 6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12), more=st.integers(0, 12))
def test_draws_are_new_valid_and_begin_alike_however_many(seed: int, count: int, more: int) -> None:
    space = read_space(SPACES["beta-schedules"])
    few = list(itertools.islice(draws(space, DIGITS, seed, CHECK), count))
    many = list(itertools.islice(draws(space, DIGITS, seed, CHECK), count + more))
    assert many[:count] == few
    assert len(set(map(key_of, many))) == count + more
    for each in many:
        assert read_part(DIGITS, each) == each
        assert each["schedule.name"] == "cosine" or 5e-3 <= each["schedule.beta-end"] <= 5e-2
        CHECK(apply(DIGITS, each))
    assert list(itertools.islice(draws(space, DIGITS, seed, CHECK, few), more)) == many[count:]


def test_a_finite_space_is_drawn_to_its_last_setting() -> None:
    space = read_space(
        {"schedule.name": ["linear", "cosine"], "train.learning-rate": [f"{n}e-4" for n in range(1, 40)]}
    )
    assert len(list(draws(space, DIGITS, 0, CHECK))) == 78


def test_drawn_numbers_spread_evenly_in_their_logarithm() -> None:
    space = read_space({"train.learning-rate": ["loguniform:1e-4:1e-2"]})
    rates = [each["train.learning-rate"] for each in itertools.islice(draws(space, DIGITS, 0, CHECK), 2000)]
    assert sum(rate < 1e-3 for rate in rates) / len(rates) == pytest.approx(0.5, abs=0.05)
    assert min(rates) < 1.02e-4
    assert max(rates) > 9.8e-3


def test_fields_are_drawn_by_themselves() -> None:
    """One tells nothing of another, and one more field leaves the others as they are."""
    two = read_space({"train.learning-rate": ["uniform:0:1"], "train.grad-clip": ["uniform:1:2"]})
    three = read_space({**two.words, "train.ema-warmup": ["uniform:0:1"]})
    drawn = [list(itertools.islice(draws(space, DIGITS, 0, CHECK), 400)) for space in (two, three)]
    rate, clip = (np.array([each[f"train.{name}"] for each in drawn[0]]) for name in ("learning-rate", "grad-clip"))
    assert abs(np.corrcoef(rate, clip)[0, 1]) < 0.15
    assert [{path: each[path] for path in two.domains} for each in drawn[1]] == drawn[0]


def test_flags_make_the_setting_of_the_recipe() -> None:
    setting = {"schedule.name": "cosine", "unet.channel-multipliers": [1, 2, 2]}
    assert flags_of(setting) == ["--schedule.name", "cosine", "--unet.channel-multipliers", "1", "2", "2"]
    changed = apply(DIGITS, setting)
    assert (changed.schedule.name, changed.unet.channel_multipliers) == ("cosine", (1, 2, 2))


def test_another_batch_size_sees_as_many_images() -> None:
    recipe = replace(DIGITS, train=replace(DIGITS.train, steps=100, batch_size=64))
    steps = [apply(recipe, {"train.batch-size": size}).train.steps for size in (16, 48, 64, 128)]
    assert steps == [400, 134, 100, 50]


def test_which_space_is_wider() -> None:
    narrow = read_space({"schedule.name": ["linear"], "schedule.beta-end": ["uniform:0.01:0.02"]})
    wide = read_space({"schedule.name": ["linear", "cosine"], "schedule.beta-end": ["loguniform:0.005:0.05"]})
    other = read_space({"schedule.name": ["linear"]})
    assert is_wider(wide, narrow)
    assert is_wider(narrow, narrow)
    assert not is_wider(narrow, wide)
    assert not is_wider(other, narrow)


def test_a_widened_space_keeps_what_was_tried() -> None:
    few = settings_of(
        DIGITS, SweepStage(num_trials=3), read_space({"schedule.name": ["linear", "cosine", "sigmoid"]}), (8, 1)
    )
    wider = read_space({"schedule.name": ["linear", "cosine", "sigmoid", "quadratic", "warmup10"]})
    assert settings_of(DIGITS, SweepStage(num_trials=5), wider, (8, 1), few)[:3] == few


def test_a_grid_wants_values() -> None:
    with pytest.raises(InputError, match="range; expected values"):
        grid(read_space({"train.learning-rate": ["uniform:1e-4:1e-2"]}), DIGITS, CHECK)


def test_a_grid_that_nobody_could_try_is_refused_at_once() -> None:
    space = read_space({"train.batch-size": ["integers:1:200"], "train.warmup-steps": ["integers:1:200"]})
    with pytest.raises(InputError, match="the grid has 40,000 combinations; expected up to 10,000"):
        grid(space, DIGITS, CHECK)


def test_rungs_and_what_they_cost() -> None:
    sweep = SweepStage(num_trials=12, num_rungs=3, reduction_factor=3, finalists=2, repeats=4)
    assert sweep.rungs(640) == (71, 213, 640)
    assert trials_at(12, sweep, sweep.rungs(640)) == {71: 12, 213: 4, 640: 1}
    assert steps_in_all(12, sweep, sweep.rungs(640)) == 12 * 71 + 4 * 142 + 427 + 8 * 640
    assert SweepStage(stopping="none").rungs(640) == (640,)
    assert SweepStage().rungs(3) == (1, 3)
