"""What a sweep tries next, by what is on record."""

from pathlib import Path

from pipelines.recipes.config import SweepStage
from pipelines.recipes.recipes import make
from pipelines.sweeping.agenda import Agenda
from pipelines.sweeping.record import SweepRecord, TrialResult
from pipelines.sweeping.setting import key_of
from pipelines.sweeping.space import Space, read_space

FEW = read_space({"schedule.name": ["linear", "cosine"], "reverse.prediction": ["eps", "v"]})


def proposing(folder: Path, space: Space, num_trials: int) -> Agenda:
    """By Optuna."""
    return Agenda(
        recipe=make("digits"),
        config=SweepStage(search="tpe", num_trials=num_trials),
        space=space,
        steps=(1, 3, 9),
        trains=True,
        metric="figure",
        record=SweepRecord(str(folder)),
        settings=[],
    )


def run_proposals(agenda: Agenda) -> int:
    """As a fleet would, one at a time; returns the proposals."""
    batch, number = next(agenda.batches()), 0
    assert batch.search is not None
    assert batch.proposed is not None
    while batch.more():
        number += 1
        words = batch.search.suggest(f"t{number}")
        assert isinstance(words, dict)
        trial = batch.proposed(words)
        figure = float(trial.setting["schedule.name"] == "linear")
        agenda.record.write_result(
            TrialResult(setting=trial.setting, seed=trial.seed, step=1, metrics={"figure": figure})
        )
        batch.search.on_trial_complete(f"t{number}", {"figure": figure})
    return number


def test_what_is_proposed_again_is_none_of_the_trials(tmp_path: Path) -> None:
    agenda = proposing(tmp_path, FEW, 4)
    assert run_proposals(agenda) > 4  # otherwise this seed shows nothing
    assert len({key_of(each) for each in agenda.settings}) == len(agenda.settings) == 4
    rung = next(agenda.batches())  # taken up again: none is missing
    assert not rung.more()


def test_proposals_of_a_space_that_has_no_more_end(tmp_path: Path) -> None:
    agenda = proposing(tmp_path, FEW, 5)
    assert run_proposals(agenda) == 20
    assert 2 <= len(agenda.settings) <= 4
