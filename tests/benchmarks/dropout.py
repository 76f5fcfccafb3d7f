"""What keyed dropout costs: images/s of a training step of the paper's CIFAR-10 network without dropout, with ours, with torch's.

    nice .venv/bin/python tests/benchmarks/dropout.py --batch-size 8 --rounds 7

The three take turns in one process, so that a busy machine slows all of them alike. Medians over the rounds; beside
them the time that the processors spent, which a busy machine changes less.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.model.blocks import DropoutKey, KeyedDropout, ResBlock
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.state import TrainState, new_state
from ddpm_core.training.step import Objective, advance, backward, draw

RATE = 0.1


class TorchDropout(nn.Dropout):
    """torch's own, from its hidden generator; the key is ignored."""

    def forward(self, h: Tensor, key: DropoutKey | None) -> Tensor:
        return super().forward(h)


def set_dropout(network: nn.Module, name: str) -> None:
    """Give every residual block the dropout of this name."""
    blocks = [module for module in network.modules() if isinstance(module, ResBlock)]
    for layer, block in enumerate(blocks):
        choice = {"none": KeyedDropout(0.0, layer), "keyed": KeyedDropout(RATE, layer), "torch": TorchDropout(RATE)}
        block.dropout = choice[name].train()  # type: ignore[assignment]


def one_step(state: TrainState, config: TrainConfig, device: torch.device) -> tuple[float, float]:
    """Seconds of a step, what it draws included: by the clock, and of the processors."""
    size = config.batch_size
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, device=device)
    positions = torch.arange(state.step * size, (state.step + 1) * size, device=device)
    labels, weights = torch.full_like(positions, -1), torch.ones(size, device=device)
    schedule = make_schedule(ScheduleConfig()).to(device)
    objective = Objective(schedule=schedule, reverse=ReverseConfig(), loss=LossConfig())
    _synchronize(device)
    began, spent = time.perf_counter(), time.process_time()
    draws = draw(state, images, labels, positions, config, 1000)
    autocast = autocast_for(config, device)
    rest = (positions, weights, objective, config)
    backward(state, state.network, draws, *rest, num_workers=1, autocast=autocast)
    advance(state, config, update=True)
    _synchronize(device)
    return time.perf_counter() - began, time.process_time() - spent


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    network = UNet(UNetConfig(dropout=0.0), image_size=32, channels=3)
    init_unet(network, 0)
    state = new_state(network.to(device), 2e-4)
    config = TrainConfig(batch_size=given.batch_size)
    steps: dict[str, list[tuple[float, float]]] = {"none": [], "keyed": [], "torch": []}
    for number in range(given.rounds + 1):
        for name, times in steps.items():
            set_dropout(network, name)
            took = one_step(state, config, device)
            if number > 0:  # the first round warms up
                times.append(took)
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {where}, batch {given.batch_size}, {given.rounds} rounds, dropout {RATE}")
    medians = {name: [statistics.median(kind) for kind in zip(*times, strict=True)] for name, times in steps.items()}
    for name, (clock, spent) in medians.items():
        by_clock, by_processor = clock / medians["none"][0] - 1, spent / medians["none"][1] - 1
        speed = given.batch_size / clock
        print(
            f"{name:6s} {speed:7.2f} images/s ({by_clock:+.1%} time), {spent:.2f} s of processors ({by_processor:+.1%})"
        )


if __name__ == "__main__":
    main()
