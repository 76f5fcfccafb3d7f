"""Between the arrays that people have and the tensors that networks see."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.data.pixels import to_uint8
from ddpm_core.errors import InputError
from ddpm_core.types import Float, Int, Tensor, UInt8

Images = NDArray[np.uint8]
"""[n, height, width, channels]."""


def to_tensor(images: Images, image_shape: tuple[int, int, int]) -> UInt8[Tensor, "n c h w"]:
    """Images as a network sees them.

    Raises:
        InputError: if they are of another type or shape.
    """
    images, (channels, height, width) = np.asarray(images), image_shape
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, channels):
        raise InputError(
            f"the images are {images.dtype} {list(images.shape)}; expected uint8 [n, {height}, {width}, {channels}]"
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def to_mask(known: NDArray[Any], count: int, image_shape: tuple[int, int, int]) -> Tensor:
    """A mask of images as it broadcasts to [n, channels, height, width].

    Args:
        known: [height, width], [n, height, width], or four dimensions in the order of images.

    Raises:
        InputError: if it has another shape, or holds no numbers.
    """
    channels, height, width = image_shape
    if known.dtype.kind not in "biuf":
        raise InputError(f"known is of type {known.dtype}; expected True or 1 where an image is to be kept")
    if known.shape == (height, width):
        known = known[None, :, :, None]
    elif known.shape == (count, height, width):
        known = known[..., None]
    full = (count, height, width, channels)
    if known.ndim != 4 or any(size not in (1, whole) for size, whole in zip(known.shape, full, strict=True)):
        raise InputError(
            f"known has shape {list(known.shape)}; expected [{height}, {width}], [{count}, {height}, {width}], or "
            f"[{count} or 1, {height} or 1, {width} or 1, {channels} or 1]"
        )
    return torch.from_numpy(np.ascontiguousarray(known)).permute(0, 3, 1, 2)


def to_keys(seeds: Sequence[int]) -> Int[Tensor, " n"]:
    """Seeds as the keys of their noise.

    Raises:
        InputError: if there is none, or one is not in [0, 2^63).
    """
    listed = list(seeds)
    for seed in listed:
        if not 0 <= seed < 2**63:
            raise InputError(f"a seed is {seed}; expected 0 to {2**63 - 1}")
    if not listed:
        raise InputError("there is no seed; expected one an image")
    return torch.tensor(listed, dtype=torch.int64)


def to_images(x_0: Float[Tensor, "... c h w"]) -> NDArray[np.uint8]:
    """x_0, about in [-1, 1], as images [..., height, width, channels].

    Raises:
        InputError: if a value is not finite.
    """
    if bad := int((~x_0.isfinite()).sum()):
        raise InputError(
            f"the images have {bad:,} of {x_0.numel():,} values that are not finite; expected finite ones: the network overflows; "
            "run it in float32, or take another checkpoint"
        )
    pixels = to_uint8(x_0.flatten(0, -4)).view(x_0.shape)
    return pixels.movedim(-3, -1).cpu().numpy()
