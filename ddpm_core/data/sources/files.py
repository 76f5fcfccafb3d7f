"""Sets of files, by name in sorted order: those of a folder, local or on S3; archives make theirs in tar.py and zip.py."""

import fnmatch
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.data.images import BadImage
from ddpm_core.data.sources.base import DUPLICATE_NAME, HIDDEN, OUTSIDE, LeftOut, check_file_size, is_hidden, is_image

logger = logging.getLogger(__name__)
_TOLD_EVERY = 200_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one file lies."""

    name: str
    """As it stands in the folder or archive, which may not be how it is shown."""
    part: int
    """Which of several archives it lies in."""
    offset: int
    size: int
    version: str = ""
    """What changes with its content, where the form tells: time of change or ETag of a file, checksum in a zip; else ""."""


@runtime_checkable
class Reader(Protocol):
    """Reads files where they lie; small, so that it can be sent to other machines, where it opens what it reads anew."""

    @property
    def remote(self) -> bool:
        """Whether each read waits for a server, so that many at once are worth while."""
        ...

    def read(self, place: Place) -> bytes:
        """One file.

        Raises:
            BadImage: if it is damaged.
        """
        ...

    def read_head(self, place: Place) -> bytes:
        """Its first 64 bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileSet:
    """Files by name, in sorted order, read by index. In memory they take little more than their names."""

    where: str
    table: pa.Table
    """key, part, offset, size, version: a Place each; keys are names as the bytes that file systems hold."""
    reader: Reader
    left_out: tuple[LeftOut, ...] = ()
    parts: tuple[str, ...] = ()
    """Names of the archives, where there are several; they come before the names of the files in them."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def names(self) -> list[str]:
        """All of them: paths below the folder, or inside the archive."""
        return [
            f"{part}/{name}" if part else name for part, name in zip(self.part_names, self.names_inside, strict=True)
        ]

    @property
    def names_inside(self) -> list[str]:
        """Their names in the folder or the archive that holds them."""
        return [os.fsdecode(key) for key in self.table["key"].to_pylist()]

    @property
    def part_names(self) -> list[str]:
        """The archive that each lies in, where there are several; else ""."""
        return [self.parts[part] for part in self.table["part"].to_pylist()] if self.parts else [""] * len(self)

    def name(self, index: int) -> str:
        inside = os.fsdecode(self._keys[index].as_py())
        return f"{self.parts[int(self._numbers[0][index])]}/{inside}" if self.parts else inside

    def place(self, index: int) -> Place:
        part, offset, size = (int(column[index]) for column in self._numbers)
        return Place(name=os.fsdecode(self._keys[index].as_py()), part=part, offset=offset, size=size)

    def version(self, index: int) -> str:
        """What changes with a file's content, where the form tells; "" where it does not."""
        return str(self._versions[index].as_py())

    @cached_property
    def _numbers(self) -> tuple[NDArray[np.int64], ...]:
        """The columns of numbers, of which one number is taken faster than from a table."""
        return tuple(self.table[column].to_numpy() for column in ("part", "offset", "size"))

    @cached_property
    def _versions(self) -> pa.Array:
        return self.table["version"].combine_chunks()

    @cached_property
    def _keys(self) -> pa.Array:
        return self.table["key"].combine_chunks()

    def size(self, index: int) -> int:
        """Of the file of this index, in bytes."""
        return int(self._numbers[2][index])

    def read_at(self, index: int) -> bytes:
        """The file of this index.

        Raises:
            BadImage: if it is damaged, or larger than any image.
        """
        place = self.place(index)
        check_file_size(place.size)
        return self.reader.read(place)

    def matching(self, pattern: str) -> "FileSet":
        """Those of a name like `*.png` in any folder; a star stands for slashes, too."""

        def fit(name: str) -> bool:
            return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(PurePosixPath(name).name, pattern)

        fits = np.array([fit(name) for name in self.names], bool)
        left_out = tuple(item for item in self.left_out if fit(item.name))
        return replace(self, table=self.table.filter(pa.array(fits)).combine_chunks(), left_out=left_out)


def file_set(where: str, found: Iterable[Place], reader: Reader, left_out: Iterable[LeftOut] = ()) -> FileSet:
    """Files as they were found, in the order of their names; of those that share a name the last one counts, as for tar itself.

    Hidden ones, and names that lead out of an archive, are left out.
    """
    table, missed = sorted_places(found)
    return FileSet(where=where, table=table, reader=reader, left_out=(*left_out, *missed))


def sorted_places(found: Iterable[Place]) -> tuple[pa.Table, list[LeftOut]]:
    """Places in the order of their names, and what is none of the files that could be images."""
    keys: list[bytes] = []
    numbers: list[tuple[int, int, int]] = []
    versions: list[str] = []
    left_out: list[LeftOut] = []
    for place in found:
        if is_hidden(place.name):
            left_out.append(LeftOut(name=place.name, reason=HIDDEN, lost=False))
        elif ".." in place.name and ".." in place.name.split("/"):
            left_out.append(LeftOut(name=place.name, reason=OUTSIDE, lost=is_image(place.name)))
        else:
            keys.append(os.fsencode(place.name))
            numbers.append((place.part, place.offset, place.size))
            versions.append(place.version)
    order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    last: list[int] = []
    for index in order:
        if last and keys[last[-1]] == keys[index]:
            name = os.fsdecode(keys[index])
            left_out.append(LeftOut(name=name, reason=DUPLICATE_NAME, lost=is_image(name)))
            last[-1] = index
        else:
            last.append(index)
    columns: NDArray[np.int64] = np.array([numbers[index] for index in last], np.int64).reshape(-1, 3)
    table = {
        "key": pa.array([keys[index] for index in last], pa.large_binary()),
        **{name: columns[:, number] for number, name in enumerate(("part", "offset", "size"))},
        "version": pa.array([versions[index] for index in last], pa.large_string()),
    }
    return pa.table(table), left_out


@dataclass(frozen=True, kw_only=True)
class FolderReader:
    """Files of a folder, each by its name."""

    base: str

    @property
    def remote(self) -> bool:
        return storage.is_s3(self.base)

    def read(self, place: Place) -> bytes:
        return self._tried(place, None)

    def read_head(self, place: Place) -> bytes:
        return self._tried(place, 64)

    def _tried(self, place: Place, size: int | None) -> bytes:
        uri = f"{self.base.rstrip('/')}/{place.name}"
        try:
            return storage.read_bytes(uri) if size is None else storage.read_range(uri, 0, min(size, place.size))
        except OSError as error:
            if self.remote:  # the server's trouble, not the image's
                raise
            raise BadImage(f"cannot be read: {error}") from None


def list_folder(uri: str) -> FileSet:
    """The files below a folder, at any depth; what stands there and cannot be read is left out."""
    base = storage.absolute(uri)
    left_out: list[LeftOut] = []

    def places() -> Iterator[Place]:
        for number, entry in enumerate(storage.walk(base), 1):
            if number % _TOLD_EVERY == 0:
                logger.warning("listing %s: %s files so far", uri, f"{number:,}")
            if entry.size_bytes is not None:
                yield Place(name=entry.name, part=0, offset=0, size=entry.size_bytes, version=entry.version)
            else:
                lost = not is_hidden(entry.name) and (is_image(entry.name) or "." not in PurePosixPath(entry.name).name)
                left_out.append(LeftOut(name=entry.name, reason=str(entry.problem), lost=lost))

    return file_set(uri, places(), FolderReader(base=base), left_out)


def kinds(names: Sequence[str]) -> str:
    """What suffixes the files have, for a message."""
    suffixes = sorted({PurePosixPath(name).suffix or "no suffix" for name in names})
    return ", ".join(suffixes[:5]) or "none"
