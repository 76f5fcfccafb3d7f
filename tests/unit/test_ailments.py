"""What is said of a run: its course in words, and each ailment by its sign alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_core.artifacts.looks import Look, Spread
from ddpm_core.training.ailments import Verdict, judge
from ddpm_core.training.course import Course

REAL = Spread(within=60.0, between=70.0)
TRAIN = {"batch_size": 32, "learning_rate": 1e-3, "grad_clip": 1.0, "ema_decay": None, "ema_half_life": 500_000}
STEPS = range(0, 1700, 100)
HEALTHY = [1.0, 0.4, 0.2, 0.15, 0.12, 0.11, 0.10, 0.095, 0.09, 0.087, 0.084, 0.082, 0.08, 0.078, 0.0765, 0.075, 0.074]


def looks(validation: Sequence[float], train: Sequence[float] = (), newest: Sequence[float] = ()) -> list[Look]:
    """One at each of STEPS, of two bands whose mean is what is given."""

    def bands(loss: float) -> tuple[float, float]:
        return 1.5 * loss, 0.5 * loss

    return [
        Look(
            step=step,
            bands=((0, 499), (500, 999)),
            validation=bands(held_out),
            train=bands(trained),
            newest=bands(new),
            weight_size=0.05,
            real=REAL,
        )
        for step, held_out, trained, new in zip(
            STEPS, validation, train or validation, newest or validation, strict=True
        )
    ]


def said(seen: Sequence[Look], grad_norm: float = 0.3, **changes: Any) -> Verdict:
    history = [{"step": step, "loss": 0.1, "grad_norm": grad_norm} for step in range(50, 1650, 50)]
    return judge(Course(looks=seen, history=history, train=TRAIN, **changes))


def names(verdict: Verdict) -> list[str]:
    return [each.name for each in verdict.ailments]


def test_a_healthy_run_improves() -> None:
    found = said(looks(HEALTHY))
    assert found.words == "improving: validation loss 0.074 at step 1,600, 8% less than at step 1,200"
    assert found.lines == [found.words]


def test_a_loss_that_stays_is_flat_since_it_first_came_there() -> None:
    course = [*HEALTHY[:8], *[0.094] * 9]
    assert said(looks(course)).words == "flat since step 700: validation loss 0.095 then, 0.094 at step 1,600"


def test_a_run_that_was_made_longer_is_judged_by_its_steps_and_not_by_its_looks() -> None:
    """The shorter one was looked at more often: most of the looks are of the beginning."""
    steps = [*range(0, 130, 10), 400, 800, 1200, 1600]
    seen = [replace(look, step=step) for step, look in zip(steps, looks([*HEALTHY[:13], *[0.076] * 4]), strict=True)]
    assert said(seen).words == "flat since step 400: validation loss 0.076 then, 0.076 at step 1,600"


def test_what_goes_on_at_some_t_alone_is_told_with_what_is_flat() -> None:
    course = [*HEALTHY[:8], *[0.094] * 9]
    seen = looks(course)
    seen[-1] = replace(seen[-1], validation=(1.5 * 0.0956, 0.5 * 0.086))
    assert said(seen).words == (
        "flat since step 700: validation loss 0.095 then, 0.0932 at step 1,600; at t 500 to 999 it still fell, by 9%"
    )


def test_one_that_rose_again_is_worse_since_its_best() -> None:
    course = [*HEALTHY[:12], 0.085, 0.09, 0.095, 0.1, 0.11]
    assert (
        said(looks(course)).words == "worse since step 1,100: validation loss 0.082 at step 1,100, 0.11 at step 1,600"
    )


def test_without_images_held_out_the_training_images_count() -> None:
    seen = [replace(look, validation=()) for look in looks(HEALTHY)]
    assert said(seen).words.startswith("improving: loss on training images (none are held out) 0.074 at step 1,600")


def test_too_few_looks_say_nothing() -> None:
    found = said(looks(HEALTHY)[:2])
    assert (found.words, found.lines) == ("", [])
    assert judge(Course(looks=[], history=[], train={})).lines == []


SLOW = list(np.linspace(1.0, 0.97, 17))
STEEP = list(np.geomspace(1.0, 0.2, 17))
RISING = [*HEALTHY[:8], 0.096, 0.098, 0.1, 0.105, 0.11, 0.115, 0.12, 0.125, 0.13]
BLOWN = [*HEALTHY[:15], 0.5, 0.9]
ALIKE = [
    *looks(HEALTHY)[:-1],
    replace(looks(HEALTHY)[-1], made=Spread(within=60.0, between=3.0)),
]
ONE_COLOUR = [*looks(HEALTHY)[:-1], replace(looks(HEALTHY)[-1], made=Spread(within=2.0, between=70.0))]
PLAIN = [replace(look, real=Spread(within=0.5, between=70.0)) for look in looks(HEALTHY)]


@pytest.mark.parametrize(
    ("seen", "more", "ailment", "sign"),
    [
        (looks(STEEP), {}, "too few steps", "over the last third the loss still fell by 45%, at the t where"),
        (looks(SLOW), {}, "learning rate too low", "after 1,600 steps the loss is 0.97, before the first it was 1"),
        (looks(BLOWN), {}, "learning rate too high", "the newest weights' loss is 0.9, 12 times its best"),
        (
            looks([1.0, 1.4, *[1.0] * 15]),
            {},
            "learning rate too high",
            "the loss went up to 1.4, from 1 before the first",
        ),
        (
            [replace(look, weight_size=0.004) for look in looks(HEALTHY)],
            {},
            "learning rate too high",
            "a step moves each weight by about as much, and they are 0.004 large; train.learning-rate is 0.001",
        ),
        ([replace(look, step=look.step // 20) for look in looks(HEALTHY)], {}, "too few steps", "still fell by 12%"),
        (
            [replace(look, step=look.step // 200) for look in looks(SLOW)],
            {},
            "too few steps",
            "after 8 steps next to nothing was learned",
        ),
        (looks(HEALTHY), {"skipped": 5}, "learning rate too high", "5 steps were skipped"),
        (
            looks(HEALTHY, newest=[loss / 2 for loss in HEALTHY]),
            {},
            "average that lags",
            "the averaged weights' loss is 0.074, the newest weights' 0.037; train.ema-half-life 500000",
        ),
        (looks(HEALTHY), {"grad_norm": 7.0}, "starved steps", "its norm is 7 in the middle, train.grad-clip 1"),
        (
            looks(RISING, train=HEALTHY, newest=HEALTHY),
            {},
            "memorising",
            "since step 700 the loss on images held out rose by 37%, and that on training images fell by 22%, at the t",
        ),
        (ALIKE, {}, "constant images", "those sampled at step 1,600 are all the same: they differ by 3 levels"),
        (ONE_COLOUR, {}, "constant images", "those sampled at step 1,600 are of one colour each"),
        (PLAIN, {}, "constant images", "the training images are each of one colour"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_each_ailment_is_told_by_its_sign(seen: list[Look], more: dict[str, Any], ailment: str, sign: str) -> None:
    found = {each.name: each for each in said(seen, **more).ailments}
    assert ailment in found
    assert sign in found[ailment].sign
    assert found[ailment].remedy
    others = set(found) - {ailment}
    assert not others - {"average that lags"} if ailment == "memorising" else not others


def test_the_bound_is_not_held_against_the_simple_losss_scale() -> None:
    """It falls by orders of magnitude and moves by factors meanwhile, and its gradients are clipped all along."""
    bound = [168_421, 72_754, 6_916, 2_072, 1_483, 620, 575, 420, 584, 693, 276, 352, 520, 259, 175, 165, 255]
    averaged = [168_421, 90_000, 9_000, 2_500, 1_400, 800, 500, 380, 300, 240, 180, 150, 130, 110, 95, 80, 70]
    run = looks(averaged, newest=bound)
    assert "learning rate too high" not in names(said(run, objective="bound", grad_norm=32_000.0))
    assert "starved steps" not in names(said(run, objective="bound", grad_norm=32_000.0))
    assert "starved steps" in names(said(looks(HEALTHY), objective="hybrid", grad_norm=7.0))


def test_a_model_that_is_trained_on_is_not_held_against_what_it_began_with() -> None:
    """It had learned before its first step, and what it has yet to learn may move it away from that at first."""
    assert names(said(looks([1.0, 1.1, *SLOW[2:]]), from_noise=False)) == []
    assert names(said([replace(look, step=look.step // 200) for look in looks(SLOW)], from_noise=False)) == []


def test_the_course_of_one_that_memorises() -> None:
    found = said(looks(RISING, train=HEALTHY, newest=HEALTHY))
    assert found.words == "overfitting since step 700: validation loss 0.095 at step 700, 0.13 at step 1,600"


def test_what_overfits_less_than_its_noise_is_left_alone() -> None:
    course = [*HEALTHY[:12], 0.083, 0.083, 0.084, 0.084, 0.0845]
    assert "memorising" not in names(said(looks(course, train=HEALTHY, newest=HEALTHY)))


@given(
    st.lists(st.floats(1e-6, 1e9), min_size=17, max_size=17),
    st.lists(st.floats(1e-6, 1e9), min_size=17, max_size=17),
    st.floats(0, 1e9) | st.just(float("nan")) | st.just(float("inf")),
)
def test_of_any_course_something_is_said_and_nothing_breaks(
    validation: list[float], newest: list[float], grad_norm: float
) -> None:
    found = said(looks(validation, newest=newest), grad_norm=grad_norm)
    assert found.words.partition(" ")[0] in {"improving:", "flat", "overfitting", "worse"}
    assert len(set(names(found))) == len(found.ailments)
    assert all("\n" not in line for line in found.lines)
