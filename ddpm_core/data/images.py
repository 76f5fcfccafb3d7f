"""Images: of any kind -> uint8 pixels of one shape -> PNG, and back."""

import io
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm_core.data.fit import Fit, fit_to
from ddpm_core.data.pixels import num_colours
from ddpm_core.errors import InputError
from ddpm_core.types import ImageSize, Tensor, UInt8, height_and_width

_GREY_16_BIT = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's, by the number of channels."""
_PNG_LEVEL = 6
_MAX_PIXELS = 64_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Those that Pillow decodes by itself; others start programs (EPS) or are seldom pictures."""


class BadImage(InputError):
    """An image that cannot be used; the message is the reason, for the quarantine list."""


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
    """A raw image as 8-bit pixels of one shape.

    The first frame is turned as its EXIF orientation says, converted to grey (ITU-R 601 luma) or sRGB, and brought to the size
    by `fit_to`. With 1 or 3 channels it is laid on white where it is transparent; with 2 or 4 its alpha is kept, and is opaque
    where it has none. 16-bit grey becomes 8-bit by 65535 -> 255. An image of the right form already keeps its values exactly.

    Resizing is Pillow's Lanczos; CelebA-HQ and the LSUN images of Karras et al. (2018), from which the papers' figures come,
    were reduced with it too.

    Args:
        raw: an encoded image, or uint8 pixels [h, w] or [h, w, c] with c = 1 (grey), 2 (grey and alpha), 3 or 4 (RGBA).
        image_size: of the result.
        channels: 1 for grey, 3 for colour; 2 and 4 for these with alpha.
        max_pixels: a larger image is refused by its header, before it is decoded.
        fit, seed, position: as in `fit_to`.

    Returns:
        [height, width, channels]; 0 is black.

    Raises:
        BadImage: if it is empty, unreadable, cut short or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about odd files; what matters is raised
        try:
            image = _opened(raw, max_pixels)
            image = _in_mode(_upright(image), _MODES[channels])
        except BadImage:
            raise
        # A stranger's bytes can make a decoder raise anything (OSError, SyntaxError, struct.error, KeyError, ...).
        except Exception as error:
            raise BadImage(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error
    pixels = np.asarray(fit_to(image, image_size, fit, seed=seed, position=position))
    return pixels.reshape(*height_and_width(image_size), channels)


def exact_pixels(raw: bytes | NDArray[np.generic], image_size: ImageSize, channels: int) -> NDArray[np.uint8]:
    """A raw image that must have this form already: nothing is cropped, resized or converted. Alpha is as in `to_pixels`.

    Returns:
        [height, width, channels].

    Raises:
        BadImage: if it is of another size, grey instead of colour or the reverse, or cannot be used.
    """
    image = _opened(raw, _MAX_PIXELS)
    height, width = height_and_width(image_size)
    if image.size != (width, height):
        raise BadImage(f"{image.width}x{image.height} pixels; expected {width}x{height} (width x height)")
    found, expected = image.mode in {"1", "L", "LA", *_GREY_16_BIT}, num_colours(channels) == 1
    if found != expected:
        raise BadImage(f"{'grey' if found else 'colour'}; expected {'grey' if expected else 'colour'}")
    return to_pixels(raw, image_size, channels)


def _opened(raw: bytes | NDArray[np.generic], max_pixels: int) -> Image.Image:
    """The image with its header read; its pixels are still to be decoded."""
    if isinstance(raw, bytes):
        if not raw:
            raise BadImage("empty file")
        try:
            image = Image.open(io.BytesIO(raw), formats=_FORMATS)
        except UnidentifiedImageError:
            raise BadImage("not an image, or of a format that is not read here") from None
        except Image.DecompressionBombError as error:  # Pillow's own limit, where max_pixels lies above it
            raise BadImage(f"absurdly large: {error}") from None
        width, height = image.size
    else:
        if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or raw.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
            raise BadImage(f"an array of {raw.dtype} {list(raw.shape)}; expected uint8 [h, w] or [h, w, 1 to 4]")
        height, width = raw.shape[:2]
    if width * height == 0:
        raise BadImage(f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise BadImage(f"absurdly large: {width} x {height} pixels, more than max_image_pixels = {max_pixels}")
    if isinstance(raw, bytes):
        return image
    return Image.fromarray(np.ascontiguousarray(raw[..., 0] if raw.shape[2:] == (1,) else raw))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; pixels without a file have none."""
    return image if image.format is None else ImageOps.exif_transpose(image)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA; this decodes it."""
    image.load()
    if image.mode in _GREY_16_BIT:
        image = _eight_bit(image)
    if image.mode == "F":
        raise BadImage("floating point pixels, whose range is not known; save it with 8 or 16 bits")
    keeps_alpha = mode in ("LA", "RGBA")
    if keeps_alpha and image.mode == mode:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if keeps_alpha:
            return image.convert(mode)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # A palette goes to grey by way of its colours, as every other colour image does.
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(f"grey values from {values.min()} to {values.max()}; expected 16 bits, 0 to 65535")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


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
