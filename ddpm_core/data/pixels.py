"""Pixels: the 256 levels of an 8-bit image <-> [-1, 1], the range that the diffusion works in."""

import torch

from ddpm_core.types import Float, Tensor, UInt8


def to_unit(pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """0..255 -> [-1, 1], linear (Ho et al. 2020, Section 3.3); float32."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """[-1, 1] -> 0..255: the nearest level (ties to the even one), what lies outside clamped."""
    return ((x.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
