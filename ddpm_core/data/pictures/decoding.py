"""An opened image, decoded, in one of the modes L, LA, RGB, RGBA, CMYK and LAB."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm_core.errors import InputError
from ddpm_core.optional import late

_GREY_16_BIT = {"I;16", "I;16L", "I;16B", "I;16N", "I"}
_AS = {"1": "L", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
_imagecodecs = late("imagecodecs", "imagecodecs", "a picture of 16 bits a channel", extra="pipelines")


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether a channel has more than 8 bits, by the header."""
    if image.format == "PNG":
        return data[24] == 16
    if image.format == "TIFF":
        bits: tuple[int, ...] = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        return max(bits) > 8
    if image.format == "PPM":  # the decoder's last argument is the largest value
        largest = image.tile[0].args[-1] if image.tile[0].codec_name.startswith("ppm") else 255  # type: ignore
        return largest > 255 or image.mode == "I"
    if image.format == "JPEG2000":
        return _bits_of_jpeg2000(data) > 8
    return image.mode in _GREY_16_BIT


def _bits_of_jpeg2000(data: bytes) -> int:
    """Of a channel, by the codestream's header, which may hold a sign in the highest bit."""
    place = data.find(b"\xff\x4f\xff\x51")
    return (data[place + 42] & 0x7F) + 1 if place >= 0 else 8


def decode(image: Image.Image, data: bytes) -> Image.Image:
    """The pixels with 8 bits a channel, transparency as alpha.

    Args:
        image: of `data`, of which the header was read.
        data: the file.

    Returns:
        L, LA, RGB, RGBA, CMYK or LAB.

    Raises:
        InputError: if its pixels are floating point, or integers outside 0 to 65535.
    """
    if image.format == "PNG" and data[24] == 16:
        return _of_array(
            _imagecodecs.png_decode(data)
        )  # Pillow would leave the low byte, and compare colour keys with it
    if image.mode == "F":
        raise InputError("floating point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.format == "JPEG2000" and image.mode not in _GREY_16_BIT and (bits := _bits_of_jpeg2000(data)) > 8:
        values = _imagecodecs.jpeg2k_decode(data)  # Pillow would round the brightest up to 256, which it makes 0
        return _of_array(values << max(0, 16 - bits))
    image.load()
    if image.mode in _GREY_16_BIT:
        return _of_array(np.asarray(image))
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in _AS:
        image = image.convert(_AS[image.mode])
    key = image.info.get("transparency")
    if key is not None and image.mode in ("L", "RGB"):
        return _without_key(image, key, data[24] if image.format == "PNG" else 8)
    return image


def _of_array(values: NDArray[np.generic]) -> Image.Image:
    """Values of 16 bits [h, w] or [h, w, 1 to 4] as 8: 65535 -> 255, rounded."""
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
        raise InputError(f"grey values from {values.min()} to {values.max()}; expected 16 bits, 0 to 65535")
    # round(v / 257) in whole numbers: the same for all 65536 of them.
    levels = ((values.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels)


def _without_key(image: Image.Image, key: int | tuple[int, ...], bits: int) -> Image.Image:
    """With alpha: 0 where a pixel is of the colour that stands for transparent, whose values have this many bits."""
    scale = 255 // (2**bits - 1) if bits in (2, 4) else 1  # a key of 1 bit is scaled already
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    clear = (pixels == np.array(key).reshape(-1) * scale).all(axis=-1)
    image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return image
