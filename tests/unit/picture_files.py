"""Image files by hand, byte for byte where encoders would not write them so."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm_core.data.pictures import Picture, open_picture

LIMIT = 1_000_000


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
BOMB = zlib.compress(bytes(50_000_000))
