"""A recipe's network, where its images are of another size than the recipe's own."""

from dataclasses import replace

from ddpm_core.model.unet import UNetConfig, divides, level_sizes
from ddpm_core.types import ImageSize


def fitted(unet: UNetConfig, image_size: ImageSize) -> UNetConfig:
    """The network with its attention at sizes that its levels have: each that none has gives way to the nearest by ratio.

    It stays affordable: the nearest is larger by half at the most, or is the coarsest, where the middle has attention anyway.
    """
    sizes = level_sizes(unet, image_size)
    if set(unet.attention_resolutions) <= set(sizes) or not divides(unet, image_size):
        return unet  # in the latter case to be refused
    near = [min(sizes, key=lambda size: max(size / wanted, wanted / size)) for wanted in unet.attention_resolutions]
    return replace(unet, attention_resolutions=tuple(dict.fromkeys(near)))
