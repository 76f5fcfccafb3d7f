"""Pixels: the 256 levels of an 8-bit image <-> [-1, 1], the range that the diffusion works in; channels, and alpha."""

import torch

from ddpm_core.errors import InputError
from ddpm_core.types import Float, Tensor, UInt8

CHANNELS = {1: "grey", 2: "grey with alpha", 3: "colour", 4: "colour with alpha"}
"""What an image of so many channels is; alpha is the last one, 255 where it is opaque."""
CHANNELS_IN_WORDS = "1 (grey), 2 (grey with alpha), 3 (colour) or 4 (colour with alpha)"


def check_channels(images: UInt8[Tensor, "b c h w"]) -> None:
    """Refuse images of other numbers of channels.

    Raises:
        InputError: in one line.
    """
    if images.shape[1] not in CHANNELS:
        raise InputError(f"images have {images.shape[1]} channels; expected {CHANNELS_IN_WORDS}")


def num_colours(channels: int) -> int:
    """Channels without alpha."""
    return channels - (channels in (2, 4))


def on_white(images: UInt8[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n o h w"]:
    """Images as they are seen and compared: where there is alpha, laid on white, so that 2 channels become 1 and 4 become 3.

    The nearest level, as Pillow's alpha_composite has it. Images without alpha are returned as they are.
    """
    if images.shape[-3] not in (2, 4):
        return images
    colour, alpha = images[..., :-1, :, :].int(), images[..., -1:, :, :].int()
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def to_unit(pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """0..255 -> [-1, 1], linear (Ho et al. 2020, Section 3.3); float32."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """[-1, 1] -> 0..255: the nearest level (ties to the even one), what lies outside clamped."""
    return ((x.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
