"""Colours by an embedded ICC profile -> sRGB, by LittleCMS."""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from ddpm_core.data.pictures.containers import MAX_PROFILE_BYTES

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True, kw_only=True)
class _Conversion:
    """From one profile to sRGB."""

    mode: str
    """L, RGB or CMYK: of the images that have this profile."""
    transform: ImageCms.ImageCmsTransform | None
    """To RGB; None for sRGB itself."""
    levels: tuple[int, ...] = ()
    """For grey instead: what each of the 256 becomes."""


def is_usable(image: Image.Image, profile: bytes) -> bool:
    """Whether the profile is sound and of the image's kind of colours, or sRGB, which says nothing new of grey."""
    conversion = _conversion(profile)
    if conversion is None:
        return False
    return conversion.mode == image.mode.removesuffix("A") or (image.mode in ("L", "LA") and _is_srgb(conversion))


def is_srgb(profile: bytes) -> bool:
    """Whether every colour stays within a level of itself, as rounding leaves it."""
    conversion = _conversion(profile)
    return conversion is not None and _is_srgb(conversion)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The image's colours in sRGB, perceptual intent; alpha stays.

    Args:
        image: L, LA, RGB, RGBA or CMYK.
        profile: usable for it.

    Returns:
        L or LA for grey, RGB or RGBA for colour.
    """
    conversion = _conversion(profile)
    assert conversion is not None
    if conversion.levels:
        grey, *alpha = image.split()
        grey = grey.point(conversion.levels)
        return Image.merge("LA", (grey, *alpha)) if alpha else grey
    assert conversion.transform is not None
    if image.mode == "RGBA":
        colours = conversion.transform.apply(image.convert("RGB"))
        colours.putalpha(image.getchannel("A"))
        return colours
    return conversion.transform.apply(image)


def _is_srgb(conversion: _Conversion) -> bool:
    return conversion.transform is None and not conversion.levels


@lru_cache(maxsize=16)
def _conversion(profile: bytes) -> _Conversion | None:
    """None for a profile that is of no use. A data set has one a million times: hence the cache."""
    if not 128 <= len(profile) <= MAX_PROFILE_BYTES:
        return None
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(opened.profile.xcolor_space)
        if mode is None:
            return None
        # A table of few greys between which it interpolates is too coarse for the dark ones; 256 are few anyway.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(opened, _SRGB, mode, "RGB", flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    probe = _probe(mode)
    there = transform.apply(probe)
    if mode == "CMYK" or _distance(probe.convert("RGB"), there) > 1:
        levels = tuple(there.getchannel("G").getdata()) if mode == "L" else ()
        return _Conversion(mode=mode, transform=transform, levels=levels)
    return _Conversion(mode=mode, transform=None)


def _probe(mode: str) -> Image.Image:
    """All greys, or a lattice of colours with all greys beside it."""
    greys = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(greys[None])
    if mode == "CMYK":
        return Image.new("CMYK", (1, 1))
    lattice = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(-1, 3)
    return Image.fromarray(np.concatenate([lattice, np.stack([greys] * 3, axis=-1)])[None])


def _distance(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16)).max())
