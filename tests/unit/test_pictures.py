"""Strangers' pictures come out as a viewer shows them, whatever their metadata; each remark tells what was done."""

import io
import struct
import tracemalloc
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ddpm_core.data.containers import is_image_head, picture_format
from ddpm_core.data.images import exact_pixels, fitted, remarks_of, to_pixels
from ddpm_core.data.pictures import BadImage, Picture, Remark, open_picture

LIMIT = 1_000_000
TIFF_TYPES = {"byte": 1, "short": 3, "long": 4, "rational": 5, "undefined": 7, "signed rational": 10}


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def opened(raw: bytes) -> Picture:
    return open_picture(raw, LIMIT)


def pixels_of(raw: bytes) -> NDArray[np.uint8]:
    return np.asarray(opened(raw).image)


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def png(rows: list[bytes], width: int, depth: int, colour: int, extra: bytes = b"", wrong: int = 0) -> bytes:
    """A PNG by hand: rows of packed samples, and chunks before the pixels."""
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", packed, wrong) + chunk(b"IEND", b"")


def with_chunks(data: bytes, extra: bytes) -> bytes:
    return data[:33] + extra + data[33:]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(data: bytes, extra: bytes) -> bytes:
    return data[:2] + extra + data[2:]


def exif(orientation: int | None, *more: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    """TIFF's form of tags, each (tag, type, count, its 4 bytes)."""
    turn = [] if orientation is None else [(0x0112, 3, 1, struct.pack(f"{order}HH", orientation, 0))]
    entries = sorted([*turn, *more])
    listed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", len(entries)) + listed + bytes(4)


PIXELS = noise(6, 8, 3)
SMOOTH = np.add.outer(np.arange(16) * 8, np.arange(24) * 4).astype(np.uint8)
PNG = encoded(Image.fromarray(PIXELS))
JPEG = encoded(Image.fromarray(SMOOTH), "JPEG", quality=95)
TURNED_PIXELS = np.rot90(PIXELS, -1)  # orientation 6: to be turned by 90 degrees clockwise


# Metadata


def _bad_rational(orientation: int) -> bytes:
    """An x resolution of -1/0 and one behind the end, as some cameras write."""
    entry = exif(orientation, (0x011A, 10, 1, struct.pack(">I", 50)), (0x011B, 5, 1, struct.pack(">I", 9999)))
    return entry + struct.pack(">ii", -1, 0)


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xE1, b"Exif\0\0" + _bad_rational(1)),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0MM"),
        segment(0xE1, b"Exif\0\0" + bytes(range(256)) * 200),
        segment(0xE1, b"Exif\0\0" + exif(9)),
        segment(0xE1, b"Exif\0\0" + exif(6)[:12]),
        segment(0xE0, b"JFIF\0"),
        segment(0xEE, b"Adobe"),
        segment(0xE2, b"MPF\0" + b"\xff" * 100),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM" + b"\xff" * 20),
        b"".join(segment(0xE0 + number % 16, bytes(65_000)) for number in range(40)),
        segment(0xFE, b"\xff\xda" * 30_000),
        segment(0xFE, b"") + b"junk" * 10,
        b"\xff\xff\xff",
    ],
    ids=[
        *("rational", "none", "cut", "garbage", "nine", "cut-tag", "jfif", "adobe", "mpf"),
        *("photoshop", "appn", "comment", "junk", "filling"),
    ],
)
def test_no_jpeg_is_refused_or_changed_for_its_metadata(extra: bytes) -> None:
    picture = opened(with_segments(JPEG, extra))
    np.testing.assert_array_equal(np.asarray(picture.image), pixels_of(JPEG))
    assert picture.remarks == ()


def test_an_orientation_beside_broken_tags_is_honoured() -> None:
    picture = opened(with_segments(JPEG, segment(0xE1, b"Exif\0\0" + _bad_rational(6))))
    np.testing.assert_array_equal(np.asarray(picture.image), np.rot90(pixels_of(JPEG), -1))
    assert picture.remarks == (Remark.TURNED,)


BOMB = zlib.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + BOMB) * 3,
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
        chunk(b"tEXt", b"Comment\0" + bytes(2_000_000)),
        chunk(b"tEXt", b"Comment\0hello", wrong=1),
        chunk(b"eXIf", exif(6), wrong=1),
        chunk(b"eXIf", _bad_rational(1)),
        chunk(b"eXIf", b"\xff" * 50),
        chunk(b"pHYs", b"\0"),
        chunk(b"gAMA", b"\0"),
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"cHRM", b""),
        chunk(b"acTL", b"\0"),
        chunk(b"fcTL", b"\0"),
        chunk(b"tIME", b""),
        chunk(b"prIv", bytes(100)),
    ],
)
def test_no_png_is_refused_or_changed_for_an_ancillary_chunk(extra: bytes) -> None:
    raw = with_chunks(PNG, extra)
    tracemalloc.start()
    try:
        picture = opened(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(picture.image), PIXELS)
    assert picture.remarks == ()
    assert peak < 3_000_000 + len(raw)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_of_a_critical_chunk_refuses(kind: bytes) -> None:
    place = PNG.index(kind)
    end = place + 4 + int.from_bytes(PNG[place - 4 : place])
    with pytest.raises(BadImage, match=f"the checksum of its {kind.decode()} is wrong") as error:
        opened(PNG[:end] + bytes([PNG[end] ^ 1]) + PNG[end + 1 :])
    assert error.value.kind == "undecodable"


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_orientation_is_honoured_in_each_format(prefix: bytes) -> None:
    image, tags = Image.fromarray(PIXELS), prefix + exif(6)
    files = {
        "PNG": with_chunks(PNG, chunk(b"eXIf", exif(6))),
        "WEBP": encoded(image, "WEBP", lossless=True, exif=tags),
        "TIFF": encoded(image, "TIFF", tiffinfo={0x0112: 6}),
        "TIFF, packed": encoded(image, "TIFF", tiffinfo={0x0112: 6}, compression="tiff_lzw"),
    }
    for name, raw in files.items():
        picture = opened(raw)
        np.testing.assert_array_equal(np.asarray(picture.image), TURNED_PIXELS, err_msg=name)
        assert picture.remarks == (Remark.TURNED,), name


def test_orientation_of_avif_is_that_of_its_transform_whatever_its_exif() -> None:
    """Lossy: a picture that is dark above and bright below."""
    dark_above = np.repeat(np.uint8([[0], [255]]), 32, axis=0).repeat(48, axis=1)
    plain = encoded(Image.fromarray(dark_above), "AVIF", quality=100, exif=exif(None, (0x0131, 2, 4, b"abc\0")))
    turned = encoded(Image.fromarray(dark_above), "AVIF", quality=100, exif=exif(6, (0x0131, 2, 4, b"abc\0")))
    broken = plain.replace(b"MM\0*", b"XX\0*")
    assert broken != plain
    for raw, expected in ((plain, dark_above), (turned, np.rot90(dark_above, -1)), (broken, dark_above)):
        picture = opened(raw)
        shown = np.asarray(picture.image.convert("L")).astype(int)
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).mean() < 3
        assert picture.remarks == ((Remark.TURNED,) if raw is turned else ())


@pytest.mark.parametrize("form", ["WEBP", "TIFF"])
def test_broken_tags_are_no_obstacle(form: str) -> None:
    image = Image.fromarray(PIXELS)
    if form == "WEBP":
        raw = encoded(image, "WEBP", lossless=True, exif=b"\xff" * 60, xmp=b"\0" * 60)
    else:  # pointers to nowhere, and numbers that are none
        raw = encoded(image, "TIFF", tiffinfo={700: b"\xff" * 9, 282: Fraction(0), 33723: b"x", 65000: b"y" * 70})
        for tag, value in ((34665, 0xFFFFFFFF), (34853, 7)):
            raw = _with_tag(raw, tag, value)
    np.testing.assert_array_equal(pixels_of(raw), PIXELS)


def _with_tag(raw: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with one more tag, its directory moved to the end."""
    first = int.from_bytes(raw[4:8], "little")
    count = int.from_bytes(raw[first : first + 2], "little")
    entries = raw[first + 2 : first + 2 + 12 * count] + struct.pack("<HHII", tag, 4, 1, value)
    return raw[:4] + struct.pack("<I", len(raw)) + raw[8:] + struct.pack("<H", count + 1) + entries + bytes(4)


# Colours

D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


def to_d50(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """Linear RGB under D65 -> XYZ under D50: the primaries scaled to white, adapted by Bradford's matrix."""
    white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    matrix = columns * np.linalg.solve(columns, white)
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD
    return adapted @ matrix


def srgb_decode(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_encode(value: NDArray[np.float64]) -> NDArray[np.float64]:
    value = np.clip(value, 0, 1)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def curve(gamma: float | None) -> bytes:
    """A power, or None for sRGB's curve as a table."""
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    table = np.rint(srgb_decode(np.linspace(0, 1, 1024)) * 65535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + table


def xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + np.rint(values * 65536).astype(">i4").tobytes()


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile of version 2 (ICC.1:2001-04): header, table of tags, tags."""
    named = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"t\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"\0",
    }
    tags = {**named, b"wtpt": xyz(D50), **tags}
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += np.rint(D50 * 65536).astype(">i4").tobytes() + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float | None) -> bytes:
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, to_d50(primaries).T), strict=True))
    return profile(b"RGB ", {**columns, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma))})


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": curve(gamma)})


ADOBE_PROFILE = rgb_profile(ADOBE, 2.19921875)
P3_PROFILE = rgb_profile(P3, None)
SRGB_PROFILE = rgb_profile(SRGB, None)
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


def test_a_large_profile_is_used() -> None:
    """Of more than a megabyte, and not to be packed small: Pillow's own limit is one."""
    stuffed = bytearray(ADOBE_PROFILE + np.random.default_rng(0).bytes(1_500_000))
    stuffed[:4] = len(stuffed).to_bytes(4)
    raw = with_chunks(encoded(Image.fromarray(COLOURS)), chunk(b"iCCP", b"t\0\0" + zlib.compress(bytes(stuffed))))
    assert np.abs(pixels_of(raw) - by_matrices(COLOURS, ADOBE, 2.19921875)).max() <= 2


def test_a_gamma_far_from_srgb_s_is_told() -> None:
    linear = chunk(b"gAMA", struct.pack(">I", 100_000))
    assert opened(with_chunks(PNG, linear)).remarks == (Remark.GAMMA,)
    assert opened(with_chunks(PNG, linear + chunk(b"sRGB", b"\0"))).remarks == ()


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


def cmyk_profile() -> bytes:
    """Of a printer whose inks are sRGB's opposites, through a table of 2^4 corners to Lab under D50."""
    corners = np.array([(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)], dtype=float)
    linear = (1 - corners[:, :3]) * (1 - corners[:, 3:])
    ratio = linear @ to_d50(SRGB).T / D50
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
    table = np.rint(lab * [255 / 100, 1, 1] + [0, 128, 128]).clip(0, 255).astype(np.uint8).tobytes()
    ramp = bytes(range(256))
    identity = np.rint(np.eye(3).ravel() * 65536).astype(">i4").tobytes()
    a2b = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + table + ramp * 3
    return profile(b"CMYK", {b"A2B0": a2b}).replace(b"mntrCMYKXYZ ", b"prtrCMYKLab ", 1)


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


# Depths and transparency


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


def test_floating_point_is_refused_in_words() -> None:
    for raw in (encoded(Image.new("F", (8, 8)), "TIFF"), b"Pf 1 1 -1.0\n" + bytes(4)):
        with pytest.raises(BadImage, match="floating point pixels, whose range is not known") as error:
            opened(raw)
        assert error.value.kind == "not read here"


# Frames


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_taken(form: str) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    options = {"lossless": True} if form == "WEBP" else {}
    several = opened(encoded(first, form, save_all=True, append_images=[second], **options))
    one = opened(encoded(first, form, **options))
    for picture, remarks in ((several, (Remark.FRAMES,)), (one, ())):
        assert (np.asarray(picture.image.convert("RGB")) == (255, 0, 0)).all()
        assert picture.remarks == remarks


def test_a_broken_second_frame_is_not_looked_at() -> None:
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in (0, 1)]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels_of(raw[:-30]), pixels_of(encoded(frames[0], "GIF")))


def test_a_photograph_of_two_views_is_one_photograph() -> None:
    views = [Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)]
    raw = encoded(views[0], "MPO", save_all=True, append_images=views[1:])
    assert raw.count(b"MPF\0")
    picture = opened(raw)
    assert np.abs(np.asarray(picture.image).astype(int) - SMOOTH).max() < 20
    assert picture.remarks == ()


# Limits


def test_the_limit_may_lie_above_pillow_s_own_and_leaves_that_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    pixels = noise(16, 24)
    for form in ("PNG", "TIFF", "GIF", "BMP", "WEBP", "AVIF"):
        assert to_pixels(encoded(Image.fromarray(pixels), form), 8, 1).shape == (8, 8, 1), form
        with pytest.raises(BadImage, match="absurdly large") as error:
            open_picture(encoded(Image.fromarray(pixels), form), 383)
        assert error.value.kind == "absurdly large"
    assert Image.MAX_IMAGE_PIXELS == 10


def test_sizes_told_elsewhere_than_in_the_header_count() -> None:
    gif = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
    place = gif.index(b",\0\0\0\0\x08\0\x08\0")
    gif[place + 5 : place + 9] = struct.pack("<HH", 60_000, 60_000)
    jp2 = bytearray(encoded(Image.new("L", (8, 8)), "JPEG2000"))
    place = jp2.index(b"\xff\x4f\xff\x51")
    jp2[place + 8 : place + 16] = jp2[place + 24 : place + 32] = struct.pack(">II", 60_000, 60_000)
    webp = bytearray(encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP", exif=exif(1)))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (15_000).to_bytes(3, "little") * 2
    for raw in (gif, jp2, webp):
        with pytest.raises(BadImage, match="absurdly large") as error:
            opened(bytes(raw))
        assert error.value.kind == "absurdly large"


def test_a_jpeg_of_many_scans_is_refused() -> None:
    raw = encoded(Image.fromarray(noise(16, 16)), "JPEG", progressive=True)
    opened(raw)
    place = raw.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match="scans; expected at most 100"):
        opened(raw[:place] + raw[place:-2] * 200 + raw[-2:])


# Formats

SMALL = Image.fromarray(noise(16, 16, 3, seed=3))
FILES = {
    "JPEG": encoded(SMALL, "JPEG", exif=exif(6), icc_profile=ADOBE_PROFILE),
    "PNG": encoded(SMALL, icc_profile=P3_PROFILE, exif=exif(3)),
    "WEBP": encoded(SMALL, "WEBP", exif=exif(1)),
    "BMP": encoded(SMALL, "BMP"),
    "GIF": encoded(SMALL, "GIF", save_all=True, append_images=[SMALL.rotate(90)]),
    "TIFF": encoded(SMALL, "TIFF", compression="tiff_lzw"),
    "PPM": encoded(SMALL, "PPM"),
    "JPEG2000": encoded(SMALL, "JPEG2000"),
    "AVIF": encoded(SMALL, "AVIF", exif=exif(6)),
}
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_a_format_is_told_by_its_head() -> None:
    for name, raw in FILES.items():
        assert picture_format(raw[:32]) == name
    more = {
        HEIC: "HEIC",
        b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic": "HEIC",
        b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif": "AVIF",
        **{f"P{number}\n8 8\n".encode(): "PPM" for number in range(1, 7)},
        **dict.fromkeys([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"], "TIFF"),
        encoded(SMALL, "JPEG2000", no_jp2=True)[:32]: "JPEG2000",
    }
    for head, name in more.items():
        assert picture_format(head) == name
        assert is_image_head(head)
    texts = [
        b"",
        b"BM is short for bitmap, you know. And",
        b"P5 files are grey",
        b"%PDF-1.4",
        b"{}",
        b"II*",
        b"RIFF1234WAVE",
    ]
    assert [text for text in texts if is_image_head(text)] == [b"P5 files are grey"]


def test_heic_says_what_it_needs() -> None:
    with pytest.raises(BadImage, match=r"HEIC, which needs pillow-heif \(pip install pillow-heif\)") as error:
        opened(HEIC)
    assert error.value.kind == "not read here"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "empty"),
        (np.zeros((0, 8), dtype=np.uint8), "empty"),
        (b"hello, world", "no image by content"),
        (PNG[:60], "undecodable"),
        (np.zeros((8, 8), dtype=np.float32), "not read here"),
        (np.zeros((2000, 2000), dtype=np.uint8), "absurdly large"),
    ],
)
def test_reasons_are_counted_by_kind(raw: bytes | NDArray[np.generic], kind: str) -> None:
    with pytest.raises(BadImage) as error:
        open_picture(raw, LIMIT)
    assert error.value.kind == kind


def test_another_form_is_a_kind_of_its_own() -> None:
    with pytest.raises(BadImage, match="8x6 pixels; expected 8x8") as error:
        exact_pixels(PNG, 8, 3)
    assert error.value.kind == "of another form"


@pytest.mark.parametrize("form", sorted(FILES))
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_damage_leaves_a_picture_or_one_line(form: str, data: st.DataObject) -> None:
    raw = bytearray(FILES[form])
    for _ in range(data.draw(st.integers(1, 8))):
        # Headers are where decoders go astray.
        place = data.draw(st.one_of(st.integers(0, min(len(raw), 300) - 1), st.integers(0, len(raw) - 1)))
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    try:
        picture = open_picture(bytes(raw[:cut]), LIMIT)
    except BadImage as error:
        reason = str(error)
    else:
        reason = ""
        check_whole(picture)
    assert "\n" not in reason


def check_whole(picture: Picture) -> None:
    assert picture.image.mode in ("L", "LA", "RGB", "RGBA")
    assert picture.image.width * picture.image.height <= LIMIT
    assert set(picture.remarks) <= set(Remark)
    assert fitted(picture, 4, 3).shape == (4, 4, 3)
