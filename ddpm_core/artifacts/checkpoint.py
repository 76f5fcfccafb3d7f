"""The Checkpoint artifact: weights, EMA, optimizer and history in a folder, whole once state.json stands.

    <run>/checkpoints/step-00001000/model-W.safetensors ema-W.safetensors optimizer-W.safetensors history-W.parquet state.json

W names who wrote them: two that write the same step never write into each other's files. state.json goes last, if none stands
yet, and names the files that it stands for, each with its sha256: no state.json, no checkpoint. Whether a checkpoint counts
in its run is said by `checkpoint_store.py`.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
import safetensors.torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint_files import (
    FORMAT_VERSION,
    SUFFIX,
    NewerFormatError,
    parts_of,
    read_part,
    read_state,
)
from ddpm_core.artifacts.finite import check_finite
from ddpm_core.errors import InputError, MissingError
from ddpm_core.optional import late
from ddpm_core.types import Tensor

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
else:
    pa, pq = (late(name, "pyarrow", "a run's history") for name in ("pyarrow", "pyarrow.parquet"))


Tensors = dict[str, Tensor]
HistoryRow = dict[str, int | float]
"""One logged point: step, images_seen, loss, grad_norm, images_per_s."""
_HISTORY = {
    "step": "int64",
    "images_seen": "int64",
    "loss": "float64",
    "grad_norm": "float64",
    "images_per_s": "float64",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a resume needs, in one place."""

    step: int
    """Completed steps; the next one to run has this number."""
    images_seen: int
    skipped: int = 0
    """Of the completed steps, those without an update, because loss or gradient was not finite."""
    seed: int
    dataset_digest: str
    dataset_uri: str
    config: dict[str, Any]
    """The resolved recipe as JSON: model, schedule, training, and the shape of the images."""
    versions: dict[str, str]
    model: Tensors = field(repr=False)
    ema: Tensors = field(repr=False)
    optimizer: Tensors = field(repr=False)
    history: list[HistoryRow] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a sampler needs of a checkpoint: the weights, as a rule the averaged ones, and what they are."""

    uri: str
    step: int
    sha256: str
    config: dict[str, Any]
    dataset_digest: str
    dataset_uri: str
    recipe: str = ""
    """The name of the recipe that it was trained by; empty if that is not known."""
    file: bytes = field(repr=False)
    """The safetensors file whose sha256 names the weights."""

    @property
    def tensors(self) -> Tensors:
        """The weights by name.

        Raises:
            InputError: if one of them holds NaN or infinity.
        """
        tensors: Tensors = safetensors.torch.load(self.file)
        check_finite(tensors, self.uri, "name an earlier checkpoint, or get a sound copy of the weights")
        return tensors

    def check(self) -> None:
        """Refuse weights of which one holds NaN or infinity. Errors as in `tensors`."""
        _ = self.tensors


_SAVED = re.compile(r"(model|ema|optimizer|history)(-[0-9a-f]{12})?\.(safetensors|parquet)")
"""The files that a save writes."""


def checkpoint_uri(run_uri: str, step: int) -> str:
    """The folder of a run's checkpoint."""
    return storage.join(run_uri, "checkpoints", f"step-{step:08d}")


def run_of(uri: str) -> str:
    """The run of a checkpoint's URI; empty if it is of none."""
    return uri.rpartition("/checkpoints/")[0]


def step_of(uri: str) -> int:
    """The step of a checkpoint's URI."""
    return int(uri.rsplit("-", 1)[1])


def write_checkpoint(run_uri: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint, whole in one step.

    Returns:
        its URI. A checkpoint of that step that already stands is left as it is if it is sound, and replaced if it is damaged.
    """
    uri = checkpoint_uri(run_uri, checkpoint.step)
    state, written = storage.join(uri, "state.json"), False
    while not written:
        stands = storage.read_bytes(state) if storage.exists(state) else None
        if stands is not None and is_sound(uri):
            break
        data = _write_files(uri, checkpoint)
        # What stands is never deleted: whoever was paused here, and wakes, would delete another's.
        written = storage.create_bytes(state, data) if stands is None else storage.replace_bytes(state, data, stands)
    return uri


def _write_files(uri: str, checkpoint: Checkpoint) -> bytes:
    """Write the files; returns what state.json is to say of them."""
    writer = uuid.uuid4().hex[:12]
    save: dict[str, Callable[[Path], None]] = {
        "model": partial(_save_tensors, checkpoint.model),
        "ema": partial(_save_tensors, checkpoint.ema),
        "optimizer": partial(_save_tensors, checkpoint.optimizer),
        "history": partial(_save_history, checkpoint.history),
    }
    files = {part: f"{part}-{writer}{SUFFIX[part]}" for part in save}
    with ThreadPoolExecutor(len(files), "checkpoint") as pool:  # a file's sum and its way to the store take turns
        sums = list(pool.map(lambda part: _write_file(storage.join(uri, files[part]), save[part]), files))
    state = {key: value for key, value in vars(checkpoint).items() if key not in save}
    state["format_version"] = FORMAT_VERSION
    state["files"] = files
    state["sha256"] = dict(zip(files, sums, strict=True))
    return json.dumps(state, indent=2).encode()


def clear_checkpoint(uri: str) -> None:
    """Delete the files of saves to a checkpoint's folder that were killed, or came second; a person's own files stay."""
    state = storage.join(uri, "state.json")
    kept = {name for name, _ in parts_of(read_state(uri)).values()} if storage.exists(state) else set()
    for file, _ in storage.list_files(uri):
        name = file.rpartition("/")[2]
        if _SAVED.fullmatch(name) and name not in kept:
            storage.delete(file)


def delete_checkpoint(uri: str) -> None:
    """state.json goes first: what is half deleted is no checkpoint."""
    storage.delete(storage.join(uri, "state.json"))
    clear_checkpoint(uri)


def _write_file(uri: str, save: Callable[[Path], None]) -> str:
    """Write one file; returns its sha256."""
    with storage.writing(uri) as path:
        save(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _save_tensors(tensors: Tensors, path: Path) -> None:
    """From where they lie in memory; what does not lie in rows, as a network's convolutions, is copied."""
    try:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except safetensors.SafetensorError as error:  # its name for whatever the disk says
        raise storage.StorageError(f"{path}: {error}") from error


def _save_history(history: list[HistoryRow], path: Path) -> None:
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _HISTORY.items()])
    pq.write_table(pa.Table.from_pylist(history, schema=schema), path)


def read_checkpoint(uri: str) -> Checkpoint:
    """Read a checkpoint and verify each file.

    Raises:
        MissingError: if no complete checkpoint is there.
        InputError: if a file does not have its recorded sha256, or the format is newer than this code.
    """
    state = read_state(uri)
    tensors = {part: safetensors.torch.load(read_part(uri, part, state)) for part in ("model", "ema", "optimizer")}
    history = _history_of(uri, state)
    facts = {key: value for key, value in state.items() if key not in ("format_version", "files", "sha256")}
    return Checkpoint(**facts, **tensors, history=history)


def is_sound(uri: str) -> bool:
    """Whether a checkpoint stands whose files are all as they were written."""
    try:
        state = read_state(uri)
        for part in parts_of(state):
            read_part(uri, part, state)
    except NewerFormatError:
        raise
    except (InputError, MissingError):
        return False
    return True


def read_weights(uri: str, part: Literal["ema", "model"] = "ema") -> Weights:
    """Read the weights of a checkpoint. Errors as in `read_checkpoint`.

    Args:
        part: ema, the averaged ones, which are sampled from; model, those that training went on from.
    """
    state = read_state(uri)
    data = read_part(uri, part, state)
    return Weights(
        uri=uri,
        step=state["step"],
        sha256=parts_of(state)[part][1],
        config=state["config"],
        dataset_digest=state["dataset_digest"],
        dataset_uri=state["dataset_uri"],
        recipe=state["versions"].get("recipe", ""),
        file=data,
    )


def recipe_of(uri: str) -> str:
    """The name of the recipe that a checkpoint was trained by; empty if it does not say."""
    return str(read_state(uri)["versions"].get("recipe", ""))


def read_history(uri: str) -> list[HistoryRow]:
    """The logged rows of a checkpoint: step, images_seen, loss, grad_norm, images_per_s."""
    return _history_of(uri, read_state(uri))


def _history_of(uri: str, state: dict[str, Any]) -> list[HistoryRow]:
    # As artifacts/parquet.py has it, which needs pyarrow when it is imported; read_table would read ahead in threads.
    with pq.ParquetFile(pa.BufferReader(read_part(uri, "history", state)), pre_buffer=False) as file:
        rows: list[HistoryRow] = file.read(use_threads=False).to_pylist()
    return rows
