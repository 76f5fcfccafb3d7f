"""Checkpoints in the background, on leaving, by policy, and when the store fails; steps whose numbers are none."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import read_checkpoint, step_of
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.validation import best_step, read_validations, write_validation
from ddpm_core.training.checkpointing import Checkpointer, Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.divergence import batch_that_fits
from ddpm_core.training.state import TrainState, load_tensors, new_state
from ddpm_core.training.step import advance

CONFIG = TrainConfig(batch_size=4, warmup_steps=0, learning_rate=1e-2, keep_checkpoints=2)


def state() -> TrainState:
    torch.manual_seed(0)
    return new_state(torch.nn.Linear(3, 2), CONFIG.learning_rate)


def move(trained: TrainState, *, update: bool = True) -> None:
    """A step with a gradient that depends on nothing but the step."""
    for p in trained.network.parameters():
        p.grad = torch.full_like(p, float(trained.step + 1))
    advance(trained, CONFIG, update=update)


HELD = ExitStack()
"""Of the runs that a test's checkpointers write."""


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    with HELD:
        yield


def checkpointer(trained: TrainState, run_uri: str, warned: list[str] | None = None, **changes: int) -> Checkpointer:
    run = Run(uri=run_uri, config={}, dataset_uri="/data", dataset_digest="d", versions={})
    said = [] if warned is None else warned
    hold = None if storage.is_s3(run_uri) else HELD.enter_context(hold_run(run_uri, say=said.append))
    return Checkpointer(
        trained,
        replace(CONFIG, **changes),
        run,
        CheckpointStore(run_uri, hold),
        saved=lambda uri: None,
        warned=said.append,
        best=lambda: best_step(run_uri),
    )


def steps(run_uri: Path) -> list[int]:
    return [step_of(uri) for uri in CheckpointStore(str(run_uri)).uris()]


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while the copy is written: here it is written only once training went on."""
    trained, moved_on = state(), threading.Event()
    write = CheckpointStore.commit

    def slow(*args: object) -> str:
        assert moved_on.wait(10)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointStore, "commit", slow)
    move(trained)
    expected = {name: p.detach().clone() for name, p in trained.network.named_parameters()}
    writer = checkpointer(trained, str(tmp_path))
    writer.save()
    for _ in range(3):
        move(trained)
    moved_on.set()
    writer.finish(last=True)
    (uri,) = CheckpointStore(str(tmp_path)).uris()
    saved = read_checkpoint(uri)
    assert saved.step == 1
    assert all(torch.equal(saved.model[name], tensor) for name, tensor in expected.items())


def test_on_leaving_the_last_completed_step_stands_and_none_comes_after_it(tmp_path: Path) -> None:
    trained = state()
    move(trained)
    move(trained)
    assert checkpointer(trained, str(tmp_path)).save_emergency() == 2
    assert steps(tmp_path) == [2]
    assert not trained.lock.acquire(timeout=0.05)  # the step under way waits for ever


def test_on_leaving_the_state_is_never_seen_between_two_steps(tmp_path: Path) -> None:
    """A worker that is told to leave while the weights are updated saves what they are after it."""
    trained, left = state(), []
    writer = checkpointer(trained, str(tmp_path))
    with trained.lock:
        thread = threading.Thread(target=lambda: left.append(writer.save_emergency()))
        thread.start()
        thread.join(0.1)
        assert not left
        move(trained)
    thread.join(10)
    assert left == [1]
    assert read_checkpoint(CheckpointStore(str(tmp_path)).uris()[0]).step == 1


def test_the_newest_every_nth_and_the_best_stay(tmp_path: Path) -> None:
    trained = state()
    writer = checkpointer(trained, str(tmp_path), keep_every=4)
    for step in range(1, 11):
        move(trained)
        writer.save()
        if step == 3:
            write_validation(str(tmp_path), 3, {"distance": 1.0})
        if step == 6:
            write_validation(str(tmp_path), 6, {"distance": 2.0})
    writer.finish(last=True)
    assert steps(tmp_path) == [3, 4, 8, 9, 10]
    assert list(read_validations(str(tmp_path))) == [3, 6]


def test_an_s3_server_may_fail_twice_but_not_thrice_nor_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> str:
        raise storage.StorageError("s3://bucket is away")

    monkeypatch.setattr(CheckpointStore, "commit", fail)
    warned: list[str] = []
    writer = checkpointer(state(), "s3://bucket/run", warned)
    for _ in range(3):
        writer.save()
    assert len(warned) == 2
    assert "will be tried: s3://bucket is away" in warned[0]
    with pytest.raises(storage.StorageError):
        writer.save()
    last = checkpointer(state(), "s3://bucket/run")
    last.save()
    with pytest.raises(storage.StorageError, match="is away"):
        last.finish(last=True)
    local = checkpointer(state(), str(tmp_path))
    local.save()
    with pytest.raises(storage.StorageError):  # a full disk does not get better
        local.save()


def test_a_skipped_step_moves_nothing_but_the_step() -> None:
    trained = state()
    move(trained)
    before = {name: p.detach().clone() for name, p in trained.network.named_parameters()}
    move(trained, update=False)
    assert (trained.step, trained.skipped, trained.updates) == (2, 1, 1)
    assert all(torch.equal(p, before[name]) for name, p in trained.network.named_parameters())
    assert all(torch.equal(average, before[name]) for name, average in trained.ema.items())


def test_a_state_with_skipped_steps_resumes_as_it_was(tmp_path: Path) -> None:
    """Adam's own count is of updates: taken from the steps, the moments' bias would be corrected wrongly."""
    unbroken = state()
    for skipped in (False, True, True, False):
        move(unbroken, update=not skipped)
    checkpointer(unbroken, str(tmp_path)).save_emergency()
    unbroken.lock.release()
    saved = read_checkpoint(CheckpointStore(str(tmp_path)).uris()[0])
    resumed = state()
    load_tensors(resumed, saved.model, saved.ema, saved.optimizer, saved.step, saved.skipped)
    for trained in (unbroken, resumed):
        for _ in range(3):
            move(trained)
    for name, p in unbroken.network.named_parameters():
        assert torch.equal(dict(resumed.network.named_parameters())[name], p)
        assert torch.equal(resumed.ema[name], unbroken.ema[name])


def test_the_batch_that_fits() -> None:
    """Memory: 10 for weights and moments, 2 an image, 30 in all: 10 images fit, and 16 were tried."""
    held = {"before_bytes": 10, "to_come_bytes": 0, "total_bytes": 30}
    assert batch_that_fits(16, peak_bytes=30, asked_bytes=12, **held) == 10
    assert batch_that_fits(16, peak_bytes=12, asked_bytes=1, **held) == 15  # always fewer
    assert batch_that_fits(16, peak_bytes=30, asked_bytes=12, **held | {"to_come_bytes": 6}) == 7
    assert batch_that_fits(1, peak_bytes=30, asked_bytes=9, **held | {"before_bytes": 29}) == 0
