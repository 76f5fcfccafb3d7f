"""Who goes on, who wins, and whether that is more than chance: functions of the results alone."""

import random

import numpy as np
import pytest

from pipelines.recipes.paper import TABLE_2
from pipelines.recipes.recipes import make
from pipelines.recipes.spaces import SPACES
from pipelines.sweeping.plan import checker
from pipelines.sweeping.ranking import best, pareto, rank, verdict
from pipelines.sweeping.record import TrialResult
from pipelines.sweeping.space import grid, read_space
from pipelines.sweeping.table import beside_the_paper, in_markdown

SETTINGS = [{"schedule.beta-end": value} for value in (0.01, 0.02, 0.03, 0.04)]


def result(place: int, step: int, value: float, seed: int = 0, **more: float) -> TrialResult:
    return TrialResult(setting=SETTINGS[place], seed=seed, step=step, metrics={"m": value, **more})


def test_the_best_go_on_and_of_equals_the_one_drawn_first() -> None:
    results = [result(3, 10, 1.0), result(1, 10, 1.0), result(0, 10, 2.0), result(2, 10, 0.5), result(2, 30, 9.0)]
    assert best(results, SETTINGS, "m", 10, 2) == [2, 1]
    assert best(results, SETTINGS, "m", 10, 9) == [2, 1, 3, 0]


def test_who_failed_does_not_go_on() -> None:
    failed = TrialResult(setting=SETTINGS[0], seed=0, step=10, failed="it diverged")
    assert best([failed, result(1, 10, 5.0)], SETTINGS, "m", 10, 2) == [1]


def test_a_trial_that_was_stopped_early_never_stands_above_one_that_went_further() -> None:
    results = [result(0, 10, 3.0), result(1, 10, 0.1), result(0, 30, 2.0)]
    ranking = rank(results, SETTINGS, "m", seed=0)
    assert [(row.number, row.step) for row in ranking] == [(1, 30), (2, 10)]
    assert ranking[0].course == {10: 3.0, 30: 2.0}


def test_finalists_rank_by_fresh_seeds_not_by_the_one_that_chose_them() -> None:
    lucky = [result(0, 10, 1.0), *(result(0, 10, 4.0 + seed / 10, seed) for seed in (1, 2, 3))]
    sound = [result(1, 10, 1.5), *(result(1, 10, 2.0 + seed / 10, seed) for seed in (1, 2, 3))]
    ranking = rank([*lucky, *sound, result(2, 10, 0.9)], SETTINGS, "m", seed=0)
    assert [row.number for row in ranking] == [2, 1, 3]
    assert "more than chance explains" in verdict(ranking, "m")


def test_in_markdown_stands_the_verdict_above_the_best_and_how_many_more_there_are() -> None:
    settings = [{"schedule.beta-end": 0.01 + 0.001 * place} for place in range(14)]
    results = [TrialResult(setting=each, seed=0, step=10, metrics={"m": 1.0}) for each in settings]
    lines = in_markdown(rank(results, settings, "m", seed=0), "no difference").splitlines()
    assert (lines[0], len([line for line in lines if line.startswith("| ")])) == ("no difference", 1 + 12)
    assert lines[-1].startswith("and 2 more")


def test_the_order_of_results_changes_nothing() -> None:
    results = [result(place, step, place + step / 7) for place in range(4) for step in (10, 30)]
    results += [result(place, 30, place + 0.1 * seed, seed) for place in (0, 1) for seed in (1, 2)]
    found = rank(results, SETTINGS, "m", seed=0)
    for seed in range(20):
        random.Random(seed).shuffle(results)
        assert rank(results, SETTINGS, "m", seed=0) == found


def test_failed_trials_stand_last_with_their_cause() -> None:
    failed = TrialResult(setting=SETTINGS[0], seed=0, step=10, failed="it diverged")
    ranking = rank([failed, result(1, 10, 5.0)], SETTINGS, "m", seed=0)
    assert [(row.number, row.failed) for row in ranking] == [(2, ""), (1, "it diverged")]


def test_without_fresh_seeds_nothing_is_claimed() -> None:
    assert "not known" in verdict(rank([result(0, 10, 1.0), result(1, 10, 2.0)], SETTINGS, "m", seed=0), "m")


@pytest.mark.parametrize(("gap", "least", "most"), [(0.0, 90, 100), (3.0, 0, 20)])
def test_chance_is_told_from_a_lead(gap: float, least: int, most: int) -> None:
    """The same setting under two names is found alike; a lead of three standard deviations of a training is found."""
    generator = np.random.Generator(np.random.PCG64(0))
    alike = 0
    for _ in range(100):
        draws = generator.normal(size=(2, 4)) + 10 + np.array([[0.0], [gap]])
        results = [result(place, 10, 10.0) for place in (0, 1)]
        results += [result(place, 10, float(draws[place, seed]), seed + 1) for place in (0, 1) for seed in range(4)]
        alike += "not distinguishable" in verdict(rank(results, SETTINGS, "m", seed=0), "m")
    assert least <= alike <= most


def test_the_front_has_those_that_none_beats_in_both() -> None:
    results = [
        result(0, 10, 1.0, passes=100.0),
        result(1, 10, 2.0, passes=10.0),
        result(2, 10, 2.5, passes=50.0),
        result(3, 10, 1.0, passes=200.0),
    ]
    front = pareto(rank(results, SETTINGS, "m", seed=0), ("passes", "m"))
    assert sorted(row.number for row in front) == [1, 2]


def test_the_papers_second_table_stands_beside_its_own_sweep_alone() -> None:
    cells = grid(read_space(SPACES["paper-table-2"]), make("digits"), checker((8, 1)))
    found = [TrialResult(setting=each, seed=0, step=9, metrics={"m": 1.0}, train_s=60) for each in reversed(cells)]
    _title, *lines = beside_the_paper(rank(found, cells, "m", seed=0))
    assert len(lines) == len(cells) == 6
    assert [line.split("|")[1].strip() for line in lines] == list(TABLE_2.values())
    assert lines[-1].split() == [
        "eps",
        "simple",
        "fixed",
        "m",
        "1;",
        "trained",
        "60",
        "seconds",
        "|",
        "IS",
        "9.46",
        "±",
        "0.11,",
        "FID",
        "3.17",
    ]
    assert beside_the_paper(rank([result(0, 9, 1.0)], SETTINGS, "m", seed=0)) == []
