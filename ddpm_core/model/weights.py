"""Weights into a network, and only into the one that they are of."""

import torch
from torch import nn

from ddpm_core.artifacts.finite import check_finite
from ddpm_core.errors import InputError
from ddpm_core.types import Tensor

AUGMENT = "augment.weight"
"""The weights by which a network is told of augmentation."""


def load_network(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy weights into a network.

    Raises:
        InputError: as `check_weights`, or if a weight holds NaN or infinity.
    """
    check_weights(network, tensors)
    check_finite(tensors, "the weights", "take those of an earlier checkpoint")
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(tensors[name])


def weights_to_begin_with(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Another network's weights for one that may be told of augmentation where that one was not, or the other way about.

    Weights of zero for what it is to be told make no difference, and neither do those for what is always zero.
    """
    own = {name: p for name, p in network.named_parameters() if name == AUGMENT}
    zeros = {name: torch.zeros(p.shape) for name, p in own.items() if name not in tensors}
    return zeros | {name: tensor for name, tensor in tensors.items() if name != AUGMENT or own}


def check_weights(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuse weights of another network.

    Raises:
        InputError: naming the first weight that does not fit.
    """
    expected = {name: tuple(p.shape) for name, p in network.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"the weights are of another architecture: {name} has shape {found.get(name)}, "
                f"the network expects {expected.get(name)}; use the recipe that the weights were trained with"
            )
