"""kill -9 of the driver, the coordinator, a worker and what stands for Ray's synchronizer: the run ends in the same bits."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import ray.train
import torch

from ddpm_core.artifacts.checkpoint import read_checkpoint, step_of
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.serialization import to_json
from pipelines.cli.parsing import parse
from pipelines.pipeline import open_pipeline
from pipelines.recipes.config import Recipe
from pipelines.training import backend, trainer

pytestmark = pytest.mark.usefixtures("ray_session")

ROOT = Path(__file__).parents[2]
STEPS = 420
FLAGS = f"""
    --train.steps {STEPS} --train.batch-size 32 --train.checkpoint-every 30 --train.preview-every 1000
    --train.num-workers 2 --unet.base-channels 16 --unet.dropout 0.1
""".split()


def newest(store: Path) -> int:
    """The step of the only run's newest checkpoint."""
    return max((step_of(uri) for run in store.glob("runs/*") for uri in CheckpointStore(str(run)).uris()), default=0)


def kill_once(past: int, store: Path, find: Callable[[], list[int]], delay_s: float) -> bool:
    """kill -9 the last process that is found, so long after a checkpoint past that step; False if it never came to that."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if newest(store) > past and find():
            time.sleep(delay_s)
            if found := find():
                os.kill(found[-1], signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False


def processes(title: str) -> list[int]:
    """Of this process's own Ray, whose raylet is a child of it."""
    return [pid for parent in _pgrep("-P", str(os.getpid())) for pid in _pgrep("-P", str(parent), "-f", title)]


def _pgrep(*options: str) -> list[int]:
    found = subprocess.run(["pgrep", *options], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


def kill_a_driver(flags: list[str], store: Path, delay_s: float) -> None:
    """train.py with a Ray of its own, up to a moment after its first checkpoint."""
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets bear no long path
    command = [sys.executable, str(ROOT / "pipelines/train.py"), "digits", *flags]
    driver = subprocess.Popen(command, env=os.environ | {"RAY_TMPDIR": temporary}, stderr=subprocess.DEVNULL)
    assert kill_once(0, store, lambda: [driver.pid] if driver.poll() is None else [], delay_s)
    assert driver.wait() == -signal.SIGKILL
    shutil.rmtree(temporary, ignore_errors=True)  # what hung on the driver may still be writing there


@contextmanager
def killing(blows: list[tuple[str, float]], store: Path) -> Iterator[None]:
    """One process of each title is killed, each some steps after the one before."""
    done: list[bool] = []

    def kill() -> None:
        for title, delay_s in blows:
            done.append(kill_once(newest(store) + 30, store, lambda title=title: processes(title), delay_s))

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()
    assert done == [True] * len(blows)


def train_without_ray(wanted: Recipe, dataset: str, run: str, folder: Path) -> None:
    """Two workers under torchrun, with as many threads as Ray's have."""
    config = folder / "config.json"
    config.write_text(json.dumps(to_json(wanted)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"OMP_NUM_THREADS": str(wanted.train.threads)}
    command = [*torchrun, "-m", "ddpm_core.training", dataset, run, str(config)]
    subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True)


def ends_with(run: str) -> dict[str, torch.Tensor]:
    """The tensors of the run's last checkpoint."""
    saved = read_checkpoint(CheckpointStore(run).uris()[-1])
    assert saved.step == STEPS
    return {**saved.model, **{f"ema.{name}": t for name, t in saved.ema.items()}, **saved.optimizer}


def test_driver_coordinator_worker_and_synchronizer_killed_and_the_same_bits(tmp_path: Path) -> None:
    store, rng = tmp_path / "store", random.Random(0)
    flags = [*FLAGS, "--store", str(store)]
    kill_a_driver(flags, store, rng.uniform(0, 1))
    titles = ("ray::Coordinator", "ray::RayTrainWorker", "ray::NoMeeting")
    blows = [(title, rng.uniform(0, 1)) for title in titles]
    wanted = parse(Recipe, ["digits", *flags], "", "")
    unbroken = str(tmp_path / "unbroken")
    # Side by side: the one mostly waits for processes to start.
    with ThreadPoolExecutor(1) as beside, killing(blows, store), open_pipeline(wanted) as pipeline:
        dataset = pipeline.shard()
        trained_beside = beside.submit(train_without_ray, wanted, dataset.uri, unbroken, tmp_path)
        trained = pipeline.train(dataset)
        trained_beside.result()
    found, expected = ends_with(trained.run_uri), ends_with(unbroken)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def _failing(times: int, error: Exception) -> Callable[[], None]:
    left = [error] * times

    def attempt() -> None:
        if left:
            raise left.pop()

    return attempt


def test_an_error_that_says_nothing_is_told_by_its_type() -> None:
    said = trainer._why_again(ray.train.ControllerError(TimeoutError()))
    assert said == "the workers could not be brought together, and are started again: TimeoutError"


def test_an_error_of_a_worker_is_told_by_what_it_met() -> None:
    met = RuntimeError("Gloo connectFullMesh failed with Connection refused, remote=[127.0.1.1]:25992")
    failure = ray.exceptions.RayTaskError("execute", "Traceback ...", met)
    said = trainer._why_again(ray.train.ControllerError(failure))
    assert said.endswith(
        "are started again: Gloo connectFullMesh failed with Connection refused, remote=[127.0.1.1]:25992"
    )


def test_gloo_is_told_the_interface_of_the_node_s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    backend.name_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    backend.name_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth1"


def test_workers_that_cannot_be_brought_together_are_started_again_thrice(tmp_path: Path) -> None:
    """As when one is killed while the process group is set up."""
    error, told = ray.train.ControllerError(RuntimeError("The actor died.\nIts pid was 1.")), list[tuple[str, str]]()
    trainer._persist(_failing(3, error), told.extend, str(tmp_path))
    assert told == [("warned", "the workers could not be brought together, and are started again: The actor died.")] * 3
    with pytest.raises(ray.train.ControllerError):
        trainer._persist(_failing(4, error), told.extend, str(tmp_path))
