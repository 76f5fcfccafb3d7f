"""The checkpoints of a run: which count, what a job that lost the run can still do (nothing), what is kept and what cleaned."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_checkpoint import checkpoint

from ddpm_core import storage
from ddpm_core.artifacts import run_record
from ddpm_core.artifacts.checkpoint import checkpoint_uri, is_sound, read_checkpoint, write_checkpoint
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, find_checkpoint, hold_run
from ddpm_core.errors import HeldError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    """Of a run that is held."""
    with hold_run(str(tmp_path), say=print) as held:
        yield CheckpointStore(str(tmp_path), held)


def spoil(uri: str) -> None:
    """Damage a checkpoint's weights."""
    next(Path(uri).glob("ema-*")).write_bytes(b"{}")


def test_the_newest_few_stay(store: CheckpointStore) -> None:
    for step in (10, 20, 30, 40):
        store.commit(checkpoint(step))
    store.prune(keep_last=2)
    assert store.steps() == [30, 40]
    assert not list(Path(store.run_uri).rglob("step-00000010/*"))


def test_only_who_holds_the_run_writes_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without being held"):
        CheckpointStore(str(tmp_path)).commit(checkpoint(1))


def test_who_lost_the_run_commits_and_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first writes step 30 after the second took the run at step 20: it does not count, and what counts is not touched."""
    monkeypatch.setattr(run_record, "BEAT_S", 1e6)
    monkeypatch.setattr(run_record, "PATIENCE_S", 0.1)
    monkeypatch.setattr(run_record, "_LOOK_S", 0.01)
    with ExitStack() as stack:
        first, second = (
            CheckpointStore(str(tmp_path), stack.enter_context(hold_run(str(tmp_path), say=lambda line: None)))
            for _ in range(2)
        )
        for step in (10, 20):
            second.commit(checkpoint(step))
        for late in (20, 30):
            with pytest.raises(HeldError, match="taken over by"):
                first.commit(replace(checkpoint(late), ema={"a": torch.zeros(1)}))
        with pytest.raises(HeldError):
            first.prune(keep_last=1)
        assert CheckpointStore(str(tmp_path)).steps() == [10, 20]
        assert find_checkpoint(str(tmp_path)) == checkpoint_uri(str(tmp_path), 20)
        assert torch.equal(read_checkpoint(checkpoint_uri(str(tmp_path), 20)).ema["a"], checkpoint(20).ema["a"])
        second.commit(checkpoint(30))  # what the first left there was whole, and is of the same run
        assert second.steps() == [10, 20, 30]
        assert is_sound(checkpoint_uri(str(tmp_path), 30))


def test_a_damaged_one_does_not_count_for_those_that_are_kept_and_its_step_replaces_it(store: CheckpointStore) -> None:
    """One is kept: the run goes on from 10 since 30 is damaged, comes to 20, and 20 must stay."""
    for step in (10, 30):
        uri = store.commit(checkpoint(step))
    spoil(uri)
    newest = store.newest()
    assert newest is not None
    assert newest.step == 10
    store.commit(checkpoint(20))
    store.prune(keep_last=1)
    assert store.steps() == [20]
    store.commit(checkpoint(30))
    store.prune(keep_last=1)
    assert store.steps() == [30]
    assert is_sound(checkpoint_uri(store.run_uri, 30))
    assert len(list(Path(uri).iterdir())) == 5


def test_who_only_reads_changes_nothing(store: CheckpointStore) -> None:
    spoil(store.commit(checkpoint(10)))
    assert CheckpointStore(store.run_uri).newest() is None
    assert store.steps() == [10]


def test_a_run_without_a_record_is_read_and_taken_over_with_all_that_stands(tmp_path: Path) -> None:
    for step in (5, 123_456_789):
        write_checkpoint(str(tmp_path), checkpoint(step))
    assert CheckpointStore(str(tmp_path)).steps() == [5, 123_456_789]
    with hold_run(str(tmp_path), say=print) as held:
        store = CheckpointStore(str(tmp_path), held)
        store.commit(checkpoint(7))
        assert store.steps() == [5, 7, 123_456_789]


def test_what_killed_saves_left_is_cleaned_by_the_next_job_and_nothing_else(tmp_path: Path) -> None:
    whole = Path(write_checkpoint(str(tmp_path), checkpoint(10)))
    files = sorted(whole.iterdir())
    left = [
        tmp_path / "checkpoints/step-00000020/model-0123456789ab.safetensors",
        tmp_path / "checkpoints/step-00000020/.tmp-half",
        whole / ".tmp-half",
    ]
    kept = [
        tmp_path / "samples/.tmp-under-way",
        tmp_path / "checkpoints/notes.txt",
        tmp_path / "checkpoints/step-00000020/why.txt",
        tmp_path / "checkpoints/step-00000030.bak/model-0123456789ab.safetensors",
    ]
    for path in [*left, *kept]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    with hold_run(str(tmp_path), say=print):
        assert not [path for path in left if path.exists()]
        assert sorted(whole.iterdir()) == files
        assert all(path.exists() for path in kept)


def test_two_of_one_job_that_write_one_step_leave_one_sound_checkpoint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have written all their files when the first one commits."""
    first, second = (replace(checkpoint(3), ema={"a": torch.full((9,), float(number))}) for number in (1, 2))
    create, waiting = storage.create_bytes, []

    def commit(uri: str, data: bytes) -> bool:
        waiting.append(data)
        if len(waiting) == 1:
            store.commit(second)
        return create(uri, data)

    monkeypatch.setattr(storage, "create_bytes", commit)
    uri = store.commit(first)
    assert len(waiting) == 2
    assert is_sound(uri)
    assert torch.equal(read_checkpoint(uri).ema["a"], second.ema["a"])
    assert len(list(Path(uri).iterdir())) == 5


def test_who_wakes_while_repairing_does_not_undo_anothers_repair(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found the checkpoint damaged, slept, and meanwhile another one replaced it."""
    uri, replaced = store.commit(checkpoint(3)), []
    spoil(uri)
    swap = storage.replace_bytes

    def slow(to: str, data: bytes, expected: bytes) -> bool:
        if to.endswith("state.json") and not replaced:
            replaced.append(to)
            store.commit(replace(checkpoint(3), skipped=7))
        return swap(to, data, expected)

    monkeypatch.setattr(storage, "replace_bytes", slow)
    store.commit(checkpoint(3))
    assert replaced
    assert read_checkpoint(uri).skipped == 7
    assert len(list(Path(uri).iterdir())) == 5
