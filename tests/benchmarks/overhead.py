"""What the line costs: images/s of a run on shards against a bare loop of the same model on tensors in memory, in turns.

    .venv/bin/python tests/benchmarks/overhead.py --rounds 5 --steps 12

The bare loop is what a person would write first: random uint8 images in memory, torch's own generator for t, eps and flips, the
paper's CIFAR-10 network with torch's dropout, squared error, Adam, clipping and EMA by hand. The line's side is
ddpm_core.training's loop as every worker runs it, on shards of PNGs: order, reading, decoding, keyed draws, logging, a checkpoint
copied and written in the background. Both in one process, float32, medians over the rounds; a round of each takes turns.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.data.config import DataConfig
from ddpm_core.data.loader import TrainingStream
from ddpm_core.data.reader import ImageReader
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.data.writer import commit_dataset, plan_dataset, write_shard
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.model.blocks import DropoutKey, ResBlock
from ddpm_core.model.unet import UNet, UNetConfig, init_unet
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import Events, stream_config, train
from ddpm_core.training.parallel import Worker
from ddpm_core.training.saver import Run, Saver
from ddpm_core.training.state import new_state
from ddpm_core.training.step import Objective


class TorchDropout(nn.Dropout):
    """torch's own; the key is ignored."""

    def forward(self, h: torch.Tensor, key: DropoutKey | None) -> torch.Tensor:
        return super().forward(h)


def dataset(folder: Path, count: int) -> DatasetIndex:
    """Colour images of 32 pixels, smooth as photographs are, so that a PNG of one has a usual size."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 8, 8)).astype(np.float32))
    images = F.interpolate(coarse, 32, mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    config = DataConfig(image_size=32, channels=3, samples_per_shard=512, heldout_fraction=0.01)
    source = ArraySource(images=images, labels=np.zeros(count, dtype=np.int64), class_names=("one",), stem="image")
    results = [write_shard(plan, source, config, str(folder)) for plan in plan_dataset(count, config)]
    return commit_dataset(str(folder), results, config, source.class_names)


def network() -> UNet:
    """The paper's CIFAR-10 network."""
    made = UNet(UNetConfig(), image_size=32, channels=3)
    init_unet(made, 0)
    return made.train()


def bare(model: UNet, images: torch.Tensor, batch_size: int, steps: int) -> float:
    """Seconds of so many steps of the loop that a person would write first."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    signal, noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    average = copy.deepcopy(model)
    key = DropoutKey(0, torch.zeros(batch_size, dtype=torch.int64))
    none = torch.full((batch_size,), -1)
    began = time.perf_counter()
    for _ in range(steps):
        x_0 = images[torch.randint(len(images), (batch_size,))].float() / 127.5 - 1
        x_0 = torch.where(torch.rand(batch_size, 1, 1, 1) < 0.5, x_0.flip(-1), x_0)
        t, eps = torch.randint(1000, (batch_size,)), torch.randn_like(x_0)
        x_t = signal[t].view(-1, 1, 1, 1) * x_0 + noise[t].view(-1, 1, 1, 1) * eps
        loss = F.mse_loss(model(x_t, t, none, key), eps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 1e-4)
        loss.item()
    return time.perf_counter() - began


def line(index: DatasetIndex, folder: Path, batch_size: int, steps: int) -> float:
    """Seconds of so many steps of the line's loop, one checkpoint in the background among them."""
    config = TrainConfig(
        steps=steps, batch_size=batch_size, log_every=max(1, steps // 2), checkpoint_every=10**9, lanes=8
    )
    state = new_state(network(), config.learning_rate)
    shape = {"image_size": 32, "channels": 3}
    run = Run(uri=str(folder), config=shape, dataset_uri=index.uri, dataset_digest=index.digest, versions={})
    stream = TrainingStream(
        ImageReader(index, "train", folder / "cache", keep_bytes=0), stream_config(config), worker=0, num_workers=1
    )
    objective = Objective(schedule=make_schedule(ScheduleConfig()), reverse=ReverseConfig(), loss=LossConfig())
    clock: list[float] = []
    events = Events(
        logged=lambda row: None,
        preview=lambda state: clock.append(time.perf_counter()),
        warned=print,
        doing=lambda step, what: clock.append(time.perf_counter()) if step == 0 and what == "computing" else None,
    )
    saver = Saver(state, config, run, saved=lambda uri: None, warned=print)
    train(
        state, stream, objective, config, Worker(rank=0, num_workers=1, device=torch.device("cpu")), run, events, saver
    )
    return clock[-1] - clock[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    size, steps, count = args.batch_size, args.steps, 2048
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        index = dataset(folder / "data", count)
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        model = network()
        for block in model.modules():
            if isinstance(block, ResBlock):
                block.dropout = TorchDropout(0.1)  # type: ignore[assignment]
        seconds: dict[str, list[float]] = {"bare": [], "line": []}
        for number in range(args.rounds + 1):  # the first one warms up
            took = {"bare": bare(model, images, size, steps), "line": line(index, folder / f"{number}", size, steps)}
            for name, value in took.items() if number else ():
                seconds[name].append(value)
    rates = {name: size * steps / statistics.median(values) for name, values in seconds.items()}
    ratios = sorted(b / a for a, b in zip(seconds["line"], seconds["bare"], strict=True))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {size}, {args.rounds} rounds of {steps} steps"
    )
    for name, rate in rates.items():
        print(f"{name}: {rate:.3f} images/s")
    print(f"line / bare: {statistics.median(ratios):.3f} (rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
