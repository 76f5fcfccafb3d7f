"""What a run that stands refuses is refused before Ray is started."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ddpm_core.artifacts import run_record
from ddpm_core.artifacts.checkpoint import Checkpoint, write_checkpoint
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import DatasetIndex, make_index, write_index
from ddpm_core.artifacts.run_record import hold
from ddpm_core.errors import HeldError, InputError
from pipelines.datasets import source_record
from pipelines.naming import run_folder, trajectory
from pipelines.recipes.config import Recipe
from pipelines.recipes.recipes import make
from pipelines.training.run import check_standing_run, run_name

STEPS = 6


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The digits, whose dataset is known to the store, and was trained on for six steps."""
    base = make("digits")
    wanted = replace(base, store=str(tmp_path), train=replace(base.train, steps=STEPS))
    index = make_index(
        str(tmp_path / "datasets/digits-x"), image_size=8, channels=1, class_names=(), shards=(), num_rejected=0
    )
    index = replace(index, uri=str(tmp_path / f"datasets/digits-{index.digest[:12]}"))
    write_index(index, [])
    source_record(wanted.data, wanted.store, "digits").write(f"digits-{index.digest[:12]}", index.digest)
    write_run(wanted, index)
    return wanted


def write_run(recipe: Recipe, index: DatasetIndex) -> None:
    """A checkpoint without weights, held by nobody."""
    run_uri = run_folder(recipe.store, run_name(recipe, index, None))
    with hold(run_uri, say=print, standing=lambda: (STEPS,)):
        checkpoint = Checkpoint(
            step=STEPS,
            images_seen=1,
            seed=0,
            dataset_digest=index.digest,
            dataset_uri=index.uri,
            config=trajectory(recipe, index, None),
            versions={},
            model={},
            ema={},
            optimizer={},
            history=[],
        )
        write_checkpoint(run_uri, checkpoint)


@pytest.fixture
def holder(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine, which holds the run, and gives a sign of life ten times a second."""
    monkeypatch.setattr(run_record, "BEAT_S", 2.0)
    monkeypatch.setattr(run_record, "_LOOK_S", 0.01)
    (run,) = (Path(recipe.store) / "runs").iterdir()
    code = (
        "import sys\nfrom ddpm_core.artifacts import run_record\nfrom ddpm_core.artifacts.run_record import hold\n"
        "run_record.BEAT_S = 0.1\n"
        "with hold(sys.argv[1], say=print, standing=lambda: (6,)):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.send_signal(signal.SIGCONT)
    process.communicate()


def longer(recipe: Recipe, steps: int) -> Recipe:
    """To another number of steps."""
    return replace(recipe, train=replace(recipe.train, steps=steps))


def test_a_run_that_may_go_on_or_is_done_is_let_through(recipe: Recipe) -> None:
    check_standing_run(recipe)
    check_standing_run(longer(recipe, STEPS + 1))


def test_more_steps_than_are_asked_for(recipe: Recipe) -> None:
    with pytest.raises(InputError, match=r"run digits-\w+: the run has 6 steps already, train.steps is 5"):
        check_standing_run(longer(recipe, 5))


def test_a_name_of_a_run_that_was_trained_otherwise(recipe: Recipe) -> None:
    (run,) = (Path(recipe.store) / "runs").iterdir()
    other = replace(recipe, name=run.name, train=replace(recipe.train, learning_rate=0.5))
    with pytest.raises(InputError, match=r"run digits-\w+: the run was started with train.learning_rate = "):
        check_standing_run(other)
    check_standing_run(replace(other, name=None))


def test_a_job_of_this_machine_that_is_at_it(recipe: Recipe, holder: subprocess.Popen[bytes]) -> None:
    check_standing_run(recipe)  # done: nothing is written
    with pytest.raises(HeldError, match=rf"digits-\w+ is held by process {holder.pid} on .* and it is alive"):
        check_standing_run(longer(recipe, STEPS + 1))


def test_a_job_that_stands_still_or_has_ended_refuses_nobody(
    recipe: Recipe, holder: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    holder.send_signal(signal.SIGSTOP)
    check_standing_run(longer(recipe, STEPS + 1))
    assert f"is held by process {holder.pid}" in capsys.readouterr().err
    holder.send_signal(signal.SIGCONT)
    holder.communicate()
    check_standing_run(longer(recipe, STEPS + 1))
    assert capsys.readouterr().err == ""


def test_what_is_not_known_at_once_is_left_to_the_run(recipe: Recipe) -> None:
    (run,) = (Path(recipe.store) / "runs").iterdir()
    (newest,) = CheckpointStore(str(run)).uris()
    (Path(newest) / "state.json").write_text("{")
    check_standing_run(longer(recipe, 5))
    check_standing_run(replace(longer(recipe, 5), store=f"{recipe.store}/none"))
    check_standing_run(replace(longer(recipe, 5), data=replace(recipe.data, seed=7)))
