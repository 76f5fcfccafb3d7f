"""Tars: every member to the last byte, joined archives and links included, or a refusal that names the byte.

Members are read where they lie and never written to disk under the names that they bring.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ddpm_core import storage
from ddpm_core.data.sources.base import LeftOut, is_hidden, is_image
from ddpm_core.data.sources.cache import cached, fetched
from ddpm_core.data.sources.damage import worded
from ddpm_core.data.sources.files import FileSet, Place, sorted_places
from ddpm_core.data.sources.links import DANGLING, followed, target_of
from ddpm_core.data.sources.packing import packing, unpacked
from ddpm_core.errors import InputError
from ddpm_core.storage.disk_cache import CacheError

_BLOCK = 512
_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, kw_only=True)
class TarReader:
    """Members of some tars, by where they lie in them."""

    parts: tuple[tuple[str, str], ...]
    """URI and fingerprint of each tar."""
    remote: bool = False

    def read(self, place: Place) -> bytes:
        return storage.read_range(_plain(*self.parts[place.part]), place.offset, place.size)

    def read_head(self, place: Place) -> bytes:
        return storage.read_range(_plain(*self.parts[place.part]), place.offset, min(64, place.size))


@lru_cache(maxsize=4096)
def _plain(uri: str, version: str) -> str:
    """Where a tar lies on this machine, unpacked."""
    return str(unpacked(fetched(uri)))


def is_tar(head: bytes) -> bool:
    """Whether a file's first 512 bytes begin a tar, be it an empty one or one whose header is damaged."""
    if head[257:262] == b"ustar" or (len(head) == _BLOCK and not any(head)):
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def list_tar(uri: str) -> FileSet:
    """The files in a tar; a packed one (gzip, bzip2, xz, zstandard) is unpacked into the cache, once, as one plain tar.

    Raises:
        InputError: if it is damaged, with the byte where it is.
    """
    version = storage.fingerprint(uri)
    # Walking all headers takes seconds, and every command that looks at the source needs it.
    try:
        folder = cached("tar-index-2", f"{uri} {version}", lambda aside: _write_index(uri, version, aside))
        left_out = tuple(LeftOut(**item) for item in json.loads((folder / "left_out.json").read_bytes()))
        table = pq.read_table(folder / "index.parquet")
    except CacheError:
        if storage.is_s3(uri) or packing(storage.read_range(uri, 0, 8)):
            raise
        # A plain tar on this machine can do without.
        table, left_out = _walked(uri, version)
    return FileSet(where=uri, table=table, reader=TarReader(parts=((uri, version),)), left_out=left_out)


def _write_index(uri: str, version: str, folder: Path) -> None:
    table, left_out = _walked(uri, version)
    pq.write_table(table, folder / "index.parquet")
    (folder / "left_out.json").write_text(json.dumps([asdict(item) for item in left_out]))


@lru_cache(maxsize=1)
def _walked(uri: str, version: str) -> tuple[pa.Table, tuple[LeftOut, ...]]:
    """The places of the files, and what is none."""
    left_out: list[LeftOut] = []
    with worded(uri, "a tar"):
        table, missed = sorted_places(_places(Path(_plain(uri, version)), uri, left_out))
    return table, (*left_out, *missed)


def _places(plain: Path, uri: str, left_out: list[LeftOut]) -> Iterator[Place]:
    """The regular files, then what links lead to."""
    files: dict[str, Place] = {}
    links: dict[str, str] = {}
    for member in _members(plain, uri):
        name = _name(member.name)
        if member.isreg() and not member.issparse():
            files[name] = Place(name=name, part=0, offset=member.offset_data, size=member.size)
            links.pop(name, None)
            yield files[name]
        elif member.islnk() and (place := files.get(_name(member.linkname))) is not None:
            files[name] = Place(name=name, part=0, offset=place.offset, size=place.size)
            yield files[name]
        elif member.issym():
            links[name] = target_of(name, member.linkname)
        elif not member.isdir():
            what = "sparse file" if member.issparse() else DANGLING if member.islnk() else "not a regular file"
            left_out.append(LeftOut(name=name, reason=what, lost=is_image(name) and not is_hidden(name)))
    added, broken = followed(files, links)
    left_out += broken
    yield from added


def _name(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _members(plain: Path, uri: str) -> Iterator[tarfile.TarInfo]:
    """Every header, those of archives joined to the end of the first one, too.

    tarfile takes a header that it cannot read for the end, so where it stops the end is looked for.
    """
    start: int | None = 0
    last = -1
    with open(plain, "rb") as file:
        while start is not None:
            file.seek(start)
            try:
                archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115, the file below it is closed
                while (member := archive.next()) is not None:
                    if member.offset <= last:  # a size below 0 leads back to where it was
                        raise InputError(
                            f"{uri} is a damaged tar: the header at byte {member.offset} is read twice; fetch it again"
                        )
                    last = member.offset
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    yield member
            except (tarfile.TarError, ValueError, OverflowError) as error:
                if isinstance(error, InputError):
                    raise
                where = file.tell()
                raise InputError(f"{uri} is a damaged tar: {error}, before byte {where}; fetch it again") from None
            start = _next_archive(file, archive.offset, uri)


def _next_archive(file: BinaryIO, end: int, uri: str) -> int | None:
    """Where another archive begins after the zeros that end one; None at the end of the file.

    Raises:
        InputError: if there are no zeros.
    """
    file.seek(end)
    block = file.read(_BLOCK)
    if not block:
        raise InputError(
            f"{uri} is a damaged tar: it ends at byte {end} without the blocks of zeros that end one; fetch it again"
        )
    if block != _ZEROS[:_BLOCK]:
        raise InputError(f"{uri} is a damaged tar: the header at byte {end} cannot be read; fetch it again")
    place = end + _BLOCK
    while (data := file.read(len(_ZEROS))) == _ZEROS:
        place += len(data)
    filled = len(data) - len(data.lstrip(b"\0"))
    return place + filled // _BLOCK * _BLOCK if filled < len(data) else None
