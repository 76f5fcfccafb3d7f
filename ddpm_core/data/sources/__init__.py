"""Raw images in, whatever they lie in: one kind a file, told apart here by content."""

import difflib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ddpm_core import storage
from ddpm_core.data.sources.base import RawImage, Source
from ddpm_core.data.sources.cache import fetched, fetched_together
from ddpm_core.data.sources.cifar import BATCH_NAME, open_batches
from ddpm_core.data.sources.digits import open_digits
from ddpm_core.data.sources.files import FileSet, kinds, list_folder, list_tar, list_zip, open_images, unpacked
from ddpm_core.data.sources.idx import IMAGES_NAME, is_idx, label_names, open_idx
from ddpm_core.data.sources.npz import is_npz, open_npz
from ddpm_core.data.sources.table import open_parquet
from ddpm_core.errors import InputError

__all__ = ["RawImage", "Source", "check_source", "open_source", "source_identity", "source_uri"]

DIGITS = "digits"
_EXPECTED = "expected images, idx files, CIFAR-10's python batches, .npz or parquet"


def source_uri(source: str) -> str:
    """The same source, independent of the working directory."""
    return source if source == DIGITS else storage.absolute(source)


def source_identity(source: str) -> str:
    """What changes when the raw images do: names, sizes, and times of change or ETags; nothing is read."""
    return DIGITS if source == DIGITS else storage.fingerprint(source)


def open_source(uri: str) -> Source:
    """The raw images at a path or s3:// URI, or `digits`.

    An archive or parquet file on S3 is downloaded into a local cache, once; a folder of images there is read image by
    image. The order is that of the sorted names.

    Raises:
        InputError: one line, if there is nothing, or nothing that is known here.
    """
    if uri == DIGITS:
        return open_digits()
    if storage.is_s3(uri):
        is_file = storage.exists(uri)
    else:
        path = Path(storage.absolute(uri))
        if not path.exists():
            raise InputError(
                f"there is no source at {uri}{_nearest(path)}; expected a file, a folder, s3://... or {DIGITS}"
            )
        is_file = path.is_file()
    source = _open_file(uri) if is_file else _open_folder(uri)
    if source.num_images == 0:
        raise InputError(f"{uri} holds no images; {_EXPECTED}")
    return source


def check_source(uri: str) -> None:
    """Make sure that there are images at `uri`, by opening it.

    Raises:
        InputError: one line: nothing there, no images in it, damaged, or out of reach.
    """
    if uri == DIGITS:
        return
    try:
        open_source(uri)
    except OSError as error:
        raise InputError(f"the source cannot be read: {error}") from None


def _open_folder(uri: str) -> Source:
    files = list_folder(uri)
    if not files.names:
        raise InputError(f"{uri} is empty; {_EXPECTED}")
    top = [name for name in files.names if "/" not in name]
    images = [name for name in top if IMAGES_NAME.search(name)]
    if images:
        wanted = [*images, *(label for name in images for label in label_names(name) if label in top)]
        folder = fetched_together(uri, sorted(set(wanted)))
        return open_idx([folder / name for name in images])
    tables = [name for name in files.names if name.endswith(".parquet")]
    source = _open_members(files)
    if source is None and tables:
        source = open_parquet([fetched(storage.join(uri, name)) for name in tables])
    if source is None:
        raise InputError(f"{uri} holds no images among {len(files.names)} files ({kinds(files.names)}); {_EXPECTED}")
    return source


def _open_members(files: FileSet) -> Source | None:
    """CIFAR-10's batches or single images; None if neither is there."""
    batches = [place for place, name in enumerate(files.names) if BATCH_NAME.search(name)]
    if batches:
        return open_batches([(files.names[place], files.read_at(place)) for place in batches])
    images = open_images(files)
    return images if images.num_images else None


def _open_file(uri: str) -> Source:
    path = fetched(uri)
    for fits, opened in FILE_KINDS.values():
        if fits(path):
            return opened(uri, path)
    raise InputError(f"{uri} is of no kind that is known here (it starts with {_head(path)[:8].hex()}); {_EXPECTED}")


def _open_archive(uri: str, files: FileSet) -> Source:
    source = _open_members(files)
    if source is None:
        found = f"{len(files.names)} files ({kinds(files.names)})"
        raise InputError(f"{uri} is an archive without images among {found}; expected images or CIFAR-10's batches")
    return source


def _is_parquet(path: Path) -> bool:
    return _head(path).startswith(b"PAR1")


def _is_zip(path: Path) -> bool:
    return _head(path).startswith(b"PK")


def _is_npz(path: Path) -> bool:
    try:
        return _is_zip(path) and is_npz(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is a damaged zip: {error}; fetch it again") from None


def _is_idx(path: Path) -> bool:
    return is_idx(_head(unpacked(path)))


def _is_tar(path: Path) -> bool:
    plain = _head(unpacked(path))
    return plain[257:262] == b"ustar" or (len(plain) == 512 and not any(plain))


def _with_labels(uri: str) -> Path:
    """A single file of idx images, locally, with the file of its labels beside it if there is one."""
    folder, _, name = storage.absolute(uri).rpartition("/")
    labels = [label for label in label_names(name) if label != name and storage.exists(storage.join(folder, label))]
    return fetched_together(folder, [name, *labels]) / name


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _nearest(path: Path) -> str:
    """A name like this one in the same folder, for a message."""
    siblings: Sequence[str] = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f" (nearest: {path.parent / close[0]})" if close else ""


FILE_KINDS: dict[str, tuple[Callable[[Path], bool], Callable[[str, Path], Source]]] = {
    "parquet": (_is_parquet, lambda uri, path: open_parquet([path])),
    "npz": (_is_npz, lambda uri, path: open_npz(path)),
    "zip": (_is_zip, lambda uri, path: _open_archive(uri, list_zip(path))),
    "idx": (_is_idx, lambda uri, path: open_idx([_with_labels(uri)])),
    "tar": (_is_tar, lambda uri, path: _open_archive(uri, list_tar(path))),
}
"""Whether a file is of a kind, by its content, and how it is opened by its URI and its local copy; the first that fits."""
