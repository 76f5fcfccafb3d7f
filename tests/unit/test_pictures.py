"""Strangers' pictures come out as a viewer shows them, whatever their metadata; each remark tells what was done."""

import io
import struct
import sys
import tracemalloc
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from icc_profiles import ADOBE_PROFILE, P3_PROFILE
from numpy.typing import NDArray
from picture_files import (
    BOMB,
    JPEG,
    LIMIT,
    PIXELS,
    PNG,
    SMOOTH,
    TURNED_PIXELS,
    chunk,
    encoded,
    exif,
    noise,
    opened,
    pixels_of,
    segment,
    with_chunks,
    with_segments,
)
from PIL import Image

from ddpm_core.data.images import exact_pixels, fitted, to_pixels
from ddpm_core.data.pictures import BadImage, Picture, Remark, open_picture
from ddpm_core.data.pictures.containers import is_image_head, picture_format


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
        chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)),
        chunk(b"cICP", bytes([9, 16, 0, 1])),
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


def test_heic_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(BadImage, match=r"HEIC, which needs pillow-heif \(pip install pillow-heif\)") as error:
        opened(HEIC)
    assert error.value.kind == "not read here"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_heic_is_read_where_its_library_is(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what stands for it here: it is given the file and turns the picture itself."""
    pixels = noise(6, 8, len(mode))
    given: list[bytes] = []

    def heif_image_file(file: io.BytesIO) -> Image.Image:
        given.append(file.read())
        return Image.fromarray(pixels)

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(HeifImageFile=heif_image_file))
    picture = opened(HEIC)
    np.testing.assert_array_equal(np.asarray(picture.image), pixels)
    assert (given, picture.remarks) == ([HEIC], ())
    with pytest.raises(BadImage, match="absurdly large: 8 x 6 pixels"):
        open_picture(HEIC, 47)


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
