"""How long a worker takes to leave: the CIFAR-10 network's state saved at once, as the first save of its process, in mid-step.

    .venv/bin/python tests/benchmarks/leaving.py --rounds 5 --store /tmp

Each round is a process of its own with weights, averages and moments as after a step; while a second step computes in another
thread, the saver is told to leave, as it is on SIGTERM. `ray job stop` kills after 3 s. --store may be s3://BUCKET/prefix.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time

import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.training.checkpointing import Checkpointer, Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import TrainState, new_state
from ddpm_core.training.step import advance


def trained() -> TrainState:
    """The paper's CIFAR-10 network after one step."""
    network = UNet(UNetConfig(), image_size=32, channels=3)
    init_unet(network, 0)
    state = new_state(network, 2e-4)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    advance(state, TrainConfig(), update=True)
    return state


def compute(state: TrainState, begun: threading.Event) -> None:
    """Steps that are never completed."""
    x, t = torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)
    while True:
        out = state.network(x, t)
        begun.set()
        out.sum().backward()


def leave(run_uri: str) -> float:
    """Seconds."""
    state, begun = trained(), threading.Event()
    run = Run(uri=run_uri, config={}, dataset_uri="", dataset_digest="", versions={})
    with hold_run(run_uri, say=print) as hold:
        store = CheckpointStore(run_uri, hold)
        checkpointer = Checkpointer(state, TrainConfig(), run, store, saved=lambda uri: None, warned=print)
        threading.Thread(target=compute, args=(state, begun), daemon=True).start()
        begun.wait()
        began = time.perf_counter()
        checkpointer.save_emergency()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", default="/tmp", help="where the checkpoints go, and are deleted again")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(leave(args.one), flush=True)
        os._exit(0)  # the step goes on
    seconds = []
    for number in range(args.rounds):
        run = storage.join(args.store, f"leaving-{time.time_ns():x}-{number}")
        one = [sys.executable, __file__, "--one", run]
        seconds.append(float(subprocess.run(one, check=True, capture_output=True, text=True).stdout))
        (stands,) = CheckpointStore(run).uris()
        size = sum(size for _, size in storage.list_files(stands))
        for uri, _ in storage.list_files(run):
            storage.delete(uri)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {size / 1e6:.0f} MB to {args.store}")
    print(f"median {statistics.median(seconds):.2f} s (rounds: {', '.join(f'{s:.2f}' for s in seconds)})")


if __name__ == "__main__":
    main()
