"""Training without Ray, alone or under torchrun; the run is the one that pipelines/train.py goes on with, and the other way round.

    python pipelines/train.py digits --dry-run --json > digits.json
    torchrun --nproc-per-node 2 -m ddpm_core.training STORE/datasets/NAME STORE/runs/NAME digits.json

DATASET is a folder of shards, RUN one of checkpoints, both local or on S3; CONFIG a JSON file with unet, schedule, reverse, loss
and train. SIGTERM saves the last completed step.
"""

import argparse
import json
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import platformdirs
import torch
import torch.distributed as dist

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import checkpoint_uri
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import read_index
from ddpm_core.artifacts.run_record import Hold
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import InputError, UserError
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import from_json
from ddpm_core.training.averages import young_average
from ddpm_core.training.checkpointing import Checkpointer, Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.identity import check_steps, run_config
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState
from ddpm_core.training.worker import WorkerSpec, run_worker

_TERMINATED = 143
_LEAVE_S = 25.0
"""torchrun kills after 30 s."""


def read_spec(dataset_uri: str, run_uri: str, config: dict[str, Any], device: torch.device) -> WorkerSpec:
    """What the worker must know.

    Raises:
        InputError: in one line, if the config is none.
    """
    missing = {"unet", "schedule", "reverse", "loss", "train"} - config.keys()
    if missing:
        raise InputError(
            f"the config has no {', '.join(sorted(missing))}; expected what train.py --dry-run --json prints"
        )
    own = {field.name for field in fields(TrainConfig)}  # a recipe's `train` says more: who trains
    train = from_json(TrainConfig, {key: value for key, value in config["train"].items() if key in own})
    if train.precision == "auto":
        train = replace(train, precision="bfloat16" if device.type == "cuda" else "float32")
    index = read_index(dataset_uri)
    run = Run(
        uri=run_uri,
        config=run_config(
            index,
            unet=from_json(UNetConfig, config["unet"]),
            schedule=from_json(ScheduleConfig, config["schedule"]),
            reverse=from_json(ReverseConfig, config["reverse"]),
            loss=from_json(LossConfig, config["loss"]),
            train=train,
            init_from=None,
        ),
        dataset_uri=index.uri,
        dataset_digest=index.digest,
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
    )
    return WorkerSpec(train=train, run=run, index=index)


def join() -> Worker:
    """This process among those that torchrun started; alone without it."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Worker(rank=rank, num_workers=count, device=device)


@contextmanager
def held_by_first(run_uri: str, worker: Worker) -> Iterator[Hold | None]:
    """The first worker holds the run for all of them; the others go on once it does."""
    if not worker.is_first:
        dist.barrier()
        yield None
        return
    with hold_run(run_uri, say=say) as hold:
        if dist.is_initialized():
            dist.barrier()
        yield hold


def save_on_sigterm(state: TrainState, checkpointer: Checkpointer, worker: Worker, run: Run, hold: Hold | None) -> None:
    """On SIGTERM the first worker saves the last completed step; the others wait for it, since it needs no one of them."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: told.set())

    def save() -> None:
        if hold is None:
            _wait_for(run, state.step)
            return
        began = time.perf_counter()
        try:
            if (step := checkpointer.save_emergency()) is not None:
                say(f"SIGTERM: step {step} was saved in {time.perf_counter() - began:.1f} s")
        finally:
            hold.release()

    def leave() -> None:
        told.wait()
        try:
            save()
        except UserError as error:
            say(f"SIGTERM: the last step could not be saved: {error}")
        except Exception:
            traceback.print_exc()
        os._exit(_TERMINATED)

    threading.Thread(target=leave, name="leave", daemon=True).start()


def say(line: str) -> None:
    """For a person."""
    print(line, file=sys.stderr, flush=True)


def _wait_for(run: Run, step: int) -> None:
    deadline = time.monotonic() + _LEAVE_S
    near = [storage.join(checkpoint_uri(run.uri, step + i), "state.json") for i in (-1, 0, 1)]
    while time.monotonic() < deadline and not any(storage.exists(uri) for uri in near):
        time.sleep(0.2)


def _checkpointer(
    spec: WorkerSpec, store: CheckpointStore, worker: Worker, hold: Hold | None
) -> Callable[[TrainState], Checkpointer]:
    def make(state: TrainState) -> Checkpointer:
        made = Checkpointer(state, spec.train, spec.run, store, saved=lambda uri: say(f"saved {uri}"), warned=say)
        save_on_sigterm(state, made, worker, spec.run, hold)
        return made

    return make


def main(argv: list[str]) -> int:
    """Train to the last step; the exit code."""
    about, *usage = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m ddpm_core.training",
        description=about,
        epilog="\n\n".join(usage),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset")
    parser.add_argument("run")
    parser.add_argument("config", type=Path)
    args = parser.parse_args(argv)
    worker = join()
    events = Events(
        logged=lambda row: say(
            f"step {row['step']:,}: loss {row['loss']:.4f}, grad {row['grad_norm']:.2f}, {row['images_per_s']:.0f} images/s"
        ),
        look=lambda state: None,
        warned=say,
    )

    try:
        spec = read_spec(args.dataset, args.run, json.loads(args.config.read_text()), worker.device)

        cache = platformdirs.user_cache_path("ddpm") / "shards"
        with held_by_first(spec.run.uri, worker) as hold:
            store = CheckpointStore(spec.run.uri, hold)
            check_steps(max(store.steps(), default=0), spec.train.steps)
            if worker.is_first and (warning := young_average(spec.train, spec.train.steps)):
                say(f"warning: train.steps is {spec.train.steps:,}: {warning}")
            run_worker(spec, worker, events, cache, store, _checkpointer(spec, store, worker, hold))
    except UserError as error:
        say(f"error: {' '.join(str(error).split())}")
        return error.exit_code
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
