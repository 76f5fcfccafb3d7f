"""Whether augmentation that the network is told of helps on 300 images, and what it costs.

OMP_NUM_THREADS=1 python tests/benchmarks/augmentation.py digits
OMP_NUM_THREADS=1 python tests/benchmarks/augmentation.py cifar10 --source /work/shared/data/cifar10-jpeg/cifar10_jpeg.tar.gz
OMP_NUM_THREADS=1 python tests/benchmarks/augmentation.py cost
"""

import argparse
import io
import statistics
import tarfile
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.evaluation.bits_per_dim import GROUP, bits_per_image
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.training.augmentation import NUM_PARAMETERS, AugmentKind
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import TrainState, new_state
from ddpm_core.training.step import Objective, advance, backward, draw
from ddpm_core.types import Tensor

TRAINING, VALIDATION = 300, 5 * GROUP
OFF = torch.autocast("cpu", enabled=False)
UNETS = {
    "digits": UNetConfig(
        base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0
    ),
    "cifar10": UNetConfig(
        base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), dropout=0.0
    ),
}
OBJECTIVES = {
    "digits": Objective(schedule=make_schedule(ScheduleConfig()), reverse=ReverseConfig(), loss=LossConfig()),
    "cifar10": Objective(
        schedule=make_schedule(ScheduleConfig()), reverse=ReverseConfig(prediction="v"), loss=LossConfig()
    ),
}
PLAIN = TrainConfig(batch_size=32, learning_rate=2e-3, warmup_steps=100, flip=False)
SMALL_MOVES: tuple[AugmentKind, ...] = ("scale", "stretch", "translation")
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {
        "none": {},
        "EDM's": {"augment": 0.12},
        "scale, stretch, translation": {"augment": 0.12, "augment_kinds": SMALL_MOVES},
        "rotation": {"augment": 0.12, "augment_kinds": ("rotation",)},
        "x_flip, y_flip": {"augment": 0.12, "augment_kinds": ("x_flip", "y_flip")},
        "shift": {"augment": 0.12, "augment_kinds": ("shift",)},
    },
    "cifar10": {
        "none": {},
        "EDM's": {"augment": 0.12},
        "flip, untold": {"flip": True},
        "x_flip": {"augment": 0.12, "augment_kinds": ("x_flip",)},
    },
}
UNTOLD = "EDM's, untold"
"""The same, but the network does not know: it leaks."""


def images_of(name: str, source: str) -> Tensor:
    """All there are to choose from, uint8 [n, c, h, w]."""
    if name == "digits":
        return torch.tensor(load_digits().images * 255 / 16).round().to(torch.uint8)[:, None]
    with tarfile.open(source) as tar:
        members = [member for member in tar if member.name.endswith(".jpg")]
        chosen = np.random.default_rng(0).choice(len(members), 4000, replace=False)
        small = [
            Image.open(io.BytesIO(tar.extractfile(members[i]).read())).resize((16, 16), Image.Resampling.BOX)  # type: ignore[union-attr]
            for i in sorted(chosen)
        ]
    return (
        torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in small]))
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def begin(name: str, images: Tensor, config: TrainConfig) -> TrainState:
    told = NUM_PARAMETERS if config.augment else 0
    network = UNet(UNETS[name], image_size=images.shape[-1], channels=images.shape[1], num_augment=told)
    init_unet(network, config.seed)
    return new_state(network, config.learning_rate)


def step(state: TrainState, images: Tensor, config: TrainConfig, objective: Objective, *, told: bool = True) -> None:
    """One of training, on the images of an endless stream of permutations."""
    size = config.batch_size
    positions = torch.arange(state.step * size, (state.step + 1) * size)
    orders = [
        torch.from_numpy(np.random.default_rng((config.seed, epoch)).permutation(len(images)))
        for epoch in range(int(positions[0]) // len(images), int(positions[-1]) // len(images) + 1)
    ]
    rows = torch.cat(orders)[positions - positions[0] // len(images) * len(images)]
    draws = draw(state, images[rows], torch.full((size,), -1), positions, config, objective.schedule.num_timesteps)
    if not told:
        draws = draws._replace(augment=torch.zeros_like(draws.augment))
    rest = (positions, torch.ones(size), objective, config)
    backward(state, state.network, draws, *rest, num_workers=1, autocast=OFF)
    advance(state, config, update=True)


@torch.no_grad()
def bits_per_dim(state: TrainState, images: Tensor, objective: Objective) -> float:
    """Of the averaged weights, told nothing."""
    weights = {name: p.clone() for name, p in state.network.named_parameters()}
    state.network.load_state_dict(state.ema)
    p = ReverseProcess(denoiser=state.network, schedule=objective.schedule, config=objective.reverse)
    parts = [bits_per_image(p, part, GROUP * i, 40) for i, part in enumerate(images.split(GROUP))]
    state.network.load_state_dict(weights)
    return float(torch.cat(parts).mean())


def compare(name: str, source: str, marks: list[int], seeds: int, only: list[str]) -> None:
    """Print validation's bits/dim at each mark of each arm, and of each its difference to none, paired by seed."""
    everything, objective = images_of(name, source), OBJECTIVES[name]
    arms = {**ARMS[name], UNTOLD: {"augment": 0.12}}
    arms = {arm: changes for arm, changes in arms.items() if not only or arm in only or arm == "none"}
    found: dict[str, list[list[float]]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(everything)))
        training, unseen = everything[order[:TRAINING]], everything[order[TRAINING : TRAINING + VALIDATION]]
        for arm, changes in arms.items():
            config = replace(PLAIN, seed=seed, **changes)
            state, row, began = begin(name, training, config), [], time.perf_counter()
            while state.step < marks[-1]:
                step(state, training, config, objective, told=arm != UNTOLD)
                if state.step in marks:
                    row.append(bits_per_dim(state, unseen, objective))
            found[arm].append(row)
            took = time.perf_counter() - began
            print(f"seed {seed}, {arm}: {' '.join(f'{b:.4f}' for b in row)} ({took:.0f} s)", flush=True)
    print(
        f"\n{name}: {TRAINING} images, validation bits/dim of the averaged weights after so many steps, {seeds} seeds\n"
    )
    print(
        f"| augmentation | {' | '.join(map(str, marks))} | least | least, less none's |\n|{'---|' * (len(marks) + 3)}"
    )
    for arm, rows in found.items():
        columns = [" ± ".join(_mean_and_spread(column)) for column in zip(*rows, strict=True)]
        least = [min(row) for row in rows]
        gain = [a - min(b) for a, b in zip(least, found["none"], strict=True)]
        last = [a[-1] - b[-1] for a, b in zip(rows, found["none"], strict=True)]
        said = (
            ""
            if arm == "none"
            else f"{' ± '.join(_mean_and_spread(gain))} (at the end {' ± '.join(_mean_and_spread(last))})"
        )
        print(f"| {arm} | {' | '.join(columns)} | {statistics.mean(least):.3f} | {said} |")


def _mean_and_spread(values: Any) -> tuple[str, str]:
    return f"{statistics.mean(values):.3f}", f"{statistics.stdev(values):.3f}" if len(values) > 1 else "?"


def cost(name: str, source: str, rounds: int) -> None:
    """Print the time of a step with and without, in turns."""
    images, objective = images_of(name, source)[:TRAINING], OBJECTIVES[name]
    configs = {"none": PLAIN, "augmented": replace(PLAIN, augment=0.12)}
    states = {arm: begin(name, images, config) for arm, config in configs.items()}
    times: dict[str, list[float]] = {arm: [] for arm in configs}
    for number in range(rounds):
        for arm, config in configs.items():
            began = time.process_time()
            step(states[arm], images, config, objective)
            if number >= 5:  # the first ones warm up
                times[arm].append(time.process_time() - began)
    none, augmented = (statistics.median(times[arm]) for arm in configs)
    print(
        f"{name}: a step of 64 images {1e3 * none:.1f} ms, augmented {1e3 * augmented:.1f} ms: {augmented / none - 1:+.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "cifar10", "cost"))
    parser.add_argument("--source", default="/work/shared/data/cifar10-jpeg/cifar10_jpeg.tar.gz")
    parser.add_argument("--marks", type=int, nargs="+", default=[500, 1000, 1500, 2000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    if given.what == "cost":
        for name in UNETS:
            cost(name, given.source, given.rounds)
    else:
        compare(given.what, given.source, given.marks, given.seeds, given.only)


if __name__ == "__main__":
    main()
