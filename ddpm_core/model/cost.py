"""What a pass through a network costs, counted before it is made."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm_core.model.config import ModelConfig


def forward_flops(model: ModelConfig) -> int:
    """Floating-point operations of the convolutions and matrix products for one image, forward; backward takes twice as many."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = model.build_network()
        network(
            torch.empty(1, *model.image_shape), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        )
    return int(counter.get_total_flops())
