"""Images: of any kind -> uint8 squares -> PNG, and back."""

import io
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm_core.data.pictures import BadImage as BadImage
from ddpm_core.data.pictures import Picture, PillowAlone, Remark, open_picture
from ddpm_core.types import Tensor, UInt8

_PNG_LEVEL = 6
_MAX_PIXELS = 64_000_000


def to_pixels(
    raw: bytes | NDArray[np.generic], image_size: int, channels: int, max_pixels: int = _MAX_PIXELS
) -> NDArray[np.uint8]:
    """A raw image as a square of 8-bit pixels: `fitted` of `open_picture`.

    Args:
        raw: an encoded image, or uint8 pixels [h, w] or [h, w, c] with c = 1 (grey), 2 (grey and alpha), 3 or 4 (RGBA).
        image_size: pixels a side of the result.
        channels: 1 for grey, 3 for colour.
        max_pixels: a larger image is refused by its header, before it is decoded.

    Returns:
        [image_size, image_size, channels]; 0 is black.

    Raises:
        BadImage: if it is empty, unreadable, cut short or too large.
    """
    return fitted(open_picture(raw, max_pixels), image_size, channels)


def fitted(picture: Picture, image_size: int, channels: int) -> NDArray[np.uint8]:
    """A picture as a square of 8-bit pixels.

    It is laid on white where it is transparent, converted to grey (ITU-R 601 luma) or colour, cropped to its centre
    square and resized. A picture of the right form already keeps its values exactly.

    Resizing is Pillow's Lanczos, whose support grows with the reduction, so that it does not alias; CelebA-HQ and the
    LSUN images of Karras et al. (2018), from which the papers' figures come, were reduced with it too.

    Args:
        picture: any.
        image_size: pixels a side of the result.
        channels: 1 for grey, 3 for colour.

    Returns:
        [image_size, image_size, channels]; 0 is black.
    """
    image = _in_mode(picture.image, "L" if channels == 1 else "RGB")
    pixels = np.asarray(_square(image, image_size))
    return pixels.reshape(image_size, image_size, channels)


def remarks_of(picture: Picture, channels: int) -> tuple[str, ...]:
    """What was done to a picture until it was fitted into so many channels."""
    transparent = picture.image.mode in ("LA", "RGBA") and np.asarray(picture.image)[..., -1].min() < 255
    return (*picture.remarks, Remark.ON_WHITE) if channels in (1, 3) and transparent else picture.remarks


def exact_pixels(raw: bytes | NDArray[np.generic], image_size: int, channels: int) -> NDArray[np.uint8]:
    """A raw image that must have this form already: nothing is cropped, resized or converted.

    Returns:
        [image_size, image_size, channels].

    Raises:
        BadImage: if it is of another size, grey instead of colour or the reverse, or cannot be used.
    """
    picture = open_picture(raw, _MAX_PIXELS)
    width, height = picture.image.size
    if (width, height) != (image_size, image_size):
        raise BadImage(f"{width}x{height} pixels; expected {image_size}x{image_size}", "of another form")
    found = 1 if picture.image.mode in ("L", "LA") else 3
    if found != channels:
        reason = f"{'grey' if found == 1 else 'colour'}; expected {'grey' if channels == 1 else 'colour'}"
        raise BadImage(reason, "of another form")
    return fitted(picture, image_size, channels)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB, on white where it is transparent."""
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _square(image: Image.Image, image_size: int) -> Image.Image:
    """The centre square, resized; untouched where it fits already."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (side, side):
        with PillowAlone():  # its own limit of pixels holds for a crop, too
            image = image.crop((left, top, left + side, top + side))
    return image if side == image_size else image.resize((image_size, image_size), Image.Resampling.LANCZOS)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels [h, w, 1 or 3] as a PNG without metadata; the same pixels give the same bytes (of one zlib)."""
    out = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(out, "PNG", compress_level=_PNG_LEVEL)
    return out.getvalue()


def decode_png(data: bytes, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """The pixels of a PNG that encode_png wrote.

    By libpng through imagecodecs, since for images this small most of Pillow's time is its own.

    Args:
        data: the file.
        out: where to put them, [h, w, 1 or 3] and contiguous; by default a new array.

    Returns:
        [h, w, 1 or 3].

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
