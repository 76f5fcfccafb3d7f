"""Sets of files: a folder (local or on S3), a tar, a zip; and images that are one file each.

Members of archives are read where they lie and never written to disk under the names that they bring.
"""

import bz2
import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from ddpm_core import storage
from ddpm_core.data.images import BadImage
from ddpm_core.data.sources.base import RawImage, check_file_size, classes_by_folder, is_hidden, is_image
from ddpm_core.data.sources.cache import cached
from ddpm_core.data.sources.splits import SetAside, set_aside, split_folders, split_of_folder
from ddpm_core.errors import InputError

_PACKINGS: dict[bytes, Callable[..., gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


@dataclass(frozen=True, kw_only=True)
class FileSet:
    """Files by name, in sorted order, read by index; hidden ones are not in it."""

    where: str
    names: Sequence[str]
    """Paths below the folder, or inside the archive."""
    read_at: Callable[[int], bytes]
    """Reads the file of this index; raises BadImage if it is damaged."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Images that are one file each, of the class of the folder they lie in."""

    files: FileSet
    places: Sequence[int]
    """Which of the files they are."""
    labels: Sequence[int | None]
    class_names: tuple[str, ...]
    own_splits: SetAside = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        return self.files.names[self.places[index]]

    def read(self, index: int) -> RawImage:
        data = self.files.read_at(self.places[index])
        return RawImage(name=self.name(index), data=data, label=self.labels[index])


def open_images(files: FileSet) -> ImageFiles:
    """The images among the files, told by their suffix."""
    places = array("q", (place for place, name in enumerate(files.names) if is_image(name)))
    names = [files.names[place] for place in places]
    depth = split_folders(names)
    splits = {} if depth is None else set_aside(split_of_folder(name, depth) for name in names)
    below = names if depth is None else [name.split("/", depth + 1)[-1] for name in names]  # a split is no class
    class_names, labels = classes_by_folder(below)
    return ImageFiles(files=files, places=places, labels=labels, class_names=class_names, own_splits=splits)


def list_folder(uri: str) -> FileSet:
    """The files below a folder, at any depth."""
    base = storage.absolute(uri)
    found = [(file[len(base) :].lstrip("/"), size) for file, size in storage.list_files(base)]
    names, sizes = _sorted([(name, size) for name, size in found if not is_hidden(name)])

    def read_at(place: int) -> bytes:
        check_file_size(sizes[place])
        try:
            return storage.read_bytes(storage.join(base, names[place]))
        except OSError as error:
            if storage.is_s3(base):  # the server's trouble, not the image's
                raise
            raise BadImage(f"cannot be read: {error}") from None

    return FileSet(where=uri, names=names, read_at=read_at)


def list_zip(path: Path) -> FileSet:
    """The files in a zip."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is a damaged zip: {error}; fetch it again") from None
    members = [(info.filename, info.file_size) for info in archive.infolist() if not info.is_dir()]
    names, sizes = _sorted([(name, size) for name, size in members if not is_hidden(name)])

    def read_at(place: int) -> bytes:
        check_file_size(sizes[place])
        try:
            return archive.read(names[place])
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise BadImage(f"cannot be unpacked: {error}") from None  # damaged; encrypted; packed in an unknown way

    return FileSet(where=str(path), names=names, read_at=read_at)


def list_tar(path: Path) -> FileSet:
    """The files in a tar; a packed one (gzip, bzip2, xz) is unpacked into the cache, once, as one plain tar."""
    plain = unpacked(path)
    identity = f"{path} {storage.fingerprint(str(path))}"
    folder = cached("tar", identity, lambda aside: _index_tar(plain, path, aside / "index.parquet"))
    index = pq.read_table(folder / "index.parquet")
    names = index["name"].to_pylist()
    offsets, sizes = index["offset"].to_numpy(), index["size"].to_numpy()

    def read_at(place: int) -> bytes:
        offset, size = int(offsets[place]), int(sizes[place])
        check_file_size(size)
        return storage.read_range(str(plain), offset, size)

    return FileSet(where=str(path), names=names, read_at=read_at)


def _index_tar(plain: Path, path: Path, target: Path) -> None:
    """Write down where each file lies in a plain tar; walking all headers takes seconds, and every worker needs it."""
    places: dict[str, tuple[int, int]] = {}  # a name that comes twice means its last file, as for tar itself
    try:
        with tarfile.open(plain, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if member.isreg() and not member.issparse() and not is_hidden(member.name):
                    places[member.name.removeprefix("./")] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"{path} is a damaged tar: {error}; fetch it again") from None
    names = sorted(places)
    offsets, sizes = (pa.array([places[name][column] for name in names], pa.int64()) for column in (0, 1))
    pq.write_table(pa.table({"name": pa.array(names, pa.string()), "offset": offsets, "size": sizes}), target)


def packing(head: bytes) -> Callable[..., gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile] | None:
    """What opens a packed file that starts with these bytes; None if it is not packed."""
    return next((opener for magic, opener in _PACKINGS.items() if head.startswith(magic)), None)


def unpacked(path: Path) -> Path:
    """The file itself, or its content in the cache if it is packed."""
    with open(path, "rb") as file:
        opener = packing(file.read(8))
    if opener is None:
        return path

    def unpack(folder: Path) -> None:
        try:
            with opener(path, "rb") as packed, open(folder / "plain", "wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's trouble, not the file's
                raise
            raise InputError(f"{path} is damaged: {error}; fetch it again") from None

    return cached("unpacked", f"{path} {storage.fingerprint(str(path))}", unpack) / "plain"


def _sorted(members: list[tuple[str, int]]) -> tuple[list[str], "array[int]"]:
    members.sort()
    return [name for name, _ in members], array("q", (size for _, size in members))


def kinds(names: Sequence[str]) -> str:
    """What suffixes the files have, for a message."""
    suffixes = sorted({PurePosixPath(name).suffix or "no suffix" for name in names})
    return ", ".join(suffixes[:5]) or "none"
