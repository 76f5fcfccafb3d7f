"""Strangers' image files -> upright pictures of 8 bits in sRGB, with what was done to them."""

import io
import struct
import threading
import warnings
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ddpm_core.data.pictures.containers import HEAD_BYTES, Container, orientation_of, picture_format, take_apart
from ddpm_core.data.pictures.decoding import decode, is_deep
from ddpm_core.data.pictures.profiles import is_srgb, is_usable, to_srgb
from ddpm_core.errors import InputError

Kind = Literal["empty", "no image by content", "absurdly large", "not read here", "of another form", "undecodable"]
_TURNS = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_SRGB_GAMMA = 1 / 2.2
_PILLOW = threading.RLock()


class BadImage(InputError):
    """An image that cannot be used; the message is the reason, for the census.

    Args:
        reason: one line.
        kind: what the reason is counted as.
    """

    def __init__(self, reason: str, kind: Kind = "undecodable") -> None:
        super().__init__(reason)
        self.kind: Kind = kind


class Remark(StrEnum):
    """What was done to a picture that its owner should know."""

    DEPTH = "16 bits a channel scaled to 8"
    PROFILE = "colours converted from an embedded profile to sRGB"
    BAD_PROFILE = "embedded profile could not be used"
    GAMMA = "gamma of its own (gAMA) not applied"
    CMYK = "CMYK converted to sRGB"
    LAB = "Lab converted to sRGB"
    FRAMES = "first of several frames taken"
    TURNED = "turned as its EXIF says"
    ON_WHITE = "transparency laid on white"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a viewer shows it."""

    image: Image.Image
    """Upright, 8 bits, sRGB; mode L, LA, RGB or RGBA, with alpha where the file has transparency."""
    remarks: tuple[str, ...]
    """Of Remark, in the order in which it was done."""


def open_picture(raw: bytes | NDArray[np.generic], max_pixels: int) -> Picture:
    """An encoded image, or pixels, as a viewer shows it.

    Of several frames the first is taken (of an MPO, its photograph). It is turned as its EXIF orientation says; an EXIF
    that is broken says nothing, and what XMP says is not asked. Colours go to sRGB by the ICC profile of a JPEG, PNG,
    TIFF, WebP or AVIF; where that is sRGB within rounding, every bit stays. A PNG's gAMA, cHRM and cICP are not applied:
    nearly all say about sRGB. CMYK without a profile is converted plainly (255 - ink, less black), a JPEG's being
    inverted as Adobe writes it.

    16 bits become 8 by 65535 -> 255, rounded; colour in a TIFF by leaving its low byte, as Pillow decodes it, at most a
    level darker. That 12 bits were stored in 16 cannot be known: such images come out dark.

    Args:
        raw: a file's bytes, or uint8 pixels [h, w] or [h, w, c] with c = 1 (grey), 2 (grey and alpha), 3 or 4 (RGBA).
        max_pixels: a larger image is refused by its header, before it is decoded. Nothing that a file holds beside its
            pixels is unpacked, but a profile of up to 4 MiB.

    Raises:
        BadImage: if it is empty, no image by its content, unreadable, cut short or too large.
    """
    if not isinstance(raw, bytes):
        return Picture(image=_from_array(raw, max_pixels), remarks=())
    if not raw:
        raise BadImage("empty file", "empty")
    kind = picture_format(raw[:HEAD_BYTES])
    if kind is None:
        raise BadImage("not an image, or of a format that is not read here", "no image by content")
    with PillowAlone(max_pixels if kind == "WEBP" else None):
        try:
            return _decoded(raw, kind, max_pixels)
        except BadImage:
            raise
        except InputError as error:
            raise BadImage(str(error), "not read here") from None
        except Image.DecompressionBombError:
            raise BadImage(f"absurdly large: more than max_image_pixels = {max_pixels}", "absurdly large") from None
        # A stranger's bytes can make a decoder raise anything (OSError, SyntaxError, struct.error, KeyError, ...).
        except Exception as error:
            raise BadImage(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


class PillowAlone:
    """A context in which Pillow does not warn of odd files, and has this limit of pixels instead of its own.

    Its own is of about 179 million. Both are settings of the process: one thread at a time is in such a context.
    """

    def __init__(self, max_pixels: int | None = None) -> None:
        # It warns from the limit on and refuses from twice as many. By default it does neither; sizes are compared here.
        self._limit = None if max_pixels is None else max_pixels / 2

    def __enter__(self) -> None:
        _PILLOW.acquire()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, self._limit  # type: ignore[assignment]

    def __exit__(self, *error: Any) -> None:
        Image.MAX_IMAGE_PIXELS = self._before
        self._warnings.__exit__(*error)
        _PILLOW.release()


def _decoded(raw: bytes, kind: str, max_pixels: int) -> Picture:
    file = take_apart(raw, kind)
    image = _opened(file.data, kind, max_pixels)
    check_size(*image.size, max_pixels)
    remarks = [Remark.FRAMES] if _has_more(image, file) else []
    if is_deep(image, file.data):
        remarks.append(Remark.DEPTH)
    info = image.info
    image = decode(image, file.data)
    image = _turned(image, file.orientation or orientation_of(info.get("exif", b"")), remarks)
    profile = info.get("icc_profile") if file.profile is None else file.profile
    if profile is None and file.gamma is not None and abs(file.gamma - _SRGB_GAMMA) > 0.05 * _SRGB_GAMMA:
        remarks.append(Remark.GAMMA)
    return Picture(image=_in_srgb(image, profile, remarks), remarks=tuple(remarks))


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image by its size.

    Raises:
        BadImage: if it has no pixels, or more than the limit.
    """
    if width * height == 0:
        raise BadImage(f"no pixels: {width} x {height}", "empty")
    if width * height > max_pixels:
        raise BadImage(
            f"absurdly large: {width} x {height} pixels, more than max_image_pixels = {max_pixels}", "absurdly large"
        )


def _opened(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    """The image with its header read; its pixels are still to be decoded."""
    if kind == "HEIC":
        return _opened_heic(data)
    if kind == "JPEG2000":
        _check_codestream(data, max_pixels)
    try:
        return Image.open(io.BytesIO(data), formats=(kind,))
    except UnidentifiedImageError:
        raise BadImage(f"cannot be decoded: a damaged {kind}, or one of a kind that is not read here") from None


def _from_array(pixels: NDArray[np.generic], max_pixels: int) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
        reason = f"an array of {pixels.dtype} {list(pixels.shape)}; expected uint8 [h, w] or [h, w, 1 to 4]"
        raise BadImage(reason, "not read here")
    height, width = pixels.shape[:2]
    check_size(width, height, max_pixels)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _check_codestream(data: bytes, max_pixels: int) -> None:
    """A JPEG 2000 holds its size twice; the decoder's memory goes by that of the codestream, which Pillow does not compare."""
    place = data.find(b"\xff\x4f\xff\x51")
    if place >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", data, place + 8)
        check_size(right - left, bottom - top, max_pixels)


def _opened_heic(data: bytes) -> Image.Image:
    """By pillow-heif, if it is there; that turns the image itself."""
    try:
        heif = import_module("pillow_heif")
    except ModuleNotFoundError:
        raise BadImage("HEIC, which needs pillow-heif (pip install pillow-heif)", "not read here") from None
    image: Image.Image = heif.HeifImageFile(io.BytesIO(data))
    return image


def _has_more(image: Image.Image, file: Container) -> bool:
    if file.several is not None:
        return file.several
    if image.format == "GIF":  # looked for in another reading: what follows may be broken
        with Image.open(io.BytesIO(file.data), formats=("GIF",)) as reading:
            return _has_second(reading)
    return getattr(image, "n_frames", 1) > 1


def _has_second(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except Exception:  # the end, or a frame too broken to be one
        return False
    return True


def _turned(image: Image.Image, orientation: int, remarks: list[Remark]) -> Image.Image:
    if orientation == 1:
        return image
    remarks.append(Remark.TURNED)
    return image.transpose(_TURNS[orientation - 2])


def _in_srgb(image: Image.Image, profile: bytes | None, remarks: list[Remark]) -> Image.Image:
    """L, LA, RGB or RGBA from these, CMYK or LAB."""
    if profile is not None and is_usable(image, profile):
        if is_srgb(profile):
            return image
        remarks.append(Remark.PROFILE)
        return to_srgb(image, profile)
    if profile is not None:
        remarks.append(Remark.BAD_PROFILE)
    if image.mode not in ("CMYK", "LAB"):
        return image
    remarks.append(Remark[image.mode])
    return image.convert("RGB")
