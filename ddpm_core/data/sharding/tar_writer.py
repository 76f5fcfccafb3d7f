"""Small tars, fast: byte for byte what webdataset.TarWriter(mtime=0, user="", group="") writes, in a tenth of its time."""

import hashlib
import tarfile
from types import TracebackType
from typing import BinaryIO

_BLOCK = 512
_MAX_NAME_BYTES = 100


def _template() -> bytes:
    """The header of an empty file without a name, as tarfile writes it."""
    member = tarfile.TarInfo("")
    member.mode = 0o444
    return member.tobuf(tarfile.USTAR_FORMAT)


_HEADER = _template()
_BARE_SUM = sum(_HEADER) - sum(_HEADER[124:136]) - sum(_HEADER[148:156]) + 8 * ord(" ")
"""What the header adds up to without name, size and checksum, which counts as blanks."""


class TarWriter:
    """Writes members one after the other; knows where each lies, and the sha256 of it all once it is closed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write(bytes(2 * _BLOCK))
            self._write(bytes(-self.size_bytes % tarfile.RECORDSIZE))

    @property
    def sha256(self) -> str:
        """Of what was written, hex."""
        return self._sha256.hexdigest()

    def add(self, name: str, data: bytes) -> int:
        """Write a file of a name of at most 100 ASCII characters.

        Returns:
            Where its content begins.
        """
        encoded = name.encode("ascii")
        assert 0 < len(encoded) <= _MAX_NAME_BYTES, name
        size = b"%011o\0" % len(data)
        header = bytearray(_HEADER)
        header[: len(encoded)] = encoded
        header[124:136] = size
        header[148:155] = b"%06o\0" % (_BARE_SUM + sum(encoded) + sum(size))
        self._write(bytes(header) + data + bytes(-len(data) % _BLOCK))
        return self.size_bytes - len(data) - -len(data) % _BLOCK

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.size_bytes += len(data)
