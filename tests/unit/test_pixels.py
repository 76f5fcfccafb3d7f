"""Any image becomes the right square of 8-bit pixels, or is refused with its reason; nothing warns."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ddpm_core.data.images import BadImage, decode_png, encode_png, to_pixels
from ddpm_core.data.pixels import to_uint8, to_unit


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@given(size=st.integers(4, 12), channels=st.sampled_from([1, 3]), seed=st.integers(0, 1000), as_file=st.booleans())
@settings(max_examples=50, deadline=None)
def test_an_image_that_fits_keeps_every_bit(size: int, channels: int, seed: int, as_file: bool) -> None:
    pixels = noise(size, size, channels, seed=seed)
    again = to_pixels(encode_png(pixels) if as_file else pixels, size, channels)
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, pixels)
    np.testing.assert_array_equal(decode_png(encode_png(again)), pixels)


def test_png_has_pixels_and_no_metadata() -> None:
    data = encode_png(noise(8, 8, 3))
    assert data == encode_png(noise(8, 8, 3))
    kinds, place = [], 8
    while place < len(data):
        size = struct.unpack_from(">I", data, place)[0]
        kinds.append(data[place + 4 : place + 8])
        place += 12 + size
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize(("height", "width"), [(8, 14), (14, 8), (9, 8)])
def test_the_centre_square_is_kept(height: int, width: int) -> None:
    pixels = noise(height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    np.testing.assert_array_equal(to_pixels(pixels, 8, 1)[..., 0], pixels[top : top + 8, left : left + 8])


def test_making_smaller_does_not_alias() -> None:
    """A fine checkerboard is grey from afar; taking every fourth pixel would give black or white."""
    coordinator = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = to_pixels(coordinator.astype(np.uint8), 16, 1)[2:-2, 2:-2]  # the edge sees less of it
    assert np.abs(small.astype(int) - 127.5).max() < 3


@pytest.mark.parametrize("size", [16, 5])
def test_one_colour_stays_that_colour_at_any_size(size: int) -> None:
    image = Image.new("RGB", (9, 13), (10, 200, 77))
    assert (to_pixels(encoded(image), size, 3) == (10, 200, 77)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    """The camera's pixels, turned by the rule of the EXIF standard, are what a viewer shows."""
    turns: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
        1: lambda seen: seen,
        2: np.fliplr,
        3: lambda seen: np.rot90(seen, 2),
        4: np.flipud,
        5: lambda seen: seen.T,
        6: lambda seen: np.rot90(seen, 1),
        7: lambda seen: np.rot90(seen, 2).T,
        8: lambda seen: np.rot90(seen, -1),
    }
    seen = noise(8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](seen)))
    np.testing.assert_array_equal(to_pixels(encoded(stored, exif=exif), 8, 1)[..., 0], seen)


GREEN = (0, 128, 0)
GREEN_GREY = round(128 * 0.587)


def _palette() -> Image.Image:
    image = Image.new("P", (8, 8), 3)
    image.putpalette([255, 0, 0] * 3 + list(GREEN))
    return image


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(Image.new("RGB", (8, 8), GREEN)), GREEN),
        (encoded(_palette()), GREEN),
        (encoded(_palette(), "GIF"), GREEN),
        (encoded(_palette(), transparency=3), (255, 255, 255)),
        (encoded(Image.new("RGB", (8, 8), GREEN), transparency=GREEN), (255, 255, 255)),
        (encoded(Image.new("RGBA", (8, 8), (*GREEN, 255))), GREEN),
        (encoded(Image.new("RGBA", (8, 8), (*GREEN, 0))), (255, 255, 255)),
        (encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 51))), (204, 204, 204)),
        (encoded(Image.new("LA", (8, 8), (100, 255))), (100, 100, 100)),
        (encoded(Image.new("LA", (8, 8), (100, 0))), (255, 255, 255)),
        (encoded(Image.new("L", (8, 8), 100)), (100, 100, 100)),
        (encoded(Image.new("1", (8, 8), 1)), (255, 255, 255)),
        (encoded(Image.new("CMYK", (8, 8), (255, 0, 255, 127)), "TIFF"), GREEN),
        (encoded(Image.new("YCbCr", (8, 8), (50, 128, 128)), "TIFF"), (50, 50, 50)),
    ],
    ids=[
        "rgb",
        "palette",
        "gif",
        "palette-clear",
        "rgb-clear",
        "rgba",
        "rgba-clear",
        "rgba-half",
        "la",
        "la-clear",
        "l",
        "1",
        "cmyk",
        "ycbcr",
    ],
)
def test_every_colour_mode_becomes_colour_and_grey(data: bytes, colour: tuple[int, int, int]) -> None:
    assert (to_pixels(data, 8, 3) == colour).all()
    grey = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    assert np.abs(to_pixels(data, 8, 1) - grey).max() <= 0.51


def test_cmyk_jpeg_is_not_inverted() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (255, 0, 255, 127)), "JPEG", quality=100)
    assert np.abs(to_pixels(data, 8, 3).astype(int) - GREEN).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PGM"])
def test_sixteen_bit_grey_is_scaled(form: str) -> None:
    levels = np.array([0, 128, 129, 257, 32767, 32896, 65407, 65535] * 8, dtype=np.uint16).reshape(8, 8)
    data = (
        b"P5 8 8 65535\n" + levels.astype(">u2").tobytes() if form == "PGM" else encoded(Image.fromarray(levels), form)
    )
    assert to_pixels(data, 8, 1)[0, :, 0].tolist() == [0, 0, 1, 1, 127, 128, 255, 255]


@pytest.mark.parametrize("channels", [2, 4])
def test_arrays_with_alpha_are_laid_on_white(channels: int) -> None:
    assert (to_pixels(np.zeros((8, 8, channels), dtype=np.uint8), 8, 1) == 255).all()


JPEG = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
PNG = encoded(Image.fromarray(noise(64, 64, 3)))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty file"),
        (b"\x00" * 100, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "not an image"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded: image file is truncated"),
        (PNG[: len(PNG) // 2], "cannot be decoded"),
        (PNG[:1000] + b"\xff" * 50 + PNG[1050:], "cannot be decoded"),
        (png_header(8, 8), "cannot be decoded"),
        (png_header(8001, 8000), r"absurdly large: 8001 x 8000 pixels, more than max_image_pixels = 64000000"),
        (png_header(60_000, 60_000), "absurdly large"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "floating point"),
        (encoded(Image.new("I", (8, 8), 70_000), "TIFF"), "grey values from 70000 to 70000"),
        (np.zeros((0, 8), dtype=np.uint8), "no pixels: 8 x 0"),
        (np.zeros((8, 8, 5), dtype=np.uint8), r"uint8 \[8, 8, 5\]"),
        (np.zeros((8, 8), dtype=np.float32), "an array of float32"),
    ],
    ids=[
        "empty",
        "zeros",
        "eps",
        "cut-jpeg",
        "cut-png",
        "broken-png",
        "no-data",
        "bomb",
        "big-bomb",
        "float",
        "int32",
        "no-pixels",
        "channels",
        "type",
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(raw: bytes | NDArray[np.generic], reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as error:
        to_pixels(raw, 8, 3)
    assert "\n" not in str(error.value)


def test_the_limit_of_pixels_is_the_config_s() -> None:
    data = encoded(Image.new("L", (20, 10)))
    assert to_pixels(data, 8, 1, 200).shape == (8, 8, 1)
    with pytest.raises(BadImage, match="absurdly large: 20 x 10 pixels, more than max_image_pixels = 199"):
        to_pixels(data, 8, 1, 199)


@given(
    data=st.binary(max_size=300), start=st.sampled_from([b"", PNG[:60], JPEG[:200], b"GIF89a", b"P5 4 4 255\n", b"BM"])
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_raise_anything_else(data: bytes, start: bytes) -> None:
    try:
        pixels = to_pixels(start + data, 4, 3)
    except BadImage:
        return
    assert pixels.shape == (4, 4, 3)


def test_levels_go_there_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    unit = to_unit(levels)
    assert unit.dtype == torch.float32
    assert (unit.min().item(), unit.max().item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(unit), levels)


def test_what_lies_between_levels_or_outside_is_rounded_and_clamped() -> None:
    x = torch.tensor([-5.0, -1.0, 0.0, 1 / 127.5, 1.0, 5.0]).reshape(1, 1, 1, 6)
    # 0 lies between 127 and 128: the even one.
    assert to_uint8(x).flatten().tolist() == [0, 0, 128, 128, 255, 255]
