"""What the mathematics is given, checked once where it enters: shapes everywhere, values where looking is free."""

from typing import Any, get_args

import torch

from ddpm_core.errors import InputError
from ddpm_core.types import Tensor

_LEVEL_TOLERANCE = 0.1
"""Of the distance of two levels: float16 rounds by 0.06 of it."""


def check_name(value: str, names: Any, flag: str) -> None:
    """Refuse a name that is none of a Literal's.

    Raises:
        InputError: with the name and those to choose from.
    """
    if value not in get_args(names):
        raise InputError(f"{flag} is {value}; expected one of {', '.join(get_args(names))}")


def check_images(x_0: Tensor, name: str = "x_0") -> None:
    """Refuse what is no batch of images in [-1, 1].

    Raises:
        InputError: with what was found and what was expected.
    """
    check_latents(x_0, name)
    if _may_look(x_0):
        low, high = (float(bound) for bound in x_0.aminmax())
        if low < -1 or high > 1:
            raise InputError(f"{name} has values from {low:g} to {high:g}; expected images in [-1, 1]")


def check_levels(x_0: Tensor, name: str = "x_0") -> None:
    """Refuse what is no batch of 8-bit images in [-1, 1].

    Raises:
        InputError: with what was found and what was expected.
    """
    check_images(x_0, name)
    if _may_look(x_0):
        level = (x_0.float() + 1) * 127.5
        between = (level - level.round()).abs() > _LEVEL_TOLERANCE
        if bool(between.any()):
            raise InputError(
                f"{name} has {int(between.sum())} values between the levels of 8-bit images, as {float(x_0[between][0]):g}; "
                "expected k / 127.5 - 1 for k from 0 to 255"
            )


def check_latents(x: Tensor, name: str) -> None:
    """Refuse what is no batch of finite floating point values.

    Raises:
        InputError: with what was found and what was expected.
    """
    if x.ndim != 4:
        raise InputError(f"{name} has shape {list(x.shape)}; expected [batch, channels, height, width]")
    if not x.dtype.is_floating_point:
        raise InputError(f"{name} is of type {x.dtype}; expected floating point values, for images those in [-1, 1]")
    if _may_look(x) and not bool(x.isfinite().all()):
        raise InputError(f"{name} has {int((~x.isfinite()).sum())} values that are not finite; expected finite ones")


def check_like(x: Tensor, like: Tensor, name: str, like_name: str) -> None:
    """Refuse a tensor of another shape.

    Raises:
        InputError: with both shapes.
    """
    if x.shape != like.shape:
        raise InputError(f"{name} has shape {list(x.shape)}, {like_name} has {list(like.shape)}; expected equal shapes")


def check_timesteps(t: Tensor, like: Tensor, like_name: str) -> None:
    """Refuse what is not one timestep for each image; their range is looked at where they are used.

    Raises:
        InputError: with what was found and what was expected.
    """
    # Index tensors of type uint8 and bool are masks to torch.
    if t.dtype not in (torch.int64, torch.int32):
        raise InputError(f"t is of type {t.dtype}; expected torch.int64 or torch.int32")
    if t.shape != like.shape[:1]:
        raise InputError(f"t has shape {list(t.shape)}, {like_name} has {list(like.shape)}; expected one t an image")


def _may_look(x: Tensor) -> bool:
    """On a GPU a look at the values would make the host wait for all that is under way."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel() > 0
