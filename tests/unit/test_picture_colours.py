"""Colours of any profile, mode and coding become sRGB's; what is sRGB already keeps every bit."""

import struct
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pytest
from icc_profiles import (
    ADOBE,
    ADOBE_PROFILE,
    D50,
    P3,
    P3_PROFILE,
    SRGB,
    SRGB_PROFILE,
    cmyk_profile,
    grey_profile,
    srgb_decode,
    srgb_encode,
    to_d50,
)
from numpy.typing import NDArray
from picture_files import (
    BOMB,
    PIXELS,
    PNG,
    SMOOTH,
    chunk,
    encoded,
    noise,
    opened,
    pixels_of,
    segment,
    with_chunks,
    with_segments,
)
from PIL import Image, ImageCms

from ddpm_core.data.pictures import Remark

COLOURS = noise(16, 16, 3, seed=1)


def by_matrices(
    pixels: NDArray[np.uint8], primaries: tuple[tuple[float, float], ...], gamma: float | None
) -> NDArray[np.float64]:
    """The same colours in sRGB, in levels."""
    values = pixels / 255.0
    linear = srgb_decode(values) if gamma is None else values**gamma
    return 255 * srgb_encode(linear @ (np.linalg.inv(to_d50(SRGB)) @ to_d50(primaries)).T)


@pytest.mark.parametrize(
    ("embedded", "primaries", "gamma"), [(ADOBE_PROFILE, ADOBE, 2.19921875), (P3_PROFILE, P3, None)]
)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_colours_of_a_profile_become_srgb_s(
    form: str, embedded: bytes, primaries: tuple[tuple[float, float], ...], gamma: float | None
) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    picture = opened(encoded(Image.fromarray(COLOURS), form, icc_profile=embedded, **options))
    expected = by_matrices(COLOURS, primaries, gamma)
    assert np.abs(np.asarray(picture.image) - expected).max() <= 2
    assert np.abs(COLOURS - expected).max() > 20
    assert picture.remarks == (Remark.PROFILE,)


@pytest.mark.parametrize("form", ["JPEG", "AVIF"])
def test_colours_of_a_profile_in_lossy_forms_become_srgb_s(form: str) -> None:
    """Against what is decoded without it."""
    colours = Image.fromarray(np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], axis=-1))
    plain, marked = (opened(encoded(colours, form, quality=100, **more)) for more in ({}, {"icc_profile": P3_PROFILE}))
    expected = by_matrices(np.asarray(plain.image), P3, None)
    assert np.abs(np.asarray(marked.image) - expected).max() <= 2
    assert np.abs(np.asarray(plain.image) - expected).max() > 8
    assert (plain.remarks, marked.remarks) == ((), (Remark.PROFILE,))


def test_a_profile_in_pieces_out_of_order_is_joined() -> None:
    plain = encoded(Image.fromarray(SMOOTH).convert("RGB"), "JPEG", quality=100)
    half = len(ADOBE_PROFILE) // 2
    pieces = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 2]) + part)
        for number, part in ((2, ADOBE_PROFILE[half:]), (1, ADOBE_PROFILE[:half]))
    ]
    picture = opened(with_segments(plain, b"".join(pieces)))
    expected = by_matrices(pixels_of(plain), ADOBE, 2.19921875)
    assert np.abs(np.asarray(picture.image) - expected).max() <= 2
    assert picture.remarks == (Remark.PROFILE,)
    cut = opened(with_segments(plain, pieces[1]))
    np.testing.assert_array_equal(np.asarray(cut.image), pixels_of(plain))
    assert cut.remarks == (Remark.BAD_PROFILE,)


def test_alpha_and_palettes_keep_their_place_beside_a_profile() -> None:
    pixels = noise(8, 8, 4, seed=2)
    shown = pixels_of(encoded(Image.fromarray(pixels), icc_profile=ADOBE_PROFILE))
    np.testing.assert_array_equal(shown[..., 3], pixels[..., 3])
    assert np.abs(shown[..., :3] - by_matrices(pixels[..., :3], ADOBE, 2.19921875)).max() <= 2
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    shown = pixels_of(encoded(palette, icc_profile=ADOBE_PROFILE))
    assert np.abs(shown - by_matrices(np.uint8([10, 200, 30]), ADOBE, 2.19921875)).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_greys_of_a_profile_become_srgb_s(mode: str) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = opened(encoded(Image.fromarray(levels).convert(mode), icc_profile=grey_profile(1.0)))
    shown = np.asarray(picture.image).reshape(16, 16, -1)
    assert np.abs(shown[..., 0] - 255 * srgb_encode(levels / 255.0)).max() <= 1
    assert picture.image.mode == mode
    assert picture.remarks == (Remark.PROFILE,)


@pytest.mark.parametrize("embedded", [SRGB_PROFILE, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16, 4), (16, 16)])
def test_srgb_s_own_profile_leaves_every_bit(embedded: bytes, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    picture = opened(encoded(Image.fromarray(pixels), icc_profile=embedded))
    np.testing.assert_array_equal(np.asarray(picture.image), pixels)
    assert picture.remarks == ()


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"t\0\0" + zlib.compress(b"no profile" * 50)),
        chunk(b"iCCP", b"t\0\0" + zlib.compress(ADOBE_PROFILE[:300])),
        chunk(b"iCCP", b"t\0\0" + zlib.compress(grey_profile(1.0))),
        chunk(b"iCCP", b"t\0\0" + zlib.compress(ADOBE_PROFILE), wrong=1),
        chunk(b"iCCP", b"t\0\0" + zlib.compress(ADOBE_PROFILE)[:-20]),
        chunk(b"iCCP", b"t\0\0" + BOMB),
        chunk(b"iCCP", b"t\0\1" + zlib.compress(ADOBE_PROFILE)),
        chunk(b"iCCP", b""),
    ],
    ids=["garbage", "cut", "grey-for-colour", "checksum", "cut-zlib", "bomb", "method", "empty"],
)
def test_a_profile_of_no_use_is_passed_over_with_a_remark(extra: bytes) -> None:
    picture = opened(with_chunks(PNG, extra))
    np.testing.assert_array_equal(np.asarray(picture.image), PIXELS)
    assert picture.remarks == (Remark.BAD_PROFILE,)


def test_a_profile_is_not_unpacked_beyond_what_would_be_used() -> None:
    raw = with_chunks(PNG, chunk(b"iCCP", b"t\0\0" + BOMB))
    tracemalloc.start()
    try:
        opened(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 15_000_000


def test_a_large_profile_is_used() -> None:
    """Of more than a megabyte, and not to be packed small: Pillow's own limit is one."""
    stuffed = bytearray(ADOBE_PROFILE + np.random.default_rng(0).bytes(1_500_000))
    stuffed[:4] = len(stuffed).to_bytes(4)
    raw = with_chunks(encoded(Image.fromarray(COLOURS)), chunk(b"iCCP", b"t\0\0" + zlib.compress(bytes(stuffed))))
    assert np.abs(pixels_of(raw) - by_matrices(COLOURS, ADOBE, 2.19921875)).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_a_profile_over_4_mib_is_passed_over_with_a_remark(form: str) -> None:
    stuffed = bytearray(ADOBE_PROFILE) + bytes((4 << 20) - len(ADOBE_PROFILE) + 1)
    for size, remark in ((4 << 20, Remark.PROFILE), ((4 << 20) + 1, Remark.BAD_PROFILE)):
        stuffed[:4] = size.to_bytes(4)
        picture = opened(encoded(Image.fromarray(COLOURS), form, icc_profile=bytes(stuffed[:size])))
        assert picture.remarks == (remark,), size


def test_a_gamma_far_from_srgb_s_is_told() -> None:
    linear = chunk(b"gAMA", struct.pack(">I", 100_000))
    assert opened(with_chunks(PNG, linear)).remarks == (Remark.GAMMA,)
    np.testing.assert_array_equal(pixels_of(with_chunks(PNG, linear)), PIXELS)
    for named in (chunk(b"sRGB", b"\0"), chunk(b"cICP", bytes([1, 13, 0, 1]))):
        assert opened(with_chunks(PNG, linear + named)).remarks == ()


def test_lab_becomes_srgb() -> None:
    lab = np.array([[[50, 0, 0], [60, 20, -30], [80, -25, 40], [20, 10, 10]]])
    stored = np.stack([np.rint(lab[..., 0] * 2.55), lab[..., 1] & 255, lab[..., 2] & 255], axis=-1).astype(np.uint8)
    raw = bytearray(encoded(Image.fromarray(stored), "TIFF"))
    place = raw.index(struct.pack("<HHIHxx", 262, 3, 1, 2))  # PhotometricInterpretation: RGB -> CIELab
    raw[place + 8] = 8
    picture = opened(bytes(raw))
    middle = (np.rint(lab[..., 0] * 2.55) / 2.55 + 16) / 116
    f = np.stack([middle + lab[..., 1] / 500, middle, middle - lab[..., 2] / 200], axis=-1)
    linear = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) @ np.linalg.inv(to_d50(SRGB)).T
    assert np.abs(np.asarray(picture.image) - 255 * srgb_encode(linear)).max() <= 2
    assert picture.remarks == (Remark.LAB,)


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_cmyk_is_converted_plainly(form: str) -> None:
    inks = np.uint8([[[255, 0, 255, 0], [0, 0, 0, 128], [40, 80, 120, 60], [0, 0, 0, 0]]]).repeat(8, 0).repeat(8, 1)
    raw = encoded(Image.fromarray(inks, "CMYK"), form, **({"quality": 100} if form == "JPEG" else {}))
    picture = opened(raw)
    expected = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:].astype(int)) / 255
    assert np.abs(np.asarray(picture.image) - expected).max() <= (6 if form == "JPEG" else 1)
    assert picture.remarks == (Remark.CMYK,)


@pytest.mark.parametrize("coding", ["CMYK", "YCCK"])
def test_both_of_adobe_s_codings_of_cmyk_are_inverted(coding: str) -> None:
    """By another encoder: 255 is no ink, as Photoshop stores it."""
    inks = np.broadcast_to(np.uint8([40, 80, 120, 60]), (16, 16, 4))
    raw = imagecodecs.jpeg8_encode(255 - inks, level=100, colorspace="CMYK", outcolorspace=coding)
    place = raw.index(b"Adobe")
    assert raw[place + 11] == (2 if coding == "YCCK" else 0)
    assert np.abs(pixels_of(raw) - (255 - inks[0, 0, :3].astype(int)) * 195 / 255).max() <= 3


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_cmyk_goes_by_its_profile(form: str) -> None:
    """At the corners the table says it all: full inks, each alone, and paper."""
    inks = np.uint8([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255]]])
    inks = inks.repeat(16, 0).repeat(16, 1)
    raw = encoded(
        Image.fromarray(inks, "CMYK"), form, icc_profile=cmyk_profile(), **({} if form == "TIFF" else {"quality": 100})
    )
    picture = opened(raw)
    expected = np.where(inks[..., 3:] > 0, 0, 255 - inks[..., :3].astype(int))
    assert np.abs(np.asarray(picture.image)[8, 8::16] - expected[8, 8::16]).max() <= 8  # Lab in 8 bits
    assert picture.remarks == (Remark.PROFILE,)
