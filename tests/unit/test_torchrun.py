"""python -m ddpm_core.training as a process: told to end while nothing can be saved, and on a run that another job holds."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import to_json
from ddpm_core.training.config import TrainConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    data = DataConfig(image_size=8, channels=1, samples_per_shard=16)
    source, dataset = ArraySource(images=images, labels=None, class_names=(), stem="noise"), str(tmp_path / "dataset")
    commit_dataset(dataset, [write_shard(p, source, data, dataset) for p in plan_dataset(20, data)], data, source)
    unet = UNetConfig(base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    train = TrainConfig(steps=100_000, batch_size=4, log_every=1, checkpoint_every=100_000)
    parts = {
        "unet": unet,
        "schedule": ScheduleConfig(),
        "reverse": ReverseConfig(),
        "loss": LossConfig(),
        "train": train,
    }
    (tmp_path / "config.json").write_text(json.dumps({name: to_json(part) for name, part in parts.items()}))
    return [sys.executable, "-m", "ddpm_core.training", dataset, str(tmp_path / "run"), str(tmp_path / "config.json")]


def start(command: list[str], file_bytes: int = resource.RLIM_INFINITY) -> subprocess.Popen[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))

    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=limit)


def test_a_save_that_fails_when_told_to_end_is_told_and_ends(command: list[str], tmp_path: Path) -> None:
    with start(command, file_bytes=8000) as process:  # as on a full disk: run.json fits, weights do not
        assert process.stderr is not None
        assert process.stderr.readline().startswith("step 1: ")
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143
    assert "SIGTERM: the last step could not be saved: " in said
    assert "File too large" in said
    assert CheckpointStore(str(tmp_path / "run")).steps() == []
    with hold_run(str(tmp_path / "run"), say=print):
        assert not [path for path in (tmp_path / "run/checkpoints").rglob("*") if path.is_file()]


def test_a_run_that_is_held_is_refused_in_a_line_and_one_that_was_given_back_goes_on(
    command: list[str], tmp_path: Path
) -> None:
    with hold_run(str(tmp_path / "run"), say=print) as held, start(command) as process:
        assert process.stderr is not None
        assert f"is held by {held.holder}; taken over if" in process.stderr.readline()
        held.change()
        (said,) = process.stderr.read().splitlines()
    assert process.returncode == 1
    assert said.startswith("error: ")
    assert "and it is alive; wait for it, stop it, or write elsewhere (--name)" in said
    with start(command) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("step 1: ")
        process.send_signal(signal.SIGTERM)
        assert "was saved in" in process.stderr.read()
    assert process.returncode == 143
    assert len(CheckpointStore(str(tmp_path / "run")).steps()) == 1


@pytest.mark.parametrize(("changes", "told"), [({"ema_decay": 0.9999}, True), ({}, False)])
def test_a_run_whose_average_will_be_young_is_told_at_the_start(
    command: list[str], tmp_path: Path, changes: dict[str, float], told: bool
) -> None:
    config = json.loads((tmp_path / "config.json").read_text())
    config["train"] |= {"steps": 2, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with start(command) as process:
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    assert process.returncode == 0
    said = "warning: train.steps is 2: the averaged weights of step 2 are still 100% those that they began with"
    assert [line.startswith(said) for line in lines[:2]] == [told, False]
    assert lines[-1].startswith("saved ")
