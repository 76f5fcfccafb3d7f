"""A small run on real digits for the scripts here: a dataset, a config, and workers under torchrun."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources import open_source
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import to_json
from ddpm_core.training.config import TrainConfig
from pipelines.recipes.recipes import make

ROOT = Path(__file__).parents[2]
NETWORK = UNetConfig(
    base_channels=24, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.1
)


def make_dataset(folder: Path) -> str:
    """The digits as a dataset; its URI."""
    config = DataConfig(source="digits", image_size=8, channels=1, samples_per_shard=256)
    source = open_source(config.source)
    uri = str(folder / "dataset")
    results = [write_shard(plan, source, config, uri) for plan in plan_dataset(source.num_images, config)]
    return commit_dataset(uri, results, config, source).uri


def write_config(path: Path, **train: Any) -> Path:
    """The digits' recipe with dropout, constant learning rate and clipping that acts, as the trainer reads it."""
    recipe = make("digits")
    kept = {key: value for key, value in to_json(recipe.train).items() if key in TrainConfig.__dataclass_fields__}
    wanted = replace(TrainConfig(**kept), **{"warmup_steps": 0, "grad_clip": 0.5, "precision": "float32", **train})
    parts = {name: to_json(getattr(recipe, name)) for name in ("schedule", "reverse", "loss")}
    path.write_text(json.dumps({**parts, "unet": to_json(NETWORK), "train": to_json(wanted)}))
    return path


def start(num_workers: int, dataset: str, run: str, config: Path, log: Path) -> subprocess.Popen[bytes]:
    """Workers of one thread each, in a session of their own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
    command = [*torchrun, "-m", "ddpm_core.training", dataset, run, str(config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(log, "ab") as out:
        return subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)


def train(num_workers: int, dataset: str, run: str, config: Path, log: Path) -> None:
    """Train to the end.

    Raises:
        RuntimeError: with what the workers said, if they did not get there.
    """
    if start(num_workers, dataset, run, config, log).wait():
        raise RuntimeError(log.read_text())
