"""What a pass through a network costs: counted before it is made, or tried."""

import time
from collections.abc import Callable
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm_core.model.blocks import Attention
from ddpm_core.model.config import ModelConfig

_TIMES, _LEAST_S = 2, 0.5
_FLOPS = {"cpu": 2e11, "cuda": 2e14}
"""In a second or two, about."""


def forward_flops(model: ModelConfig) -> int:
    """Floating-point operations of the convolutions and matrix products for one image, forward; backward takes twice as many."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = model.build_network()
        network(
            torch.empty(1, *model.image_shape), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        )
    return int(counter.get_total_flops())


def forward_flops_at_most(model: ModelConfig) -> int:
    """No less than forward_flops, as if each layer saw all pixels; at once, where that imports what torch traces with, a second."""
    with torch.device("meta"):
        network = model.build_network()
    pixels = prod(model.image_shape[1:])
    weights = sum(p.numel() for p in network.parameters())
    attention = sum(layer.out.in_channels for layer in network.modules() if isinstance(layer, Attention))
    return 2 * weights * pixels + 4 * attention * pixels**2  # in attention, queries by keys, then by values


def few_images(flops: int, device: torch.device, most: int) -> int:
    """So many that what costs this for each takes a second or two with all of them; from 1 to `most`."""
    return max(1, min(most, int(_FLOPS[device.type] / flops)))


def rate_of(work: Callable[[], object], num_images: int) -> float:
    """Images/s of work on so many, which waits for its device: of twice or more, after a first time."""
    work()
    began, times = time.perf_counter(), 0
    while times < _TIMES or time.perf_counter() - began < _LEAST_S:
        work()
        times += 1
    return times * num_images / (time.perf_counter() - began)
