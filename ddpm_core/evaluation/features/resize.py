"""Three ways in which published figures bring images to Inception's 299x299: each moves an FID, so each has a name.

Each gives what the network of that code is fed: bytes resized and brought to about [-1, 1].
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ddpm_core.types import Float, Tensor, UInt8

SIZE = 299
ResizeName = Literal["tensorflow", "pytorch_fid", "clean_fid"]
Resize = Callable[[UInt8[Tensor, "b c h w"]], Float[Tensor, "b c 299 299"]]


def tensorflow(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c 299 299"]:
    """TensorFlow 1's bilinear, as FID was first computed (Heusel et al. 2017).

    Output pixel i lies at i * size / 299 of the input: the corners of the pixels are aligned, not their centres. No antialiasing.
    """
    x = images.float()
    for dim in (3, 2):
        size = x.shape[dim]
        # float32, as TensorFlow has it: where a place falls on a pixel it decides which one.
        place = torch.arange(SIZE, dtype=torch.float32, device=x.device) * torch.tensor(
            size / SIZE, dtype=torch.float32
        )
        low = place.long()
        high = (low + 1).clamp_max(size - 1)
        share = (place - low).reshape([-1 if each == dim else 1 for each in range(4)])
        below = x.index_select(dim, low)
        x = below + (x.index_select(dim, high) - below) * share
    return (x - 128) / 128


def pytorch_fid(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c 299 299"]:
    """pytorch-fid's bilinear with the centres of the pixels aligned, without antialiasing; 0..255 becomes exactly -1..1."""
    x = functional.interpolate(images.float() / 255, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return 2 * x - 1


def clean_fid(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c 299 299"]:
    """clean-fid's: PIL's bicubic in float, which antialiases, clipped to 0..255 and never rounded (Parmar et al. 2022)."""
    planes = images.cpu().numpy().astype(np.float32).reshape(-1, *images.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for plane in planes]
    x = torch.from_numpy(np.stack(resized)).clamp(0, 255).reshape(*images.shape[:2], SIZE, SIZE)
    return (x.to(images.device) - 128) / 128


RESIZES: dict[ResizeName, Resize] = {"tensorflow": tensorflow, "pytorch_fid": pytorch_fid, "clean_fid": clean_fid}
