"""The least time that a network's convolutions and matrix products take on this machine: each alone, at its own shape, summed.

What stands between them (norms, SiLU, additions, copies, the optimizer) costs nothing here, so only by computing less could it take
less. From a share of 85% on the machine is the limit.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sides import DEVICE, finish
from torch import nn

from ddpm_core.model.blocks import Attention, Pointwise
from ddpm_core.model.unet import UNet

_REPEATS = 7
Operation = tuple[Any, ...]
"""A kind and its sizes."""


def operations(network: UNet, x_t: torch.Tensor, t: torch.Tensor) -> Counter[Operation]:
    """What a forward pass multiplies, with how often."""
    found: Counter[Operation] = Counter()

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        x = inputs[0]
        if isinstance(module, Attention):
            found["attention", len(x), module.num_heads, x[0, 0].numel(), x.shape[1] // module.num_heads] += 1
        elif isinstance(module, Pointwise):
            found["linear", len(x) * x[0, 0].numel(), module.in_channels, module.out_channels] += 1
        elif isinstance(module, nn.Linear):
            found["linear", len(x), module.in_features, module.out_features] += 1
        elif isinstance(module, nn.Conv2d):
            found["convolution", tuple(x.shape), module.out_channels, module.stride, module.padding] += 1

    hooks = [module.register_forward_hook(see) for module in network.modules()]
    with torch.no_grad():
        network(x_t, t)
    for hook in hooks:
        hook.remove()
    return found


def floor_s(found: Counter[Operation], *, backward: bool, dtype: torch.dtype = torch.float32) -> float:
    """Seconds of all of them, each the best of some tries."""
    return sum(count * _best_s(_alone(operation, dtype), backward=backward) for operation, count in found.items())


def _alone(operation: Operation, dtype: torch.dtype) -> tuple[Callable[..., torch.Tensor], list[torch.Tensor]]:
    """One operation, and what it is done on."""
    kind, *sizes = operation

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=DEVICE)

    if kind == "attention":
        b, heads, pixels, channels = sizes
        parts = [random(b, pixels, heads, channels).transpose(1, 2) for _ in range(3)]
        return F.scaled_dot_product_attention, parts
    if kind == "linear":
        rows, inputs, outputs = sizes
        return F.linear, [random(rows, inputs), random(outputs, inputs)]
    shape, outputs, stride, padding = sizes
    x, weight = (random(*s).contiguous(memory_format=torch.channels_last) for s in (shape, (outputs, shape[1], 3, 3)))
    if shape[1] <= 3:  # an image, of which no gradient is asked
        return lambda weight: F.conv2d(x, weight, stride=stride, padding=padding), [weight]
    return lambda x, weight: F.conv2d(x, weight, stride=stride, padding=padding), [x, weight]


def _best_s(alone: tuple[Callable[..., torch.Tensor], list[torch.Tensor]], *, backward: bool) -> float:
    call, tensors = alone
    with torch.set_grad_enabled(backward):
        given = [tensor.requires_grad_(backward) for tensor in tensors]
        upstream = torch.ones_like(call(*given))
        finish()

        def once() -> None:
            out = call(*given)
            if backward:
                torch.autograd.grad(out, given, upstream)

        times = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            once()
            finish()
            times.append(time.perf_counter() - began)
    return min(times)
