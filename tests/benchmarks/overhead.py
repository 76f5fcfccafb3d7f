"""What the pipeline costs: steps of `train.py` on one worker against a bare loop of the same model on tensors in memory, in turns.

    .venv/bin/python tests/benchmarks/overhead.py --threads 2 --turns 14

The bare loop is what a person would write first: random uint8 images in memory, torch's own generator for t, eps and flips, the
paper's CIFAR-10 network with torch's dropout, squared error, Adam, clipping and EMA by hand; and the memory settings that workers
have. The pipeline is the whole command: Ray with all its processes, MLflow, shards of PNGs, order, decoding, keyed draws, logging;
no checkpoint is due (leaving.py times one).
Both run to the end of the measurement, float32, with the same threads, and each stands still (SIGSTOP), with all processes that it
started, while the other has its turn, so that what the machine does meanwhile meets both. Counted are steps, to parts of one, by
each one's own seconds. Where --threads are all cores, Ray's processes share them with the one that trains.
"""

import argparse
import copy
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ddpm_core.model.blocks import DropoutKey, ResBlock
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from pipelines.cluster.session import worker_environment

ROOT = Path(__file__).parents[2]
COUNT = 2048
WARM = 3
"""Steps of each before anything is counted."""


class TorchDropout(nn.Dropout):
    """torch's own; the key is ignored."""

    def forward(self, h: torch.Tensor, key: DropoutKey | None) -> torch.Tensor:
        return super().forward(h)


def write_images(path: Path) -> None:
    """Colour images of 32 pixels, smooth as photographs are, so that a PNG of one has a usual size."""
    coarse = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (COUNT, 3, 8, 8)).astype(np.float32))
    images = F.interpolate(coarse, 32, mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(path, images=images)


def bare(batch_size: int, step_begins: Callable[[], None]) -> None:
    """The loop that a person would write first, without an end."""
    model = UNet(UNetConfig(), image_size=32, channels=3)
    init_unet(model, 0)
    for block in model.modules():
        if isinstance(block, ResBlock):
            block.dropout = TorchDropout(0.1)  # type: ignore[assignment]
    images = torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    signal_, noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    average = copy.deepcopy(model)
    key = DropoutKey(0, torch.zeros(batch_size, dtype=torch.int64))
    none = torch.full((batch_size,), -1)
    while True:
        step_begins()
        x_0 = images[torch.randint(len(images), (batch_size,))].float() / 127.5 - 1
        x_0 = torch.where(torch.rand(batch_size, 1, 1, 1) < 0.5, x_0.flip(-1), x_0)
        t, eps = torch.randint(1000, (batch_size,)), torch.randn_like(x_0)
        x_t = signal_[t].view(-1, 1, 1, 1) * x_0 + noise[t].view(-1, 1, 1, 1) * eps
        loss = F.mse_loss(model(x_t, t, none, key), eps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 1e-4)
        loss.item()


class Loop:
    """A command that trains, the process that does it, and the time at which each step began."""

    def __init__(self, command: list[str], env: dict[str, str], folder: Path) -> None:
        folder.mkdir()
        self.keys, self.log = folder / "keys", folder / "log"
        self.keys.mkdir()
        with open(self.log, "wb") as out:
            env = os.environ | env | {"KEY_LOG": str(self.keys)}
            self.process = subprocess.Popen(command, env=env, cwd=folder, stdout=out, stderr=out)
        self.turns: list[tuple[float, float]] = []

    def begins(self) -> list[float]:
        """Times of the steps' beginnings, in order."""
        lines = [line for file in self.keys.glob("*.jsonl") for line in file.read_text().split("\n")[:-1]]
        return sorted(float(line.split('"at": ')[1].split(",")[0]) for line in lines)

    def send(self, number: signal.Signals) -> None:
        """A signal to all of its processes."""
        import ray  # noqa: F401, where psutil lies
        import psutil  # type: ignore[import-untyped]  # isort: skip

        with suppress(psutil.NoSuchProcess):
            command = psutil.Process(self.process.pid)
            for each in (command, *command.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(number)

    def take_turn(self, seconds: float) -> None:
        self.send(signal.SIGCONT)
        began = time.time()
        time.sleep(seconds)
        self.send(signal.SIGSTOP)
        self.turns.append((began, time.time()))
        if self.process.poll() is not None:
            raise RuntimeError(self.log.read_text())

    def steps_by_turn(self) -> Iterator[float]:
        """Steps in each turn; one that stood still in between counts in parts, by the seconds that it ran."""
        lengths = [end - began for began, end in self.turns]
        ran = [0.0, *np.cumsum(lengths)]

        def own(at: float) -> float:
            turn = bisect_right([began for began, _ in self.turns], at) - 1
            return ran[turn] + min(at - self.turns[turn][0], lengths[turn])

        begins = [own(at) for at in self.begins() if at >= self.turns[0][0]]
        for early, late in pairwise(ran):
            if begins[0] <= early and late <= begins[-1]:
                places = np.interp([early, late], begins, np.arange(len(begins)))
                yield float(places[1] - places[0]) / (late - early)
            else:
                yield float("nan")


def start_bare(folder: Path, batch_size: int, threads: int) -> Loop:
    command = [sys.executable, __file__, "--bare", "--batch-size", str(batch_size), "--threads", str(threads)]
    kept = {"GLIBC_TUNABLES": worker_environment()["GLIBC_TUNABLES"]}  # which is no part of what the pipeline costs
    return Loop(command, kept, folder / "bare")


def start_line(folder: Path, batch_size: int, threads: int) -> Loop:
    """The CIFAR-10 recipe as it stands, on the CPU and a Ray of its own, with no preview and no checkpoint in sight."""
    write_images(folder / "images.npz")
    never = ["--train.checkpoint-every", "1000000", "--train.preview-every", "1000000"]
    few = ["--train.num-workers", "1", "--train.threads", str(threads), "--train.batch-size", str(batch_size)]
    data = ["--data.source", str(folder / "images.npz"), "--store", str(folder / "store")]
    command = [sys.executable, str(ROOT / "pipelines/train.py"), "cifar10", *data, *few, "--train.no-use-gpu", *never]
    logged = f"{ROOT / 'tests/distributed/key_log'}:{ROOT}"
    return Loop(command, {"RAY_ADDRESS": "local", "HOME": str(folder), "PYTHONPATH": logged}, folder / "line")


def warm_up(loop: Loop) -> None:
    """The first steps, alone; then it stands still."""
    while len(loop.begins()) <= WARM:
        if loop.process.poll() is not None:
            raise RuntimeError(loop.log.read_text())
        time.sleep(0.5)
    loop.send(signal.SIGSTOP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40, help="of each")
    parser.add_argument("--turn-s", type=float, default=15.0, help="seconds of a turn")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--threads", type=int, default=1, help="of each; a core more than these leaves room for Ray's own"
    )
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        torch.set_num_threads(args.threads)
        with open(Path(os.environ["KEY_LOG"]) / "bare.jsonl", "w", buffering=1) as file:
            bare(args.batch_size, lambda: file.write(f'{{"at": {time.time()}, "step": 0}}\n') and None)
    with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as temporary:
        folder, loops = Path(temporary), dict[str, Loop]()
        try:
            loops["line"] = start_line(folder, args.batch_size, args.threads)
            warm_up(loops["line"])
            loops["bare"] = start_bare(folder, args.batch_size, args.threads)
            warm_up(loops["bare"])
            for turn in range(args.turns):  # the last of a pair is the first of the next
                for loop in list(loops.values())[:: 1 if turn % 2 == 0 else -1]:
                    loop.take_turn(args.turn_s)
        finally:
            for loop in loops.values():
                loop.send(signal.SIGKILL)
                loop.process.kill()
        rates = {name: np.array(list(loop.steps_by_turn())) for name, loop in loops.items()}
        counted = np.isfinite(rates["bare"]) & np.isfinite(rates["line"])
    means = {name: float(rate[counted].mean()) for name, rate in rates.items()}
    ratios = rates["line"][counted] / rates["bare"][counted]
    quarter, _, three = statistics.quantiles(ratios, n=4)
    where = f"torch {torch.__version__}, {args.threads} threads on {os.cpu_count()} CPUs"
    print(f"{where}, batch {args.batch_size}, turns of {args.turn_s:g} s")
    for name, mean in means.items():
        print(f"{name}: {mean * args.batch_size:.3f} images/s over {int(counted.sum())} turns")
    print(
        f"line / bare: {means['line'] / means['bare']:.3f} over all; by turns median {statistics.median(ratios):.3f}, "
        f"middle half {quarter:.3f} to {three:.3f}, standard error of the mean {ratios.std(ddof=1) / len(ratios) ** 0.5:.3f}"
    )


if __name__ == "__main__":
    main()
