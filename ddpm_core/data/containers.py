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
_ORIENTATION = 0x0112
_BROKEN = b""
"""Stands for a profile that is there, and no use."""

_HEADS = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),  # the size of the header that follows: one of seven
    (rb"GIF8[79]a", "GIF"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"P[1-6f]\s", "PPM"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (rb".{4}ftyp(?:hei[cxms]|hev[cxms]|(?:mif1|msf1).{4}(?:.{4})*?hei[cx])", "HEIC"),
    (rb".{4}ftyp(?:avi[fs]|mif1|msf1)", "AVIF"),
)
_FORMATS = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in _HEADS)


def picture_format(head: bytes) -> str | None:
    """The format that a file's first 32 bytes are of.

    Returns:
        JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM (with PGM, PBM), JPEG2000, AVIF or HEIC; None for anything else.
    """
    return next((name for pattern, name in _FORMATS if pattern.match(head[:HEAD_BYTES])), None)


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
    kept, place = [raw[:8]], 8
    profile, orientation, several = None, 1, False
    gamma, named = None, False
    while place + 8 <= len(raw):
        size, kind = struct.unpack_from(">I4s", raw, place)
        chunk = raw[place : place + 12 + size]
        if not kind.isalpha():
            break
        place += len(chunk)
        sound = len(chunk) == 12 + size and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if kind[:1].isupper() or (kind == b"tRNS" and sound):
            if not sound and len(chunk) == 12 + size:
                raise ValueError(f"the checksum of its {kind.decode()} is wrong")
            kept.append(chunk)
        elif kind == b"iCCP":
            profile = _inflated(chunk[8:-4]) if sound else _BROKEN
        elif not sound:
            continue
        elif kind == b"eXIf":
            orientation = orientation_of(chunk[8:-4])
        elif kind == b"acTL" and size >= 8:
            several = int.from_bytes(chunk[8:12]) > 1
        elif kind == b"gAMA" and size == 4:
            gamma = int.from_bytes(chunk[8:12]) / 100_000
        elif kind in (b"sRGB", b"cICP"):
            named = True
        if kind == b"IEND":
            break
    data = raw if sum(map(len, kept)) == len(raw) else b"".join(kept)
    gamma = None if named or profile is not None else gamma
    return Container(data=data, profile=profile, orientation=orientation, several=several, gamma=gamma)


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
    kept, place = [raw[:2]], 2
    exif, parts = b"", []
    while (place := raw.find(b"\xff", place)) >= 0 and raw[place + 1] != 0xDA:
        marker = raw[place + 1]
        if marker == 0xFF:  # filling
            place += 1
            continue
        if marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # no segment: stray
            place += 2
            continue
        end = place + 2 + int.from_bytes(raw[place + 2 : place + 4])
        body = raw[place + 4 : end]
        if _tells_pixels(marker, body):
            kept.append(raw[place:end])
        elif marker == 0xE1 and body[:6] == b"Exif\0\0":
            exif += body[6:]
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0":
            parts.append(body[12:])
        place = max(end, place + 2)
    if place < 0:
        raise ValueError("it ends before its pixels")
    scans = raw.count(b"\xff\xda", place, raw.find(b"\xff\xd9", place))
    if scans > _MAX_SCANS:
        raise ValueError(f"{scans} scans; expected at most {_MAX_SCANS}")
    orientation = orientation_of(exif) if exif else 1
    return Container(
        data=b"".join([*kept, raw[place:]]), profile=_joined(parts), orientation=orientation, several=False
    )


def _tells_pixels(marker: int, body: bytes) -> bool:
    """Whether a segment matters to pixels: all but comments and APPn; of those JFIF's and Adobe's, if they are whole."""
    if marker == 0xE0:
        return body[:5] == b"JFIF\0" and len(body) >= 14
    if marker == 0xEE:
        return body[:5] == b"Adobe" and len(body) >= 12
    return marker < 0xE0 or 0xEF < marker < 0xFE


def _joined(parts: list[bytes]) -> bytes | None:
    """A profile from its segments, each of which begins with its number, from 1, and how many there are."""
    if not parts:
        return None
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
