"""Whether augmentation that the network is told of helps where there are few images, and what it costs.

    OMP_NUM_THREADS=1 python tests/benchmarks/augmentation.py digits --images 50 --marks 500 1000 1500
    OMP_NUM_THREADS=1 python tests/benchmarks/augmentation.py digits --images 300 --marks 2500 5000 7500 10000 15000
    OMP_NUM_THREADS=1 python tests/benchmarks/augmentation.py cost

`digits` trains on some of scikit-learn's digits, drawn anew for each seed, and measures others. A step takes about 35 ms on a free
core (AMD EPYC), 1,500 steps and their measures 88 to 302 s beside much other work. After 1,500 steps on 50 images bits/dim were
5.362 ± 0.071 without and 5.177 ± 0.033 with scale, stretch and translation (five seeds; paired -0.185 ± 0.074); after 15,000 on 300
4.537 ± 0.032 and 4.471 ± 0.026 (paired -0.066 ± 0.023), after 10,000 and fewer, where nothing overfits yet, no better. EDM's kinds,
one seed, were 0.158 worse after 2,500.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
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
from pipelines.recipes.recipes import make

VALIDATION = 5 * GROUP
OFF = torch.autocast("cpu", enabled=False)
UNET = UNetConfig(base_channels=32, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), dropout=0.0)
OBJECTIVE = Objective(schedule=make_schedule(ScheduleConfig()), reverse=ReverseConfig(), loss=LossConfig())
PLAIN = TrainConfig(batch_size=16, learning_rate=4e-3, warmup_steps=100, flip=False)
MOVES: tuple[AugmentKind, ...] = ("scale", "stretch", "translation")
UNTOLD = "scale stretch translation, untold"
"""The network does not know of it, so it is to leak."""
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "scale stretch translation": {"augment": 0.12, "augment_kinds": MOVES},
    "EDM's": {"augment": 0.12},
    "shift": {"augment": 0.12, "augment_kinds": ("shift",)},
    "rotation": {"augment": 0.12, "augment_kinds": ("rotation",)},
    UNTOLD: {"augment": 0.12, "augment_kinds": MOVES},
}


def begin(unet: UNetConfig, images: Tensor, config: TrainConfig) -> TrainState:
    told = NUM_PARAMETERS if config.augment else 0
    network = UNet(unet, image_size=images.shape[-1], channels=images.shape[1], num_augment=told)
    init_unet(network, config.seed)
    return new_state(network, config.learning_rate)


def step(state: TrainState, images: Tensor, config: TrainConfig, objective: Objective, *, told: bool = True) -> None:
    """One of training, on the images of an endless stream of permutations."""
    size = config.batch_size
    positions = torch.arange(state.step * size, (state.step + 1) * size)
    first, last = int(positions[0]) // len(images), int(positions[-1]) // len(images)
    epochs = [np.random.default_rng((config.seed, epoch)).permutation(len(images)) for epoch in range(first, last + 1)]
    rows = torch.from_numpy(np.concatenate(epochs))[positions - first * len(images)]
    draws = draw(state, images[rows], torch.full((size,), -1), positions, config, objective.schedule.num_timesteps)
    if not told:
        draws = draws._replace(augment=torch.zeros_like(draws.augment))
    rest = (positions, torch.ones(size), objective, config)
    backward(state, state.network, draws, *rest, num_workers=1, autocast=OFF)
    advance(state, config, update=True)


@torch.no_grad()
def bits_per_dim(state: TrainState, images: Tensor) -> float:
    """Of the averaged weights, told nothing."""
    weights = {name: p.clone() for name, p in state.network.named_parameters()}
    state.network.load_state_dict(state.ema)
    p = ReverseProcess(denoiser=state.network, schedule=OBJECTIVE.schedule, config=OBJECTIVE.reverse)
    parts = [bits_per_image(p, part, GROUP * i, 40) for i, part in enumerate(images.split(GROUP))]
    state.network.load_state_dict(weights)
    return float(torch.cat(parts).mean())


def compare(num_images: int, marks: Sequence[int], seeds: Sequence[int], only: Sequence[str]) -> None:
    """Print the bits/dim of unseen images at each mark, of each arm; and its differences to none, paired by seed."""
    everything = torch.tensor(load_digits().images * 255 / 16).round().to(torch.uint8)[:, None]
    arms = {arm: changes for arm, changes in ARMS.items() if arm in ("none", *only)}
    found: dict[str, list[list[float]]] = {arm: [] for arm in arms}
    for seed in seeds:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(everything)))
        training, unseen = everything[order[:num_images]], everything[order[num_images : num_images + VALIDATION]]
        for arm, changes in arms.items():
            config, began, row = replace(PLAIN, seed=seed, **changes), time.perf_counter(), []
            state = begin(UNET, training, config)
            while state.step < marks[-1]:
                step(state, training, config, OBJECTIVE, told=arm != UNTOLD)
                if state.step in marks:
                    row.append(bits_per_dim(state, unseen))
            found[arm].append(row)
            took = time.perf_counter() - began
            print(f"seed {seed}, {arm}: {' '.join(f'{bits:.4f}' for bits in row)} ({took:.0f} s)", flush=True)
    print(f"\n{num_images} digits, bits/dim of {VALIDATION} others, mean ± deviation over {len(seeds)} seeds\n")
    print("| augmentation | steps | bits/dim | less none's |\n|---|---|---|---|")
    for arm, rows in found.items():
        for place, mark in enumerate(marks):
            values = [row[place] for row in rows]
            gains = [value - row[place] for value, row in zip(values, found["none"], strict=True)]
            print(f"| {arm} | {mark:,} | {_spread(values)} | {_spread(gains)} |")


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def cost(name: str, rounds: int) -> None:
    """Print the processor's time of a recipe's training step with and without, in turns; on noise, which takes as long."""
    recipe = make(name)
    shape = (recipe.train.batch_size, recipe.data.channels, recipe.data.image_size, recipe.data.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    objective = Objective(schedule=make_schedule(recipe.schedule), reverse=recipe.reverse, loss=recipe.loss)
    configs: dict[str, TrainConfig] = {"none": recipe.train, "augmented": replace(recipe.train, augment=0.12)}
    states = {arm: begin(recipe.unet, images, config) for arm, config in configs.items()}
    times: dict[str, list[float]] = {arm: [] for arm in configs}
    for number in range(rounds + 2):
        for arm, config in configs.items():
            began = time.process_time()
            step(states[arm], images, config, objective)
            if number >= 2:  # the first ones warm up
                times[arm].append(1e3 * (time.process_time() - began))
    none = statistics.median(times["none"])
    more = statistics.median(b - a for a, b in zip(times["none"], times["augmented"], strict=True))
    print(f"{name}: a step of {len(images)} images {none:.1f} ms, augmented {more:+.1f} ms ({more / none:+.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "cost"))
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--marks", type=int, nargs="+", default=[1250, 2500])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--only", nargs="+", default=list(ARMS)[:2], choices=list(ARMS))
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if given.what == "digits":
        compare(given.images, given.marks, given.seeds, given.only)
    else:
        for name in ("digits", "cifar10_small"):
            cost(name, given.rounds)


if __name__ == "__main__":
    main()
