"""Image files as bytes: which format they are of, and the file without the metadata that no pixel depends on.

A decoder that never sees a file's comments, thumbnails and camera records can neither stumble over them nor be made to
unpack them. What does matter beside the pixels (an ICC profile, an orientation, whether more frames follow) is read here.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

from PIL import Image

HEAD_BYTES = 32
"""So many tell a format."""
MAX_PROFILE_BYTES = 4 << 20
"""A longer ICC profile is not used; those of printers come to 3 MB."""
_MAX_SCANS = 100
"""Of a progressive JPEG, each of which costs the time of all its pixels; encoders write about 10."""
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")
"""Of a segment that says how long it is."""
_START_OF_SCAN = 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ONE_SCAN = {0xC0, 0xC1}
"""Frames whose components may come in one scan: all that are not progressive, of those that are decoded."""
_PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_ORIENTATION = 0x0112
_BROKEN = b""
"""Stands for a profile that is there, and no use."""

_HEAD = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)"
    rb"|(?P<PNG>\x89PNG\r\n\x1a\n)"
    rb"|(?P<WEBP>RIFF....WEBP)"
    rb"|(?P<BMP>BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0)"  # the size of the header that follows: one of seven
    rb"|(?P<GIF>GIF8[79]a)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])"
    rb"|(?P<PPM>P[1-6f]\s)"
    rb"|(?P<JPEG2000>\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n)"
    rb"|(?P<HEIC>.{4}ftyp(?:hei[cxms]|hev[cxms]|(?:mif1|msf1)(?:.{4})+?hei[cx]))"
    rb"|(?P<AVIF>.{4}ftyp(?:avi[fs]|mif1|msf1))",
    re.DOTALL,
)


def picture_format(head: bytes) -> str | None:
    """The format that a file's first 32 bytes are of.

    Returns:
        JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM (with PGM, PBM), JPEG2000, AVIF or HEIC; None for anything else.
    """
    found = _HEAD.match(head[:HEAD_BYTES])
    return found.lastgroup if found else None


def is_image_head(head: bytes) -> bool:
    """Whether a file's first 32 bytes are those of a format that is read here (HEIC: if pillow-heif is there)."""
    return picture_format(head) is not None


@dataclass(frozen=True, kw_only=True)
class Container:
    """An image file, taken apart."""

    data: bytes
    """The file, without what no pixel depends on."""
    profile: bytes | None = None
    """Its ICC profile; empty if it cannot be read. None where it has none, or its decoder tells."""
    orientation: int | None = None
    """By EXIF, 1 to 8; None where its decoder tells."""
    several: bool | None = None
    """Whether more frames follow the first; None where its decoder tells."""
    gamma: float | None = None
    """That a PNG asks for without naming its colours otherwise."""


def take_apart(raw: bytes, kind: str) -> Container:
    """A file of this format (see picture_format).

    Raises:
        ValueError, struct.error, IndexError: if it is damaged.
    """
    if kind == "PNG":
        return _png(raw)
    if kind == "JPEG":
        return _jpeg(raw)
    if kind == "TIFF" and raw[2:3] + raw[3:4] in (b"*\0", b"\0*"):
        return _tiff(raw)
    if kind == "AVIF":
        return Container(data=_without_exif(raw))
    return Container(data=raw)


def orientation_of(exif: bytes) -> int:
    """1 to 8; 1, as it lies, if the EXIF says nothing or is broken."""
    reading = Image.Exif()
    try:
        reading.load(exif)
        value = reading.get(_ORIENTATION, 1)
    except Exception:  # of a stranger's bytes, anything; that a record is broken says nothing of the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png(raw: bytes) -> Container:
    """Its header, palette, transparency and pixels; a wrong checksum costs an ancillary chunk itself, any other the file."""
    dropped: list[tuple[int, int]] = []
    said: dict[bytes, bytes] = {}
    end, kind = 8, b""
    while kind != b"IEND" and end + 8 <= len(raw):
        start = end
        size, kind = struct.unpack_from(">I4s", raw, start)
        end += 12 + size
        whole = end <= len(raw)
        sound = whole and zlib.crc32(raw[start + 4 : end - 4]) == int.from_bytes(raw[end - 4 : end])
        if kind in _PNG_PIXELS:
            if whole and not sound:
                raise ValueError(f"the checksum of its {kind.decode()} is wrong")
        elif kind[:1].islower() and not (kind == b"tRNS" and sound):
            dropped.append((start, min(end, len(raw))))
            if sound or kind == b"iCCP":
                said[kind] = raw[start + 8 : end - 4] if sound else _BROKEN
    if not said:
        return Container(data=_without(raw, dropped), orientation=1, several=False)
    named = not said.keys().isdisjoint({b"iCCP", b"sRGB", b"cICP"})
    return Container(
        data=_without(raw, dropped),
        profile=_inflated(said[b"iCCP"]) if b"iCCP" in said else None,
        orientation=orientation_of(said[b"eXIf"]) if b"eXIf" in said else 1,
        several=int.from_bytes(said.get(b"acTL", b"")[:4]) > 1,
        gamma=int.from_bytes(said[b"gAMA"]) / 100_000 if len(said.get(b"gAMA", b"")) == 4 and not named else None,
    )


def _without(raw: bytes, dropped: list[tuple[int, int]]) -> bytes:
    """The bytes outside these places, which are in order."""
    if not dropped:
        return raw
    starts = [0, *(end for _, end in dropped)]
    ends = [*(start for start, _ in dropped), len(raw)]
    return b"".join(raw[start:end] for start, end in zip(starts, ends, strict=True))


def _inflated(chunk: bytes) -> bytes:
    """The profile of an iCCP chunk: a name, 0, the method 0, the profile as zlib packs it."""
    packed = chunk.partition(b"\0")[2]
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return _BROKEN
    return profile if unpacking.eof and packed[:1] == b"\0" else _BROKEN


def _jpeg(raw: bytes) -> Container:
    """Its tables and scans, and of the APPn what says how colours are coded: JFIF's and Adobe's.

    The second view of an MPO, the map behind a phone's photograph and what else follows the image is not looked for:
    such a file is one photograph.
    """
    dropped: list[tuple[int, int]] = []
    exif, parts = b"", []
    end, marker, frame = 2, 0, 0
    while (found := _JPEG_MARKER.search(raw, end)) and (marker := raw[found.end() - 1]) != _START_OF_SCAN:
        start = found.start()
        if start > end:  # filling, or strays
            dropped.append((end, start))
        end = start + 2 + max(2, int.from_bytes(raw[start + 2 : start + 4]))
        if marker < 0xE0:
            frame = start if marker in _FRAMES else frame
            continue
        body = raw[start + 4 : end]
        if not _tells_pixels(marker, body):
            dropped.append((start, end))
        if marker == 0xE1 and body[:6] == b"Exif\0\0":
            exif += body[6:]
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0":
            parts.append(body[12:])
    if found is None:
        raise ValueError("it ends before its pixels")
    first = found.start()
    # The frame says how many components there are, a scan how many it holds: all at once is the one that is read.
    if raw[frame + 1] not in _ONE_SCAN or raw[frame + 9] != raw[first + 4]:
        _check_scans(raw, first)
    return Container(
        data=_without(raw, dropped),
        profile=_joined(parts) if parts else None,
        orientation=orientation_of(exif) if exif else 1,
        several=False,
    )


def _tells_pixels(marker: int, body: bytes) -> bool:
    """Whether an APPn matters to pixels: JFIF's and Adobe's do, if they are whole."""
    if marker == 0xE0:
        return body[:5] == b"JFIF\0" and len(body) >= 14
    if marker == 0xEE:
        return body[:5] == b"Adobe" and len(body) >= 12
    return 0xEF < marker < 0xFE


def _check_scans(raw: bytes, first: int) -> None:
    """Raises ValueError for more scans than an encoder writes; what follows the image's end is none of it."""
    scans = raw.count(b"\xff\xda", first, raw.find(b"\xff\xd9", first))
    if scans > _MAX_SCANS:
        raise ValueError(f"{scans} scans; expected at most {_MAX_SCANS}")


def _joined(parts: list[bytes]) -> bytes:
    """A profile from its segments, each of which begins with its number, from 1, and how many there are."""
    ordered = sorted(parts, key=lambda part: part[:1])
    complete = [part[:2] for part in ordered] == [bytes((number + 1, len(parts))) for number in range(len(parts))]
    return b"".join(part[2:] for part in ordered) if complete else _BROKEN


_TIFF_PIXEL_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 290, 291, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 334, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
}  # fmt: skip
"""What TIFF 6.0 and its supplements need to find and decode pixels."""
_TIFF_PROFILE = 34675


def _tiff(raw: bytes) -> Container:
    """The first page with the tags of its pixels alone, listed anew behind the file's end, since offsets are absolute."""
    order: Literal["little", "big"] = "little" if raw[:2] == b"II" else "big"
    mark = "<" if order == "little" else ">"
    first = int.from_bytes(raw[4:8], order)
    (count,) = struct.unpack_from(f"{mark}H", raw, first)
    entries = [raw[place : place + 12] for place in range(first + 2, first + 2 + 12 * count, 12)]
    tags = {int.from_bytes(entry[:2], order): entry for entry in reversed(entries) if len(entry) == 12}
    after = raw[first + 2 + 12 * count :][:4]
    profile, orientation = None, 1
    if _TIFF_PROFILE in tags:
        size, place = struct.unpack(f"{mark}II", tags[_TIFF_PROFILE][4:])
        profile = raw[place : place + min(size, MAX_PROFILE_BYTES + 1)]
    if tags.get(_ORIENTATION, b"")[2:8] == struct.pack(f"{mark}HI", 3, 1):  # one number of 16 bits
        orientation = int.from_bytes(tags[_ORIENTATION][8:10], order)
    pixels = [tags[tag] for tag in sorted(tags) if tag in _TIFF_PIXEL_TAGS]
    listed = struct.pack(f"{mark}H", len(pixels)) + b"".join(pixels) + bytes(4)
    even = raw + bytes(len(raw) % 2)
    data = b"".join([even[:4], struct.pack(f"{mark}I", len(even)), even[8:], listed])
    return Container(
        data=data,
        profile=profile,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        several=any(after),
    )


def _without_exif(raw: bytes) -> bytes:
    """An AVIF whose EXIF has another name: it must not turn the image (irot and imir do), and may be broken."""
    return re.sub(rb"(infe.{8}|infe.{10})Exif", rb"\1none", raw, flags=re.DOTALL)
