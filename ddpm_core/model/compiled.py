"""A network compiled for batches of one size (torch.compile): it takes up to a minute, and each pass less time from then on."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ddpm_core.model.unet import UNet
from ddpm_core.types import Tensor

Network = Callable[..., Tensor]
"""A UNet, or what computes the same."""


class Compiled(NamedTuple):
    """A compiled network."""

    network: Network
    batch_size: int
    """Images in each batch that it is given."""


class CompileError(Exception):
    """This machine cannot compile a network; the message says why, in one line."""


def compile_network(network: UNet, warm_up: Callable[[Network], object]) -> Network:
    """The network, compiled; its weights are part of it: changing them later changes nothing.

    Args:
        warm_up: calls the network as it will be called: on tensors of the same shapes, in the same precision.

    Raises:
        CompileError: if there is no compiler, or it failed.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    # Weights once and for all in the form that convolutions want; on a CPU no Python between one operation and the next.
    options: dict[str, str | int | bool | Callable[..., object]] = {"freezing": True, "cpp_wrapper": on_cpu}
    found: Network = torch.compile(network, dynamic=False, fullgraph=True, options=options)
    try:
        with torch.no_grad():
            warm_up(found)
    except (torch._dynamo.exc.TorchDynamoException, OSError) as error:
        raise CompileError(f"it could not be compiled ({str(error).strip().partition(chr(10))[0]})") from error
    return found
