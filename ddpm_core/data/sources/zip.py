"""Zips: every member, under names with slashes whatever wrote it. Members are read where they lie."""

import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ddpm_core import storage
from ddpm_core.data.images import BadImage
from ddpm_core.data.sources.base import LeftOut
from ddpm_core.data.sources.cache import fetched
from ddpm_core.data.sources.damage import worded
from ddpm_core.data.sources.files import FileSet, Place, file_set
from ddpm_core.data.sources.links import followed, target_of
from ddpm_core.errors import InputError

_ENCRYPTED = 0x1
_MAX_LINK_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class ZipReader:
    """Members of a zip, by their number in its directory (a Place's offset)."""

    uri: str
    version: str
    """Fingerprint of the zip."""
    remote: bool = False

    def read(self, place: Place) -> bytes:
        return _read(_opened(self.uri, self.version), place, place.size)

    def read_head(self, place: Place) -> bytes:
        return _read(_listed(self.uri, self.version), place, 64)


def _read(archive: zipfile.ZipFile, place: Place, size: int) -> bytes:
    try:
        with archive.open(archive.infolist()[place.offset]) as file:
            return file.read(size)
    # Damaged, encrypted, packed in an unknown way: BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ...
    except Exception as error:
        raise BadImage(f"cannot be unpacked: {error}") from error


@lru_cache(maxsize=1)
def _opened(uri: str, version: str) -> zipfile.ZipFile:
    return open_zip(str(fetched(uri)))


@lru_cache(maxsize=1)
def _listed(uri: str, version: str) -> zipfile.ZipFile:
    """As `_opened`, but where it lies: of one on S3 no more is fetched than its directory and what is read."""
    return open_zip(uri)


def open_zip(uri: str) -> zipfile.ZipFile:
    """A zip where it lies.

    Raises:
        InputError: if it is damaged.
    """
    with worded(uri, "a zip"):
        return zipfile.ZipFile(storage.open_read(uri) if storage.is_s3(uri) else uri)


def list_zip(uri: str) -> FileSet:
    """The files in a zip.

    Raises:
        InputError: if it is damaged or encrypted, or its directory leaves out what lies before.
    """
    version = storage.fingerprint(uri)
    archive = _listed(uri, version)
    infos = archive.infolist()
    locked = next((info.filename for info in infos if info.flag_bits & _ENCRYPTED), None)
    if locked is not None:
        raise InputError(f"{uri} is encrypted (as {locked} is); unpack it with its password and name the folder")
    first = min((info.header_offset for info in infos), default=0)
    if first and storage.read_range(uri, 0, 4) == b"PK\3\4":
        raise InputError(
            f"{uri} has {first} bytes of members before the first one in its directory: two zips joined, or members deleted; "
            "unpack it and name the folder"
        )
    left_out: list[LeftOut] = []
    with worded(uri, "a zip"):
        return file_set(uri, _places(archive, left_out), ZipReader(uri=uri, version=version), left_out)


def _places(archive: zipfile.ZipFile, left_out: list[LeftOut]) -> Iterator[Place]:
    """The files, then what links lead to."""
    files: dict[str, Place] = {}
    links: dict[str, str] = {}
    for number, info in enumerate(archive.infolist()):
        name = _name(info.filename)
        if not name or name.endswith("/"):
            continue
        if stat.S_ISLNK(info.external_attr >> 16) and info.file_size <= _MAX_LINK_BYTES:
            links[name] = target_of(name, archive.read(info).decode("utf-8", "surrogateescape"))
            continue
        files[name] = Place(name=name, part=0, offset=number, size=info.file_size, version=f"{info.CRC:08x}")
        yield files[name]
    added, broken = followed(files, links)
    left_out += broken
    yield from added


def _name(name: str) -> str:
    """With the slashes that the format asks for; Windows' own tools write backslashes."""
    return name.replace("\\", "/").removeprefix("./").lstrip("/")
