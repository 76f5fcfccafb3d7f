"""The training loop on real shards: alone, resumed, and on two and three workers over gloo, it walks one trajectory."""

import json
import multiprocessing
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from ddpm_core.artifacts.checkpoint import HistoryRow
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import DatasetIndex, read_index
from ddpm_core.artifacts.run_record import Hold
from ddpm_core.data.config import DataConfig
from ddpm_core.data.loader import TrainingStream
from ddpm_core.data.reader import ImageReader
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import to_json
from ddpm_core.training import loop
from ddpm_core.training.checkpointing import Checkpointer, Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import Events, restore, stream_config, train
from ddpm_core.training.memory import step_bytes
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState, load_tensors, network_tensors, new_state, optimizer_tensors
from ddpm_core.training.step import Objective

# 7 images in 5 lanes on 2 or 3 workers: no two shares alike, and padding in every batch.
CONFIG = TrainConfig(
    steps=12,
    batch_size=7,
    learning_rate=1e-3,
    warmup_steps=4,
    grad_clip=0.5,
    ema_decay=0.9,
    label_dropout=0.3,
    timesteps="loss_aware",
    lanes=5,
    window=2,
    log_every=1,
    checkpoint_every=5,
    preview_every=100,
    keep_checkpoints=9,
)
T = 3
OBJECTIVE = Objective(
    schedule=make_schedule(ScheduleConfig(num_timesteps=T, beta_end=0.5)),
    reverse=ReverseConfig(prediction="v", variance="learned_range"),
    loss=LossConfig(objective="bound"),
)


SILENT = Events(logged=lambda row: None, look=lambda state: None, warned=lambda line: None)


def silent_checkpointer(state: TrainState, config: TrainConfig, run: Run, hold: Hold | None) -> Checkpointer:
    store = CheckpointStore(run.uri, hold)
    return Checkpointer(state, config, run, store, saved=lambda uri: None, warned=lambda line: None)


@dataclass(frozen=True, kw_only=True)
class Walked:
    """What a worker ends with."""

    history: list[HistoryRow]
    network: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """40 noisy squares of two classes: dark and bright."""
    folder, rng = str(tmp_path_factory.mktemp("dataset")), np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (rng.integers(0, 60, (40, 4, 4)) + 180 * labels[:, None, None]).astype(np.uint8)
    source = ArraySource(images=images, labels=labels, class_names=("dark", "bright"), stem="square")
    config = DataConfig(image_size=4, channels=1, samples_per_shard=6)
    results = [write_shard(plan, source, config, folder) for plan in plan_dataset(40, config)]
    return commit_dataset(folder, results, config, source)


MODEL = ModelConfig(
    image_size=4,
    channels=1,
    unet=UNetConfig(
        base_channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        dropout=0.2,
        num_classes=2,
    ),
    schedule=ScheduleConfig(),
    reverse=ReverseConfig(variance="learned_range"),
)


def start() -> TrainState:
    network = MODEL.build_network()
    init_unet(network, 0)
    return new_state(network, CONFIG.learning_rate, loss_aware=T if CONFIG.timesteps == "loss_aware" else None)


def walk(index: DatasetIndex, run_uri: str, config: TrainConfig, rank: int = 0, num_workers: int = 1) -> Walked:
    """Train from the run's newest checkpoint on, as one of its workers."""
    state = start()
    run = Run(uri=run_uri, config=to_json(MODEL), dataset_uri=index.uri, dataset_digest=index.digest, versions={})
    checkpoint = CheckpointStore(run_uri).newest()
    if checkpoint is not None:
        restore(state, checkpoint, run)
    stream = TrainingStream(
        ImageReader(index, "train", Path(run_uri) / "cache"),
        stream_config(config),
        worker=rank,
        num_workers=num_workers,
    )
    worker = Worker(rank=rank, num_workers=num_workers, device=torch.device("cpu"))
    with nullcontext() if rank else hold_run(run_uri, say=print) as hold:
        train(state, stream, OBJECTIVE, config, worker, run, SILENT, silent_checkpointer(state, config, run, hold))
    return Walked(history=state.history, network=network_tensors(state), optimizer=optimizer_tensors(state))


@pytest.fixture(scope="module")
def alone(dataset: DatasetIndex, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """All steps, on one worker, without a break."""
    return walk(dataset, str(tmp_path_factory.mktemp("alone")), CONFIG)


def _worker(rank: int, folder: str, dataset_uri: str) -> None:
    """A process that is a worker of two, then one of three."""
    torch.set_num_threads(1)
    for num_workers in (2, 3):
        if rank < num_workers:
            meeting = f"file://{folder}/meeting-{num_workers}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_workers)
            walked = walk(read_index(dataset_uri), f"{folder}/{num_workers}", CONFIG, rank, num_workers)
            torch.save(vars(walked), f"{folder}/walked-{num_workers}-{rank}.pt")
            dist.destroy_process_group()


def test_two_and_three_workers_walk_as_one_does(dataset: DatasetIndex, alone: Walked, tmp_path: Path) -> None:
    # One process imports, three are forked from it before it has any threads: seconds less than to spawn them.
    multiprocessing.set_forkserver_preload(["torch._dynamo", "ddpm_core.training.loop"])
    torch.multiprocessing.start_processes(
        _worker, args=(str(tmp_path), dataset.uri), nprocs=3, start_method="forkserver"
    )
    for num_workers in (2, 3):
        found: list[dict[str, Any]] = [
            torch.load(tmp_path / f"walked-{num_workers}-{i}.pt") for i in range(num_workers)
        ]
        for key in ("network", "optimizer"):
            for other in found[1:]:
                assert found[0][key].keys() == other[key].keys()
                for name, tensor in found[0][key].items():
                    assert torch.equal(other[key][name], tensor), f"{name} differs between workers"
        history, optimizer = found[0]["history"], found[0]["optimizer"]
        assert [row["step"] for row in history] == [row["step"] for row in alone.history]
        for name in ("loss", "grad_norm"):
            assert [row[name] for row in history] == pytest.approx([row[name] for row in alone.history], rel=1e-4)
        # Every t was the same one, and the losses lie in the same places of the ring.
        assert torch.equal(optimizer["timesteps.counts"], alone.optimizer["timesteps.counts"])
        torch.testing.assert_close(
            optimizer["timesteps.losses"], alone.optimizer["timesteps.losses"], rtol=1e-4, atol=1e-6
        )
        for name, tensor in found[0]["network"].items():
            torch.testing.assert_close(tensor, alone.network[name], rtol=1e-3, atol=2e-4, msg=name)


def test_t_was_drawn_by_the_losses_for_most_of_the_way(alone: Walked) -> None:
    """Or the tests here would show nothing of it."""
    counts = alone.optimizer["timesteps.counts"]
    assert int(counts.sum()) == 12 * 7
    assert int(counts.min()) >= 10
    assert float(counts.max() / counts.min()) > 1.5
    assert min(row["grad_norm"] for row in alone.history) > CONFIG.grad_clip  # ... nor of the clipping


@pytest.fixture(scope="module")
def broken(dataset: DatasetIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after 8 steps."""
    folder = tmp_path_factory.mktemp("broken")
    walk(dataset, str(folder), replace(CONFIG, steps=8))
    return folder


def test_a_resumed_run_goes_on_bit_for_bit(dataset: DatasetIndex, alone: Walked, broken: Path, tmp_path: Path) -> None:
    resumed = walk(dataset, str(shutil.copytree(broken, tmp_path / "run")), CONFIG)
    for ours, theirs in ((resumed.network, alone.network), (resumed.optimizer, alone.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
    assert [{**row, "images_per_s": 0} for row in resumed.history] == [
        {**row, "images_per_s": 0} for row in alone.history
    ]


def test_without_the_losses_seen_the_resumed_run_walks_elsewhere(
    dataset: DatasetIndex, alone: Walked, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are part of the state: leaving them behind must show."""

    def forgetful(state: TrainState, *tensors: Any, **counts: int) -> None:
        load_tensors(state, *tensors, **counts)
        assert state.timesteps is not None
        state.timesteps.counts.zero_()

    monkeypatch.setattr(loop, "load_tensors", forgetful)
    resumed = walk(dataset, str(shutil.copytree(broken, tmp_path / "run")), CONFIG)
    assert any(not torch.equal(resumed.network[name], tensor) for name, tensor in alone.network.items())


def test_a_step_that_is_no_number_is_skipped_listed_and_survived(
    dataset: DatasetIndex, alone: Walked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.draw

    def broken(state: TrainState, *rest: Any) -> Any:
        draws = real(state, *rest)
        return draws._replace(weights=draws.weights / 0) if state.step == 5 else draws

    monkeypatch.setattr(loop, "draw", broken)
    warned: list[str] = []
    monkeypatch.setattr(f"{__name__}.SILENT", replace(SILENT, warned=warned.append))
    walked = walk(dataset, str(tmp_path), CONFIG)
    (line,) = warned
    assert line.startswith("step 5 is skipped, its loss or gradient is not finite; its samples: ")
    listed = json.loads(Path(line.rsplit(" ", 1)[1]).read_text())
    assert sorted(listed["positions"]) == list(range(35, 42))
    assert listed["loss"] == float("inf")
    assert [row["step"] for row in walked.history] == list(range(1, 13))
    assert [row["loss"] for row in walked.history[:5]] == [row["loss"] for row in alone.history[:5]]
    assert all(bool(tensor.isfinite().all()) for tensor in walked.network.values())
    newest = CheckpointStore(str(tmp_path)).newest()
    assert newest is not None
    assert (newest.step, newest.skipped) == (12, 1)
    # The samples of the skipped step count as seen by no one.
    assert int(walked.optimizer["timesteps.counts"].sum()) == 11 * 7


def test_a_run_of_nothing_but_such_steps_ends(
    dataset: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.draw
    monkeypatch.setattr(
        loop, "draw", lambda state, *rest: (d := real(state, *rest))._replace(weights=d.weights * float("nan"))
    )
    with pytest.raises(FloatingPointError, match="not finite in 4 steps in a row, the last of them step 3"):
        walk(dataset, str(tmp_path), replace(CONFIG, max_skipped=3))


def test_as_many_images_at_a_time_as_fit_is_the_same_training_as_so_many(
    dataset: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = walk(dataset, str(tmp_path / "3"), replace(CONFIG, micro_batch_size=3))
    told: list[str] = []
    monkeypatch.setattr(loop, "memory_of_worker", lambda *of: step_bytes(MODEL, 3) + 1)
    monkeypatch.setattr(sys.modules[__name__], "SILENT", replace(SILENT, warned=told.append))
    fits = walk(dataset, str(tmp_path / "auto"), replace(CONFIG, micro_batch_size="auto"))
    assert all(map(torch.equal, fits.network.values(), parts.network.values()))
    assert told == ["train.micro-batch-size auto: 3 of 7 images at a time, as a worker may take 1.2 MB"]


@pytest.mark.parametrize("where", ["backward", "advance"])
def test_memory_that_does_not_suffice_is_told_with_the_batch_that_would_fit(
    dataset: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No GPU here: torch's error, and what torch says of the device, are made up; the loop's way to the one line is not."""

    def too_much(*args: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(loop, where, too_much)
    device = SimpleNamespace(total_memory=2**30, name="a small GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 7 * 2**28)
    with pytest.raises(MemoryError) as told:
        walk(dataset, str(tmp_path), CONFIG)
    assert str(told.value) == (
        "7 images a worker do not fit into the 1 GiB of a small GPU; about 3 would: "
        "set --train.micro-batch-size 3, which is the same training, or take more workers"
    )


def test_a_state_torn_by_an_update_that_failed_is_not_saved(
    dataset: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights have moved, their average has not: resumed from that, a run would walk elsewhere."""
    checkpointers: list[Checkpointer] = []
    made = silent_checkpointer

    def dropout_mask(*args: Any) -> Checkpointer:
        checkpointers.append(made(*args))
        return checkpointers[-1]

    def broken(*args: object, **named: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr(f"{__name__}.silent_checkpointer", dropout_mask)
    monkeypatch.setattr("ddpm_core.training.step.ema_update", broken)
    with pytest.raises(ArithmeticError):
        walk(dataset, str(tmp_path), CONFIG)
    assert checkpointers[0].save_emergency() is None
    assert CheckpointStore(str(tmp_path)).newest() is None


@pytest.mark.parametrize("what", ["another dataset", "another architecture"])
def test_a_run_that_was_trained_otherwise_is_refused(
    dataset: DatasetIndex, broken: Path, tmp_path: Path, what: str
) -> None:
    copied = shutil.copytree(broken, tmp_path / "run")
    file = next(iter(sorted(copied.rglob("state.json"))[-1:]))
    state = json.loads(file.read_text())
    state |= {"dataset_digest": "f" * 64} if what == "another dataset" else {"config": {"image_size": 8, "channels": 1}}
    file.write_text(json.dumps(state))
    said = {
        "another dataset": f"was trained on dataset ffffffffffff, this one is {dataset.digest[:12]}; give the run another",
        "another architecture": "was started with image_size = 8, now it is 4; give the run another --name",
    }
    with pytest.raises(ValueError, match=said[what]):
        walk(dataset, str(copied), CONFIG)
