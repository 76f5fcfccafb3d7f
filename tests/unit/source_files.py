"""Images and arrays as raw sources hold them."""

import struct

import numpy as np
from numpy.typing import NDArray
from picture_files import noise

from ddpm_core.data.images import encode_png


def png(seed: int) -> bytes:
    """A grey picture of 8x8, another for each seed."""
    return encode_png(noise(8, 8, 1, seed=seed))


def idx(array: NDArray[np.uint8]) -> bytes:
    """An idx file of unsigned bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
