"""fd_random_conv: features of a fixed random convolution network; no weights to fetch, no labels to trust.

Random filters with a pointwise nonlinearity and pooling, much like a scattering transform, respond to strokes, texture,
contrast and colour without having been trained on anything. The distance on them is no FID and stands beside none: it
orders models on one dataset.

Each image is first resized to 32x32 (bilinear, antialiased), whatever its size. So the filters see every image at the
same relative scales, the features have one meaning and one number of dimensions, and large images cost no more than
small ones. What that means: 8x8 and 28x28 images lose nothing (each pixel becomes a smooth patch), 32x32 ones pass
untouched, and at 256x256 the distance judges layout, shape and colour but is blind to detail finer than about 8 pixels.
"""

import hashlib
import json
from functools import lru_cache

import torch
from torch.nn import functional

from ddpm_core.data.pixels import check_channels, on_white
from ddpm_core.random import Purpose, normals
from ddpm_core.types import Float, Tensor, UInt8

NAME = "fd_random_conv"
_VERSION = 1  # to be raised with every change to the definition that the constants below do not show
_SEED = 2006_11239
_SIZE = 32
_WIDTHS = (24, 32, 40)
_BIAS = 0.5
_MAP_CHANNELS = 4
_MAP_SIZE = _SIZE >> len(_WIDTHS)
_SCALE = 10.0
NUM_FEATURES = 2 * sum(_WIDTHS) + _MAP_CHANNELS * _MAP_SIZE**2


def extractor_digest() -> str:
    """Names the exact definition of the features; figures of different names never compare."""
    definition = [NAME, _VERSION, _SEED, _SIZE, _WIDTHS, _BIAS, _MAP_CHANNELS, _SCALE]
    digest = hashlib.sha256(json.dumps(definition).encode()).hexdigest()
    return f"{NAME}-v{_VERSION}-d{NUM_FEATURES}-{digest[:12]}"


def extract(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """Features of images, on their device; float32, 256 of them.

    Three stages of a 3x3 convolution, absolute value and 2x2 mean pooling. The features are the spatial mean and
    standard deviation of each stage's channels, and the first channels of the last stage as 4x4 maps, which know where
    things are; all times 10, for figures that read well.

    Args:
        images: grey (repeated to three channels) or colour, of any size; laid on white where there is alpha.

    Raises:
        InputError: if there are not 1 to 4 channels.
    """
    check_channels(images)
    x = on_white(images).float() / 127.5 - 1.0
    x = functional.interpolate(x, size=(_SIZE, _SIZE), mode="bilinear", antialias=True, align_corners=False)
    x = x.expand(-1, 3, -1, -1)
    features = []
    # TF32 would round the products to 10 bits on some GPUs and not on others.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for weight, bias in _filters(str(images.device)):
            # Replicated edges: zeros would be an edge of their own in every image that is not grey there.
            x = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias).abs()
            features += [x.mean((2, 3)), x.std((2, 3))]
            x = functional.avg_pool2d(x, 2)
    # A map of n values gets the weight of one mean; else its many values would drown the rest.
    features.append(x[:, :_MAP_CHANNELS].flatten(1) / _MAP_SIZE)
    return _SCALE * torch.cat(features, dim=1)


@lru_cache(maxsize=8)
def _filters(device: str) -> list[tuple[Tensor, Tensor]]:
    """Weight [out, in, 3, 3] of variance 1 / fan_in and bias [out] of each stage; the same everywhere.

    Without a bias the first stage would take a negative for its original.
    """
    filters = []
    channels = 3
    for stage, width in enumerate(_WIDTHS):
        drawn = normals(_SEED, Purpose.WEIGHTS, torch.arange(width), (channels * 9 + 1,), step=stage)
        weight = drawn[:, :-1].reshape(width, channels, 3, 3) / (9 * channels) ** 0.5
        filters.append((weight.to(device), (_BIAS * drawn[:, -1]).to(device)))
        channels = width
    return filters
