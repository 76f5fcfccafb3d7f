"""DINOv2 (Oquab et al. 2023), by whose class token FD-DINOv2 goes (Stein et al. 2023): transformers' network, fed as dgm-eval does.

Weights come under the names of the published .pth or of Hugging Face's files. The position embeddings are brought from the 37x37
patches of training to the 16x16 of 224 pixels here, once: transformers would do it by 16/37, the published code does by 16.1/37.
"""

import re
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from ddpm_core.optional import late
from ddpm_core.types import Float, Tensor, UInt8

SIZE = 224
_PATCH, _TRAINED = 14, 37
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of images in 0..1."""
_transformers = late("transformers", "transformers", "DINOv2", extra="dinov2")


class Dims(NamedTuple):
    """Of a vision transformer."""

    width: int
    depth: int
    heads: int


SMALL, BASE, LARGE = Dims(384, 12, 6), Dims(768, 12, 12), Dims(1024, 24, 16)

_HUGGING_FACE = [
    (r"^cls_token$", r"embeddings.cls_token"),
    (r"^pos_embed$", r"embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", r"embeddings.patch_embeddings.projection."),
    (r"^norm\.", r"layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", r".attention.output.dense."),
]
"""From the published file's names to those of Hugging Face's files."""
_TRANSFORMERS_5 = [
    (r"\.attention\.attention\.(.)\w+\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", r".attention.o_proj."),
]
"""From those to what transformers' network itself calls them, from version 5 on."""


class Dinov2(nn.Module):
    """Images of 224x224 in, the class token after the last norm out."""

    def __init__(self, dims: Dims, tensors: dict[str, Tensor]) -> None:
        """A network with weights.

        Args:
            tensors: of a published .pth, or of a Hugging Face file.

        Raises:
            InputError: if transformers is not installed.
            RuntimeError: if the tensors are those of another network.
        """
        super().__init__()
        config = _transformers.Dinov2Config(
            hidden_size=dims.width,
            num_hidden_layers=dims.depth,
            num_attention_heads=dims.heads,
            image_size=SIZE,
            patch_size=_PATCH,
            use_mask_token=False,
            attn_implementation="eager",  # plain products, of which whole_float32 has the say
        )
        with torch.device("meta"):  # no weights are drawn that the file's would replace
            self._network = _transformers.Dinov2Model(config)
        self._network.load_state_dict(_named(tensors, set(self._network.state_dict())), assign=True)

    def forward(self, x: Float[Tensor, "b 3 224 224"]) -> tuple[Float[Tensor, "b d"]]:
        """The class token.

        Args:
            x: of `prepare`.
        """
        return (self._network(x).last_hidden_state[:, 0],)


def check_installed() -> None:
    """Errors as in `Dinov2`, before anything is fetched for it."""
    _ = _transformers.Dinov2Model


def prepare(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b 3 224 224"]:
    """As dgm-eval does by default: PIL's bicubic on bytes, rounded to bytes again, then ImageNet's mean and deviation."""
    planes = images.cpu().numpy().reshape(-1, *images.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for plane in planes]
    x = torch.from_numpy(np.stack(resized)).reshape(*images.shape[:2], SIZE, SIZE).to(images.device).float() / 255
    mean, std = (torch.tensor(each, device=x.device).reshape(3, 1, 1) for each in (_MEAN, _STD))
    return (x - mean) / std


def resize_positions(embeddings: Float[Tensor, "1 n d"]) -> Float[Tensor, "1 m d"]:
    """Position embeddings of 37x37 patches as those of the 16x16 of 224 pixels; the class token's, the first, stays.

    The published code scales by (16 + 0.1) / 37 and torch samples by that scale, not by the sizes: the last patch falls short
    of the edge. No antialiasing.
    """
    to = SIZE // _PATCH
    grid = embeddings[:, 1:].reshape(1, _TRAINED, _TRAINED, -1).permute(0, 3, 1, 2)
    scale = (to + 0.1) / _TRAINED
    resized = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([embeddings[:, :1], resized.flatten(2).mT], 1)


def _named(tensors: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """A file's tensors under the names that are expected, float32, their position embeddings resized."""
    found = {}
    for name, tensor in tensors.items():
        if name not in ("mask_token", "embeddings.mask_token"):  # of training alone
            for part_name, part in _parted(name, tensor.float()).items():
                known = _renamed(part_name, _HUGGING_FACE)
                found[known if known in expected else _renamed(known, _TRANSFORMERS_5)] = part
    positions = "embeddings.position_embeddings"
    if positions in found:
        found[positions] = resize_positions(found[positions])
    return found


def _parted(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The published file has query, key and value in one, in this order."""
    if ".attn.qkv." not in name:
        return {name: tensor}
    parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
    return {name.replace("qkv", part): chunk.clone() for part, chunk in parts}


def _renamed(name: str, names: list[tuple[str, str]]) -> str:
    for pattern, other in names:
        name = re.sub(pattern, other, name)
    return name
