"""How fast the network trains and answers beside diffusers' UNet2DModel of the same weights' shapes, in turns, in one process.

    python tests/benchmarks/speed.py                        # the digits', MNIST's and the paper's CIFAR-10 network, float32
    python tests/benchmarks/speed.py --nets digits --passes forward --turns 9

A turn is a few seconds of one side, then of the next, and so on; a ratio is that of the images a second of two sides in the same
turn, and the median of the turns is printed. `train` is a whole step on images in memory: ours as `train.py` does it (keyed draws,
dropout, loss, backward, clipping, Adam, averaged weights), diffusers' as its training example does it (its scheduler's add_noise,
squared error, backward, clipping, AdamW, EMAModel), as written and with the network under torch.compile, whose time is not counted.
`forward` is the network alone without gradients; `sample` a whole DDIM chain of --steps, ours by `generate`, theirs DDIMPipeline's.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.interop.unet_json import Form, unet_json
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet
from ddpm_core.sampling.generate import generate
from ddpm_core.sampling.labels import labelled
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.state import new_state
from ddpm_core.training.step import Objective, advance, backward, draw
from pipelines.recipes.config import Recipe
from pipelines.recipes.recipes import make

BATCHES = {"digits": 64, "mnist": 64, "cifar10": 16}
OURS, EAGER, COMPILED = "ours", "diffusers", "diffusers, compiled"
Work = Callable[[], object]
"""One batch of it."""


def of_one_norm(recipe: Recipe) -> Recipe:
    """The recipe with one number of groups in all norms, the only way that a UNet2DModel has, where its own differ."""
    unet = recipe.unet
    if unet.base_channels % 128:
        unet = replace(unet, form=replace(unet.form, norm_groups=4))
    return replace(recipe, unet=unet)


def our_network(recipe: Recipe) -> UNet:
    network = UNet(recipe.unet, image_size=recipe.data.image_size, channels=recipe.data.channels)
    init_unet(network, 0)
    return network


def their_network(recipe: Recipe) -> UNet2DModel:
    channels = recipe.data.channels
    form = Form(unet=recipe.unet, image_size=recipe.data.image_size, channels=channels, num_outputs=channels)
    return UNet2DModel(**unet_json(form))


def shape_of(recipe: Recipe) -> tuple[int, int, int]:
    size = recipe.data.image_size
    assert isinstance(size, int)
    return recipe.data.channels, size, size


def forward(recipe: Recipe, batch: int, steps: int) -> dict[str, Work]:
    x_t, t = torch.randn(batch, *shape_of(recipe)), torch.arange(batch)
    ours, theirs = our_network(recipe).eval(), their_network(recipe).eval()
    compiled = torch.compile(theirs)
    return {
        OURS: torch.no_grad()(lambda: ours(x_t, t)),
        EAGER: torch.no_grad()(lambda: theirs(x_t, t).sample),
        COMPILED: torch.no_grad()(lambda: compiled(x_t, t).sample),
    }


def train(recipe: Recipe, batch: int, steps: int) -> dict[str, Work]:
    pictures = torch.randint(0, 256, (1024, *shape_of(recipe)), dtype=torch.uint8)
    return {
        OURS: our_step(recipe, batch, pictures),
        EAGER: their_step(recipe, batch, pictures, compiled=False),
        COMPILED: their_step(recipe, batch, pictures, compiled=True),
    }


def our_step(recipe: Recipe, batch: int, pictures: torch.Tensor) -> Work:
    state = new_state(our_network(recipe).train(), recipe.train.learning_rate)
    config = recipe.train
    objective = Objective(schedule=make_schedule(recipe.schedule), reverse=recipe.reverse, loss=recipe.loss)
    labels, weights, autocast = torch.full((batch,), -1), torch.ones(batch), autocast_for(config, torch.device("cpu"))

    def step() -> None:
        positions = torch.arange(state.step * batch, (state.step + 1) * batch)
        draws = draw(
            state, pictures[positions % len(pictures)], labels, positions, config, len(objective.schedule.betas)
        )
        rest = (positions, weights, objective, config)
        found = backward(state, state.network, draws, *rest, num_workers=1, autocast=autocast)
        advance(state, config, update=found.is_finite)

    return step


def their_step(recipe: Recipe, batch: int, pictures: torch.Tensor, *, compiled: bool) -> Work:
    network = their_network(recipe).train()
    network_or_compiled = torch.compile(network) if compiled else network
    optimizer, ema = (
        torch.optim.AdamW(network.parameters(), lr=recipe.train.learning_rate),
        EMAModel(network.parameters()),
    )
    scheduler, images = DDPMScheduler(), pictures.float() / 127.5 - 1

    def step() -> None:
        x_0 = images[torch.randint(len(images), (batch,))]
        eps, t = torch.randn_like(x_0), torch.randint(0, 1000, (batch,))
        loss = F.mse_loss(network_or_compiled(scheduler.add_noise(x_0, eps, t), t).sample, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        loss.item()

    return step


def sample(recipe: Recipe, batch: int, steps: int) -> dict[str, Work]:
    shape, seeds = shape_of(recipe), torch.arange(batch)
    network, none = our_network(recipe).eval(), torch.full((batch,), -1)
    p = ReverseProcess(
        denoiser=labelled(network, none, 0.0, shape[0]),
        schedule=make_schedule(ScheduleConfig()),
        config=ReverseConfig(),
    )
    sampler = SamplerConfig(name="ddim", num_steps=steps)

    def chain(*, compiled: bool) -> Work:
        theirs = their_network(recipe).eval()
        pipeline = DDIMPipeline(torch.compile(theirs) if compiled else theirs, DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        return lambda: pipeline(batch_size=batch, num_inference_steps=steps, output_type="np")

    return {
        OURS: lambda: generate(p, sampler, seeds, shape),
        EAGER: chain(compiled=False),
        COMPILED: chain(compiled=True),
    }


PASSES = {"forward": forward, "train": train, "sample": sample}


def in_turns(works: dict[str, Work], batch: int, turns: int, turn_s: float) -> dict[str, list[float]]:
    """Images a second of each, a figure a turn."""
    for work in works.values():
        for _ in range(3):  # the first ones compile and allocate
            work()
    rates: dict[str, list[float]] = {side: [] for side in works}
    for _ in range(turns):
        for side, work in works.items():
            began, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - began < turn_s:
                work()
                count += batch
            rates[side].append(count / (time.perf_counter() - began))
    return rates


def row_of(rates: dict[str, list[float]]) -> dict[str, float]:
    """Our images a second, and the medians of our ratios to the others."""
    ours = rates.pop(OURS)
    ratios = {
        side: statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) for side, theirs in rates.items()
    }
    return {"images_per_s": statistics.median(ours), **ratios}


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--turn-s", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=10, help="of a DDIM chain")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    print(
        f"{processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}, float32",
        flush=True,
    )
    print(f"\n| network, pass | images/s | beside {EAGER} | beside {COMPILED} |\n|---|---|---|---|", flush=True)
    rows: dict[str, Any] = {}
    for net in args.nets:
        for name in args.passes:
            torch.manual_seed(0)
            rates = in_turns(
                PASSES[name](of_one_norm(make(net)), BATCHES[net], args.steps), BATCHES[net], args.turns, args.turn_s
            )
            row = rows[f"{net}, {name}"] = row_of(rates)
            print(
                f"| {net}, {name} | {row['images_per_s']:,.1f} | {row[EAGER]:.2f} | {row[COMPILED]:.2f} |", flush=True
            )
            torch.compiler.reset()
    if args.out:
        args.out.write_text(
            json.dumps({"processor": processor(), "torch": torch.__version__, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main())
