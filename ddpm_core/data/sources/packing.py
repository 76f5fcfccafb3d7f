"""Packed files (gzip, bzip2, xz, zstandard), unpacked into the cache once."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from ddpm_core import storage
from ddpm_core.data.sources.cache import Room, cached, copy_stream, make_room
from ddpm_core.errors import InputError, UserError


def _open_zstandard(path: Path, mode: str) -> Any:
    assert mode == "rb"
    return pa.input_stream(str(path), compression="zstd")


_PACKINGS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstandard,
}


def packing(head: bytes) -> Callable[..., Any] | None:
    """What opens a packed file that starts with these bytes; None if it is not packed."""
    return next((opener for magic, opener in _PACKINGS.items() if head.startswith(magic)), None)


def unpacked(path: Path) -> Path:
    """The file itself, or its content in the cache if it is packed."""
    with open(path, "rb") as file:
        opener = packing(file.read(8))
    if opener is None:
        return path

    def unpack(folder: Path) -> None:
        make_room(folder, path.stat().st_size, str(path))
        try:
            with opener(path, "rb") as packed, open(folder / "plain", "wb") as plain:
                copy_stream(packed.read, plain.write, Room(folder, str(path)))
        except UserError:
            raise
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno not in (None, 0):  # the disk's trouble, not the file's
                raise
            raise InputError(f"{path} is damaged: {error}; fetch it again") from None

    return cached("unpacked", f"{path} {storage.fingerprint(str(path))}", unpack) / "plain"
