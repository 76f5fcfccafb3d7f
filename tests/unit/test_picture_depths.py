"""Channels of 1 to 16 bits become 8, and every kind of transparency alpha, to the right value."""

import struct
from fractions import Fraction

import imagecodecs
import numpy as np
import pytest
from picture_files import (
    chunk,
    encoded,
    noise,
    opened,
    pixels_of,
    png,
)
from PIL import Image

from ddpm_core.data.images import fitted, remarks_of
from ddpm_core.data.pictures import BadImage, Picture, Remark


def packed(values: list[int], bits: int) -> bytes:
    return np.packbits([[value >> (bits - 1 - bit) & 1 for bit in range(bits)] for value in values]).tobytes()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("keyed", [False, True])
def test_few_bits_of_grey_are_spread_and_a_key_is_clear(bits: int, keyed: bool) -> None:
    values = [value % 2**bits for value in (0, 1, 2, 3, 5, 9, 14, 15)]
    key = chunk(b"tRNS", struct.pack(">H", 1)) if keyed else b""
    picture = opened(png([packed(values, bits)], 8, bits, 0, key))
    levels = [value * 255 // (2**bits - 1) for value in values]
    assert picture.image.mode == ("LA" if keyed else "L")
    assert np.asarray(picture.image.getchannel(0))[0].tolist() == levels
    shown = [255 if keyed and value == 1 else level for value, level in zip(values, levels, strict=True)]
    assert fitted_row(picture) == shown


def fitted_row(picture: Picture) -> list[int]:
    square = Picture(image=picture.image.resize((8, 8), Image.Resampling.NEAREST), remarks=())
    return [int(value) for value in fitted(square, 8, 1)[0, :, 0]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_few_bits_with_alpha(bits: int) -> None:
    palette = noise(2**bits, 3, seed=bits)
    alphas = noise(2**bits, seed=bits + 10)
    values = [value % 2**bits for value in range(8)]
    extra = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", alphas.tobytes())
    shown = pixels_of(png([packed(values, bits)], 8, bits, 3, extra))
    np.testing.assert_array_equal(shown[0], np.c_[palette, alphas][values])
    one_clear = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", b"\xff\0")
    shown = pixels_of(png([packed(values, bits)], 8, bits, 3, one_clear))
    assert shown[0, :, 3].tolist() == [0 if value == 1 else 255 for value in values]


def test_a_colour_key_makes_one_colour_clear() -> None:
    colours = np.uint8([[[1, 2, 3], [1, 2, 4], [9, 9, 9], [1, 2, 3]]])
    picture = opened(png([colours.tobytes()], 4, 8, 2, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))))
    assert np.asarray(picture.image)[0, :, 3].tolist() == [0, 255, 255, 0]
    assert remarks_of(picture, 3) == (Remark.ON_WHITE,)
    assert remarks_of(picture, 4) == ()


DEEP = np.array([0, 128, 129, 255, 256, 32896, 65407, 65535], dtype=np.uint16)
DEEP_LEVELS = [round(Fraction(int(value), 257)) for value in DEEP]


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_rounded_in_every_png(colour: int, channels: int) -> None:
    values = DEEP.repeat(channels).reshape(1, 8, channels)
    picture = opened(png([values.astype(">u2").tobytes()], 8, 16, colour))
    for channel in picture.image.split():
        assert np.asarray(channel)[0].tolist() == DEEP_LEVELS
    assert len(picture.image.getbands()) == channels
    assert picture.remarks == (Remark.DEPTH,)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_a_key_of_sixteen_bits_is_compared_whole(colour: int, channels: int) -> None:
    """255 and 256 differ in the key and in no level that is left."""
    values = DEEP.repeat(channels).reshape(1, 8, channels)
    key = chunk(b"tRNS", struct.pack(">H", 255) * channels)
    picture = opened(png([values.astype(">u2").tobytes()], 8, 16, colour, key))
    assert np.asarray(picture.image.getchannel("A"))[0].tolist() == [255, 255, 255, 0, 255, 255, 255, 255]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_of_grey_tiff_in_both_byte_orders(mode: str) -> None:
    raw = encoded(Image.frombytes(mode, (8, 1), DEEP.astype("<u2" if mode == "I;16" else ">u2").tobytes()), "TIFF")
    assert raw[:2] == (b"II" if mode == "I;16" else b"MM")
    picture = opened(raw)
    assert np.asarray(picture.image)[0].tolist() == DEEP_LEVELS
    assert picture.remarks == (Remark.DEPTH,)


def test_sixteen_bits_of_colour_tiff_are_a_level_off_at_most() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 8, 3)).astype("<u2")
    tags = [
        *((256, 3, 1, 8), (257, 3, 1, 4), (258, 3, 3, 8 + 192), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, 192)),
    ]
    listed = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    raw = b"II*\0" + struct.pack("<I", 8 + 192 + 6) + values.tobytes() + struct.pack("<3H", 16, 16, 16)
    picture = opened(raw + struct.pack("<H", len(tags)) + listed + bytes(4))
    assert np.abs(np.asarray(picture.image) - values / 257.0).max() <= 1.01
    assert picture.remarks == (Remark.DEPTH,)


def test_sixteen_bits_of_colour_ppm() -> None:
    picture = opened(b"P6 8 1 65535\n" + DEEP.repeat(3).astype(">u2").tobytes())
    assert np.asarray(picture.image)[0, :, 1].tolist() == DEEP_LEVELS
    assert picture.remarks == (Remark.DEPTH,)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_more_than_8_bits_of_jpeg_2000_are_scaled(channels: int, bits: int) -> None:
    """White stays white: rounded up carelessly it becomes 0."""
    values = np.random.default_rng(0).integers(0, 2**bits, (16, 16, channels)).astype(np.uint8 if bits == 8 else "u2")
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    raw = imagecodecs.jpeg2k_encode(values.squeeze(), codecformat="jp2", reversible=True, bitspersample=bits)
    picture = opened(raw)
    shown = np.asarray(picture.image).reshape(16, 16, channels)
    assert np.abs(shown - values * (255 / (2**bits - 1))).max() <= (0 if bits == 8 else 0.56)
    assert shown[0, :2].tolist() == [[0] * channels, [255] * channels]
    assert picture.remarks == (() if bits == 8 else (Remark.DEPTH,))


def test_12_bits_in_16_come_out_dark() -> None:
    picture = opened(png([np.full(3, 4095, ">u2").tobytes()], 1, 16, 2))
    assert np.asarray(picture.image).tolist() == [[[16, 16, 16]]]


def test_floating_point_is_refused_in_words() -> None:
    for raw in (encoded(Image.new("F", (8, 8)), "TIFF"), b"Pf 1 1 -1.0\n" + bytes(4)):
        with pytest.raises(BadImage, match="floating point pixels, whose range is not known") as error:
            opened(raw)
        assert error.value.kind == "not read here"
