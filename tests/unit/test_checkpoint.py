"""The Checkpoint artifact: whole or not at all, verified, and the one before taken where one is damaged."""

import json
import logging
import re
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm_core.artifacts.checkpoint import (
    Checkpoint,
    checkpoint_uri,
    clear_checkpoint,
    is_sound,
    read_checkpoint,
    read_history,
    read_weights,
    write_checkpoint,
)
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.storage import StorageError


def checkpoint(step: int) -> Checkpoint:
    torch.manual_seed(step)
    tensors = {"a": torch.randn(3, 2), "b.c": torch.randn(4)}
    return Checkpoint(
        step=step,
        images_seen=step * 8,
        seed=0,
        dataset_digest="d" * 64,
        dataset_uri="/data",
        config={"model": {"base_channels": 32}},
        versions={"torch": "2"},
        model=tensors,
        ema={name: tensor * 2 for name, tensor in tensors.items()},
        optimizer={"exp_avg.a": tensors["a"] ** 2},
        history=[{"step": 1, "images_seen": 8, "loss": 0.5, "grad_norm": 1.0, "images_per_s": 3.0}],
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = checkpoint(10)
    uri = write_checkpoint(str(tmp_path), written)
    read = read_checkpoint(uri)
    for part in ("model", "ema", "optimizer"):
        ours, theirs = getattr(written, part), getattr(read, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert replace(read, model={}, ema={}, optimizer={}) == replace(written, model={}, ema={}, optimizer={})
    assert read_history(uri) == written.history
    weights = read_weights(uri)
    assert torch.equal(weights.tensors["a"], written.ema["a"])
    assert weights.step == 10


def test_without_state_json_there_is_no_checkpoint(tmp_path: Path) -> None:
    uri = Path(write_checkpoint(str(tmp_path), checkpoint(10)))
    (uri / "state.json").unlink()
    assert CheckpointStore(str(tmp_path)).uris() == []
    assert CheckpointStore(str(tmp_path)).newest() is None
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*step-00000010"):
        read_checkpoint(str(uri))


@pytest.mark.parametrize("name", ["model", "ema", "optimizer", "history"])
@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    write_checkpoint(str(tmp_path), checkpoint(10))
    (file,) = Path(write_checkpoint(str(tmp_path), checkpoint(20))).glob(f"{name}-*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flipped bit" else data[:-1])
    with caplog.at_level(logging.WARNING):
        newest = CheckpointStore(str(tmp_path)).newest()
    assert newest is not None
    assert newest.step == 10
    assert file.name in caplog.text
    assert "step-00000020" in caplog.text
    with pytest.raises(
        (ValueError, FileNotFoundError), match="no file at" if damage == "missing" else "; take another"
    ):
        read_checkpoint(checkpoint_uri(str(tmp_path), 20))


def test_a_truncated_state_is_skipped_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(str(tmp_path), checkpoint(10))
    state = Path(write_checkpoint(str(tmp_path), checkpoint(20))) / "state.json"
    state.write_bytes(state.read_bytes()[:-5])
    newest = CheckpointStore(str(tmp_path)).newest()
    assert newest is not None
    assert newest.step == 10
    assert "state.json" in caplog.text


def test_a_newer_format_is_refused_not_skipped(tmp_path: Path) -> None:
    state = Path(write_checkpoint(str(tmp_path), checkpoint(10))) / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format_version": 99}))
    with pytest.raises(ValueError, match="format_version 99; this code reads up to 3"):
        CheckpointStore(str(tmp_path)).newest()


def test_a_checkpoint_that_stands_is_left_as_it_is(tmp_path: Path) -> None:
    uri = write_checkpoint(str(tmp_path), checkpoint(10))
    assert write_checkpoint(str(tmp_path), replace(checkpoint(10), images_seen=1)) == uri
    assert read_checkpoint(uri).images_seen == 80


def test_a_damaged_one_is_written_anew(tmp_path: Path) -> None:
    run = str(tmp_path)
    uri = write_checkpoint(run, checkpoint(3))
    for spoil in ("ema-*", "state.json"):
        next(Path(uri).glob(spoil)).write_bytes(b"{}")
        assert not is_sound(uri)
        assert write_checkpoint(run, checkpoint(3)) == uri
        assert is_sound(uri)
        clear_checkpoint(uri)
        assert len(list(Path(uri).iterdir())) == 5
        assert is_sound(uri)


def test_one_of_the_format_before_is_read(tmp_path: Path) -> None:
    uri = Path(write_checkpoint(str(tmp_path), checkpoint(3)))
    wanted, state = read_checkpoint(str(uri)), json.loads((uri / "state.json").read_text())
    plain = {part: re.sub(r"-[0-9a-f]{12}", "", name) for part, name in state["files"].items()}
    for part, name in state.pop("files").items():
        (uri / name).rename(uri / plain[part])
    state |= {"format_version": 2, "sha256": {plain[part]: each for part, each in state["sha256"].items()}}
    (uri / "state.json").write_text(json.dumps(state))
    found = read_checkpoint(str(uri))
    assert found.history == wanted.history
    assert all(torch.equal(found.ema[name], tensor) for name, tensor in wanted.ema.items())
    assert read_weights(str(uri)).sha256 == state["sha256"]["ema.safetensors"]


@pytest.mark.parametrize("state", [b"{}", b"[]", b"7", b'{"format_version": 2, "step": 3}', b"{", b"\xff\xfe\x00"])
def test_a_malformed_state_is_one_line_and_the_one_before_is_taken(state: bytes, tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path), checkpoint(2))
    uri = write_checkpoint(str(tmp_path), checkpoint(3))
    Path(uri, "state.json").write_bytes(state)
    with pytest.raises(ValueError, match=r"state.json (does not say [^\n]*; it is damaged|is not JSON)[^\n]*$"):
        read_checkpoint(uri)
    newest = CheckpointStore(str(tmp_path)).newest()
    assert newest is not None
    assert newest.step == 2


def test_a_state_of_wrong_types_is_damaged(tmp_path: Path) -> None:
    path = Path(write_checkpoint(str(tmp_path), checkpoint(3)), "state.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": "3"}))
    with pytest.raises(ValueError, match=r"state.json does not say format_version; it is damaged"):
        read_checkpoint(str(path.parent))


@pytest.fixture
def small_files() -> Iterator[None]:
    """As on a full disk, no file can grow over 50 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File too large") as told:
        write_checkpoint(str(tmp_path), checkpoint(10))
    assert "\n" not in str(told.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
