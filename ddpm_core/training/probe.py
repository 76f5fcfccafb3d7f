"""How fast a run would train on a device, tried on a few steps of made-up images."""

import math

import torch

from ddpm_core.model.config import ModelConfig
from ddpm_core.model.cost import few_images, forward_flops, rate_of
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import recompute_activations
from ddpm_core.precision import whole_float32
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.state import new_state
from ddpm_core.training.step import Objective, advance, backward, draw


@whole_float32()
def images_per_s(
    model: ModelConfig, objective: Objective, train: TrainConfig, device: torch.device, most: int
) -> tuple[float, int]:
    """The speed of two steps or more after a first one, and their images each; none is read, and nothing kept.

    Args:
        train: with its precision said, and no more than these images at a time.
        most: images of a worker's batch, of which fewer are tried where one costs much.
    """
    count = few_images(3 * forward_flops(model), device, most)
    network = model.build_network().train()
    init_unet(network, train.seed)
    if train.recompute:
        recompute_activations(network)
    state = new_state(network.to(device), train.learning_rate)
    size = count * math.prod(model.image_shape)
    images = (torch.arange(size, device=device) % 251).to(torch.uint8).view(count, *model.image_shape)
    labels = torch.full((count,), 0 if model.num_classes else -1, device=device)
    weights = torch.ones(count, device=device)

    def step() -> None:
        positions = torch.arange(state.step * count, (state.step + 1) * count, device=device)
        draws = draw(state, images, labels, positions, train, len(objective.schedule.betas))
        found = backward(
            state,
            state.network,
            draws,
            positions,
            weights,
            objective,
            train,
            num_workers=1,
            autocast=autocast_for(train, device),
        )
        advance(state, train, update=found.is_finite)

    return rate_of(step, count), count  # a step waits for the device: whether the gradient is finite is asked
