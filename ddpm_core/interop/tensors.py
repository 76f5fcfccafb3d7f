"""Tensors by name from a file of another program, and held against those that are expected. Nothing is unpickled."""

import io
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.torch
import torch

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.types import Tensor

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_tensors(uri: str) -> dict[str, Tensor]:
    """The tensors of a .pt (as `torch.load` with weights_only reads it), .npz or .safetensors file, as its name ends.

    Raises:
        InputError: in one line: there is no such file, or it holds something else.
    """
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        raise InputError(f"no {uri}; expected a file of weights: .pt, .npz or .safetensors") from None
    try:
        if uri.endswith(".safetensors"):
            found = safetensors.torch.load(data)
        elif uri.endswith(".npz"):
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                found = {name: torch.from_numpy(file[name]) for name in file}
        else:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # each library has its own kinds, and torch's unpickler some more
        why = " ".join((str(error).strip() or type(error).__name__).split())[:200]
        raise InputError(
            f"{uri} cannot be read as weights, without running code of it; expected tensors by name: {why}"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise InputError(f"{uri} holds something other than tensors by name; expected the network's state dict alone")
    return found


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], uri: str) -> dict[str, Tensor]:
    """The tensors, float32, once it is certain that they are those expected.

    Args:
        expected: shapes by name.

    Raises:
        InputError: naming the first that is missing, or of another shape or type, or not expected.
    """
    for name, shape in expected.items():
        tensor = found.get(name)
        if tensor is None:
            raise InputError(f"{uri}: there is no {name}; expected one of shape {shape}")
        if tuple(tensor.shape) != shape:
            raise InputError(f"{uri}: {name} has shape {tuple(tensor.shape)}; expected {shape}")
        if tensor.dtype not in _FLOATS:
            raise InputError(f"{uri}: {name} is of type {tensor.dtype}; expected floating point numbers")
    for name in found:
        if name not in expected:
            raise InputError(
                f"{uri}: {name} of shape {tuple(found[name].shape)} is no weight of the network; expected none"
            )
    return {name: found[name].float() for name in expected}
