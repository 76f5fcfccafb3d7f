"""An S3 object as a seekable file."""

import io
from typing import Any, BinaryIO, cast

from ddpm_core.errors import InputError, MissingError
from ddpm_core.storage.s3 import describe, read_range

_BUFFER_BYTES = 1 << 18


class _Reader(io.RawIOBase):
    """An object as a seekable file: every read is a ranged get of the version that was opened."""

    mode = "rb"

    def __init__(self, uri: str, size: int, etag: str) -> None:
        self.name, self._size, self._etag, self._position = uri, size, etag, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise InputError(f"seek to {start + offset} in {self.name}; expected 0 or more")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        data = read_range(self.name, self._position, wanted, self._etag)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        return self.read(max(0, self._size - self._position)) or b""  # in one get; inherited, it would take 8 KiB a get


def open_read(uri: str) -> BinaryIO:
    state = describe(uri)
    if state is None:
        raise MissingError(f"no file at {uri}")
    return cast(BinaryIO, io.BufferedReader(_Reader(uri, *state), buffer_size=_BUFFER_BYTES))
