"""Images: of any kind -> uint8 pixels of one shape -> PNG, and back."""

import io
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm_core.data.fit import Fit, fit_to
from ddpm_core.data.pictures import BadImage as BadImage
from ddpm_core.data.pictures import Picture, Remark, open_picture
from ddpm_core.data.pixels import num_colours
from ddpm_core.types import ImageSize, Tensor, UInt8, height_and_width

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's, by the number of channels."""
_PNG_LEVEL = 6
_MAX_PIXELS = 64_000_000


def to_pixels(
    raw: bytes | NDArray[np.generic],
    image_size: ImageSize,
    channels: int,
    max_pixels: int = _MAX_PIXELS,
    *,
    fit: Fit = "crop",
    seed: int = 0,
    position: int = 0,
) -> NDArray[np.uint8]:
    """A raw image as 8-bit pixels of one shape: `fitted` of `open_picture`.

    Args:
        raw: an encoded image, or uint8 pixels [h, w] or [h, w, c] with c = 1 (grey), 2 (grey and alpha), 3 or 4 (RGBA).
        image_size: of the result.
        channels: 1 for grey, 2 with alpha, 3 for colour, 4 with alpha.
        max_pixels: a larger image is refused by its header, before it is decoded.
        fit: how it comes to that size.
        seed: of a random crop.
        position: of the image in its source, for a random crop.

    Returns:
        [height, width, channels]; 0 is black.

    Raises:
        BadImage: if it is empty, unreadable, cut short or too large.
    """
    return fitted(open_picture(raw, max_pixels), image_size, channels, fit=fit, seed=seed, position=position)


def fitted(
    picture: Picture, image_size: ImageSize, channels: int, *, fit: Fit = "crop", seed: int = 0, position: int = 0
) -> NDArray[np.uint8]:
    """A picture as 8-bit pixels of one shape.

    It is converted to grey (ITU-R 601 luma) or colour, and brought to the size by `fit_to`. With 1 or 3 channels it is laid on
    white where it is transparent; with 2 or 4 its alpha is kept, and is opaque where it has none. A picture of the right form
    already keeps its values exactly.

    Resizing is Pillow's Lanczos; CelebA-HQ and the LSUN images of Karras et al. (2018), from which the papers' figures come,
    were reduced with it too.

    Args:
        picture: any.
        image_size, channels, fit, seed, position: as for `to_pixels`.

    Returns:
        [height, width, channels]; 0 is black.
    """
    image = _in_mode(picture.image, _MODES[channels])
    pixels = np.asarray(fit_to(image, image_size, fit, seed=seed, position=position))
    return pixels.reshape(*height_and_width(image_size), channels)


def remarks_of(picture: Picture, channels: int) -> tuple[str, ...]:
    """What was done to a picture until it was fitted into so many channels."""
    transparent = picture.image.mode in ("LA", "RGBA") and np.asarray(picture.image)[..., -1].min() < 255
    return (*picture.remarks, Remark.ON_WHITE) if channels in (1, 3) and transparent else picture.remarks


def exact_pixels(raw: bytes | NDArray[np.generic], image_size: ImageSize, channels: int) -> NDArray[np.uint8]:
    """A raw image that must have this form already: nothing is cropped, resized or converted. Alpha is as in `fitted`.

    Returns:
        [height, width, channels].

    Raises:
        BadImage: if it is of another size, grey instead of colour or the reverse, or cannot be used.
    """
    picture = open_picture(raw, _MAX_PIXELS)
    height, width = height_and_width(image_size)
    if picture.image.size != (width, height):
        found_size = "x".join(map(str, picture.image.size))
        raise BadImage(f"{found_size} pixels; expected {width}x{height} (width x height)", "of another form")
    found, expected = picture.image.mode in ("L", "LA"), num_colours(channels) == 1
    if found != expected:
        raise BadImage(
            f"{'grey' if found else 'colour'}; expected {'grey' if expected else 'colour'}", "of another form"
        )
    return fitted(picture, image_size, channels)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA; on white where it is transparent and the mode has no alpha."""
    if image.mode in ("LA", "RGBA") and image.mode != mode:
        image = image.convert("RGBA")
        if mode in ("LA", "RGBA"):
            return image.convert(mode)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels [h, w, 1 to 4] as a PNG (grey, grey with alpha, RGB or RGBA) without metadata.

    The same pixels give the same bytes (of one zlib).
    """
    out = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(out, "PNG", compress_level=_PNG_LEVEL)
    return out.getvalue()


def decode_png(data: bytes, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """The pixels of a PNG that encode_png wrote.

    By libpng through imagecodecs, since for images this small most of Pillow's time is its own.

    Args:
        data: the file.
        out: where to put them, [h, w, 1 to 4] and contiguous; by default a new array.

    Returns:
        [h, w, 1 to 4].

    Raises:
        InputError: if it is no PNG, or not of the size of `out`.
        RuntimeError: if it is damaged or cut short.
    """
    from imagecodecs import png_decode  # here, so that images can be written where it is missing

    pixels: NDArray[np.uint8] = png_decode(data, out=out)
    return pixels.reshape(*pixels.shape[:2], -1)


def decode_pngs(pngs: Iterable[bytes]) -> UInt8[Tensor, "n c h w"]:
    """The pixels of PNGs of one size that encode_png wrote."""
    return torch.stack([torch.from_numpy(decode_png(png).copy()).permute(2, 0, 1) for png in pngs])
