"""What float32 means on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def whole_float32() -> Iterator[None]:
    """Convolutions and products of float32 are computed in float32, as on a CPU.

    Left alone, torch rounds what a GPU's convolutions multiply to the 10 bits of TF32, and by how it splits a batch an image's
    last bits follow from the others of its batch: seen on an H100, up to 6 of 255 levels, in one value of a hundred.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
