"""The weights that a network begins with (Ho, Jain, Abbeel 2020, the published code)."""

import math

import torch
from torch import nn

from ddpm_core.model.blocks import Attention, ResBlock
from ddpm_core.model.unet import UNet
from ddpm_core.random import Purpose, normals, uniforms

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
    for number, layer in enumerate(layers):
        kernel, bias = layer.weight, layer.bias
        fan_avg = (kernel.shape[0] + kernel.shape[1]) / 2 * kernel[0, 0].numel()
        bound = math.sqrt(3 * (_NEAR_ZERO if layer in ends else 1) / fan_avg)
        row = torch.zeros(1, dtype=torch.int64, device=kernel.device)
        unit = uniforms(seed, Purpose.WEIGHTS, row, kernel.numel(), step=number)
        kernel.copy_((bound * (2 * unit - 1)).view_as(kernel))
        assert bias is not None
        bias.zero_()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.reset_parameters()
        if isinstance(module, nn.Embedding):  # standard normal; the paper has no labels
            classes = torch.arange(module.num_embeddings, device=module.weight.device)
            shape = (module.embedding_dim,)
            module.weight.copy_(normals(seed, Purpose.WEIGHTS, classes, shape, step=len(layers)))
