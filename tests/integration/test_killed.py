"""kill -9 of a worker while it trains: the run goes on by itself, and ends in the same bits."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import ray.train
import torch

from ddpm_core.artifacts.checkpoint import list_checkpoints, read_checkpoint
from ddpm_core.model.unet import UNetConfig
from pipelines.line import open_line
from pipelines.recipes import Recipe, make
from pipelines.stages import fit

pytestmark = pytest.mark.usefixtures("ray_session")


def recipe(store: Path) -> Recipe:
    """Some seconds of training, and no checkpoint before its end."""
    base = make("digits")
    train = replace(base.train, steps=150, batch_size=32, checkpoint_every=1_000, preview_every=1_000, num_workers=2)
    small = UNetConfig(
        base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.1
    )
    return replace(base, store=str(store), unet=small, train=train)


def train(wanted: Recipe) -> dict[str, torch.Tensor]:
    """The tensors that the run ends with."""
    with open_line(wanted) as line:
        trained = line.train(line.shard())
    (final,) = list_checkpoints(trained.run_uri)[-1:]
    saved = read_checkpoint(final)
    assert saved.step == 150
    return {**saved.model, **{f"ema.{name}": t for name, t in saved.ema.items()}, **saved.optimizer}


def workers() -> list[int]:
    """Process ids of the training workers of this process's own Ray, whose raylet is a child of it."""
    own = _pgrep("-P", str(os.getpid()))
    return [pid for parent in own for pid in _pgrep("-P", str(parent), "-f", "ray::RayTrainWorker")]


def _pgrep(*options: str) -> list[int]:
    found = subprocess.run(["pgrep", *options], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


def kill_soon(killed: list[int]) -> None:
    """kill -9 one of the two workers, some seconds after they have come up."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = workers()
        if len(found) == 2:
            time.sleep(6)
            killed.append(found[-1])
            os.kill(found[-1], signal.SIGKILL)
            return
        time.sleep(0.1)


def test_a_run_whose_worker_was_killed_ends_in_the_same_bits(tmp_path: Path) -> None:
    killed: list[int] = []
    thread = threading.Thread(target=kill_soon, args=(killed,))
    thread.start()
    found = train(recipe(tmp_path / "killed"))
    thread.join()
    assert killed
    unbroken = train(recipe(tmp_path / "unbroken"))
    assert found.keys() == unbroken.keys()
    assert [name for name, tensor in unbroken.items() if not torch.equal(found[name], tensor)] == []


def _failing(times: int, error: Exception) -> Callable[[], None]:
    left = [error] * times

    def attempt() -> None:
        if left:
            raise left.pop()

    return attempt


def test_workers_that_cannot_be_brought_together_are_started_again_thrice(tmp_path: Path) -> None:
    """As when one is killed while the process group is set up."""
    error, told = ray.train.ControllerError(RuntimeError("The actor died.\nIts pid was 1.")), list[tuple[str, str]]()
    fit._persist(_failing(3, error), told.extend, str(tmp_path))
    assert told == [("warned", "the workers could not be brought together, and are started again: The actor died.")] * 3
    with pytest.raises(ray.train.ControllerError):
        fit._persist(_failing(4, error), told.extend, str(tmp_path))


@ray.remote(num_cpus=0)
class _Reserving:
    def reserve(self) -> str:
        group = ray.util.placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return str(group.id.hex())


def test_what_a_dead_controller_had_reserved_is_given_back_and_nothing_else() -> None:
    dead, alive = _Reserving.remote(), _Reserving.remote()
    lost, kept = ray.get([dead.reserve.remote(), alive.reserve.remote()])
    ray.kill(dead)
    fit._free()
    states = {group: row["state"] for group, row in ray.util.placement_group_table().items()}
    assert (states[lost], states[kept]) == ("REMOVED", "CREATED")
    ray.kill(alive)
    fit._free()
