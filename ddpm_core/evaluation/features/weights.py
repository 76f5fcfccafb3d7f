"""Networks whose weights come from a file: what such a network is, and reading it; nothing is ever unpickled."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors.torch import load as load_safetensors
from torch import nn

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.types import Tensor


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a network with weights is."""

    of: str
    """Whose they are, for messages."""
    steps: Callable[[str], str]
    """How images come to the network, given the name of a resize; for the report."""
    build: Callable[[dict[str, Tensor]], nn.Module]
    """From the tensors of a file; images in, what `Seen` holds out. It may raise anything, if they are not its own."""
    published: str
    """The sha256 of the weights that papers mean."""
    known_as: str | None
    """What figures with those end in: nothing, where papers mean these features by the bare name. None: papers have no name."""
    check: Callable[[], None] = lambda: None
    """Raises InputError where the network cannot be had, before weights are fetched for it."""


@lru_cache(maxsize=1)
def read_network(weights: Weights, uri: str, sha256: str, device: str) -> nn.Module:
    """A network with the weights of a file, .pth or .safetensors; never unpickled.

    Raises:
        InputError: in one line, if the file has another sum, or holds the weights of another network.
    """
    weights.check()
    data = storage.read_bytes(uri)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(f"{uri} has the sha256 {found}; expected {sha256}: it changed, or was cut short; delete it")
    try:
        network = weights.build(_tensors(uri, data))
    except Exception as error:
        why = " ".join((str(error).strip() or type(error).__name__).split())[:200]
        raise InputError(
            f"{uri} (sha256 {found[:16]}) does not hold the weights of {weights.of}; "
            f"expected a .pth or .safetensors with its tensors: {why}"
        ) from None
    return network.eval().requires_grad_(False).to(device)


def _tensors(uri: str, data: bytes) -> dict[str, Tensor]:
    tensors: dict[str, Tensor]
    if uri.endswith(".safetensors"):
        tensors = load_safetensors(data)
    else:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return tensors
