"""The weights that a network begins with (Ho, Jain, Abbeel 2020, the published code)."""

import math

import torch
from torch import nn

from ddpm_core.model.blocks import Attention, ResBlock
from ddpm_core.model.unet import UNet
from ddpm_core.random import Purpose, normals, uniforms
from ddpm_core.types import Tensor

_NEAR_ZERO = 1e-10


@torch.no_grad()
def init_unet(model: UNet, seed: int) -> None:
    """Set every weight as the paper did, the same everywhere: a pure function of (seed, order of the weights).

    Kernels are uniform with variance 1 / fan_avg; near zero where a residual branch or the network ends. Biases are 0.
    """
    ends = [model.conv_out]
    for module in model.modules():
        if isinstance(module, ResBlock):
            ends.append(module.conv_2)
        elif isinstance(module, Attention):
            ends.append(module.out)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    layers = [layer for layer in layers if layer is not model.augment]
    for number, layer in enumerate(layers):
        _init_kernel(layer.weight, seed, number, _NEAR_ZERO if layer in ends else 1.0)
        assert layer.bias is not None
        layer.bias.zero_()
    if model.augment is not None:  # numbered after all else, which is what it would be without it
        _init_kernel(model.augment.weight, seed, len(layers) + 1, 1.0)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.reset_parameters()
        if isinstance(module, nn.Embedding):  # standard normal; the paper has no labels
            classes = torch.arange(module.num_embeddings, device=module.weight.device)
            shape = (module.embedding_dim,)
            module.weight.copy_(normals(seed, Purpose.WEIGHTS, classes, shape, step=len(layers)))


def _init_kernel(kernel: Tensor, seed: int, number: int, scale: float) -> None:
    """Uniform with variance scale / fan_avg."""
    fan_avg = (kernel.shape[0] + kernel.shape[1]) / 2 * kernel[0, 0].numel()
    bound = math.sqrt(3 * scale / fan_avg)
    row = torch.zeros(1, dtype=torch.int64, device=kernel.device)
    unit = uniforms(seed, Purpose.WEIGHTS, row, kernel.numel(), step=number)
    kernel.copy_((bound * (2 * unit - 1)).view_as(kernel))
