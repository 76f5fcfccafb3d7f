"""URI -> bytes and files: local disk and S3 behind the same few functions.

A URI is a local path (or file:///path) or s3://bucket/key. An absent file is a FileNotFoundError; any other failure a
StorageError of one line. A file is there whole or not at all: readers never see half of one.

S3 servers fail now and then. Each request for an object, or for a part of a large one, is made again with growing pauses
while it fails in a way that may pass (no connection, an answer cut short, 5xx, throttling), until DDPM_S3_DEADLINE_S
seconds (default 120) after it began. A try that is under way then is not cut off, save by silence of as many seconds,
60 at the most.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ddpm_core.errors import InputError, MissingError
from ddpm_core.optional import late
from ddpm_core.storage import local
from ddpm_core.storage.entries import UNREADABLE, Entry, printable
from ddpm_core.storage.many import in_order
from ddpm_core.storage.temporary import check_temporary, temporary_folder
from ddpm_core.storage.uri import StorageError, absolute, below, is_s3, join, local_path

if TYPE_CHECKING:
    from ddpm_core.storage import s3 as _s3
    from ddpm_core.storage import s3_file as _s3_file
    from ddpm_core.storage import s3_upload as _s3_upload
else:
    _s3, _s3_file, _s3_upload = (
        late(f"ddpm_core.storage.{name}", "boto3", "s3://") for name in ("s3", "s3_file", "s3_upload")
    )

__all__ = [
    "Entry",
    "StorageError",
    "absolute",
    "below",
    "check_absent",
    "check_store",
    "check_temporary",
    "check_there",
    "copy",
    "create_bytes",
    "delete",
    "delete_rest",
    "delete_unfinished",
    "download",
    "exists",
    "fingerprint",
    "is_s3",
    "join",
    "list_files",
    "move",
    "open_read",
    "printable",
    "read_bytes",
    "read_many",
    "read_range",
    "replace_bytes",
    "size_bytes",
    "temporary_folder",
    "upload",
    "walk",
    "write_bytes",
    "writing",
    "writing_folder",
]


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    return _s3.read_bytes(uri) if is_s3(uri) else local.read_bytes(local_path(uri))


def read_range(uri: str, offset: int, size: int) -> bytes:
    """The bytes [offset, offset + size); fewer where the file ends."""
    return _s3.read_range(uri, offset, size) if is_s3(uri) else local.read_range(local_path(uri), offset, size)


def open_read(uri: str) -> BinaryIO:
    """The file as a seekable stream; on S3 only the ranges that are read are fetched, all of one version."""
    return _s3_file.open_read(uri) if is_s3(uri) else local.open_read(local_path(uri))


def exists(uri: str) -> bool:
    """Whether a file (not a folder) stands at the URI."""
    return _describe(uri) is not None


def size_bytes(uri: str) -> int:
    """Size of a file."""
    state = _describe(uri)
    if state is None:
        raise MissingError(f"no file at {uri}")
    return state[0]


def read_many(wanted: Iterable[str | tuple[str, int, int]], *, at_once: int = 16) -> Iterator[bytes | OSError]:
    """The contents of many files, or of parts of them, in the order in which they are asked for.

    Args:
        wanted: URIs, or (uri, offset, size) as for `read_range`; taken from the iterator as they are needed.
        at_once: how many from S3 are on their way or wait to be taken: no more than these are in memory.

    Yields:
        For each its bytes, or the error in their place (MissingError, StorageError): one that cannot be read does not end the rest.
    """
    spans = ((each, 0, None) if isinstance(each, str) else each for each in wanted)
    return in_order(((partial(_read, *span), is_s3(span[0])) for span in spans), at_once)


def _read(uri: str, offset: int, size: int | None) -> bytes:
    return read_bytes(uri) if size is None else read_range(uri, offset, size)


def walk(uri: str) -> Iterator[Entry]:
    """Every file below a folder, at any depth, and what stands there and is no file that could be read; none if there is no folder.

    The names are those that stand there, byte for byte, in no order; `below(uri, entry.name)` is a file's URI. Nothing is
    held in memory but a page of S3's listing, or the names of folders that are still to be entered. Links are followed, to
    files and to folders; a folder is not entered again below itself. What is still being written is passed over.

    Raises:
        StorageError: if the folder itself cannot be read. One below it is an entry with a problem.
    """
    return _s3.walk(uri) if is_s3(uri) else local.walk(local_path(uri))


def list_files(uri: str) -> list[tuple[str, int]]:
    """(uri, size in bytes) of every file below a folder, at any depth, sorted; empty if there is no such folder.

    Raises:
        StorageError: if a folder below it cannot be read. Links to nothing, pipes and the like are passed over (`walk` gives them).
    """
    found, base = [], absolute(uri)
    for entry in walk(base):
        if entry.size_bytes is not None:
            found.append((below(base, entry.name), entry.size_bytes))
        elif entry.problem and entry.problem.startswith(UNREADABLE):
            raise StorageError(f"{below(base, entry.name)}: {entry.problem}")
    return sorted(found)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file, replacing what stood there; readers see the old one or the new one."""
    if is_s3(uri):
        _s3.write_bytes(uri, data)
    else:
        local.write_bytes(local_path(uri), data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write a file if none stands there. Of several writers at once exactly one gets True."""
    return _s3.create_bytes(uri, data) if is_s3(uri) else local.create_bytes(local_path(uri), data)


def replace_bytes(uri: str, data: bytes, expected: bytes) -> bool:
    """Replace a file if its content is `expected` (compare and swap); False, and nothing done, if it is not or is gone.

    Safe against other replace_bytes and create_bytes; locally write_bytes does not wait for a swap under way. Contents
    should not come again (A, B, A): on S3 a swap whose answer was lost is tried again, and would then be done twice.
    """
    if is_s3(uri):
        return _s3.replace_bytes(uri, data, expected)
    return local.replace_bytes(local_path(uri), data, expected)


@contextmanager
def writing(uri: str) -> Iterator[Path]:
    """A path on local disk to write a file to; at the end of the block it stands at the URI, and after an error nothing does."""
    if not is_s3(uri):
        with local.writing(local_path(uri)) as path:
            yield path
        return
    with temporary_folder() as folder:
        path = folder / "file"
        with local.errors(path):
            yield path
        _s3_upload.upload(path, uri)


def check_absent(uri: str) -> None:
    """Refuse to write where something stands: a file, or a folder, even an empty one.

    Raises:
        InputError: in one line.
    """
    there = exists(uri) or any(True for _ in walk(uri)) if is_s3(uri) else os.path.lexists(local_path(uri))
    if there:
        raise local.occupied(uri)


@contextmanager
def writing_folder(uri: str, last: str) -> Iterator[Path]:
    """A folder on local disk to write files to; at the end of the block it stands at the URI, and after an error nothing does.

    On local disk it appears in one step. On S3 its files go up one by one.

    Args:
        uri: where nothing stands yet.
        last: the file, below the folder, that goes up at the end: without it the others are nothing.

    Raises:
        InputError: if something stands there, before the block or after it.
    """
    check_absent(uri)
    if not is_s3(uri):
        with local.writing_folder(local_path(uri)) as path:
            yield path
        return
    with temporary_folder() as folder:
        yield folder
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        check_absent(uri)
        try:
            for name in sorted(files, key=lambda name: name == last):
                upload(folder / name, join(uri, name))
        except BaseException:
            for name in files:
                delete(join(uri, name))
            raise


def upload(path: Path | str, uri: str) -> None:
    """Copy a local file to a URI; large files go up in parts. It appears whole or not at all."""
    if is_s3(uri):
        _s3_upload.upload(Path(path), uri)
    else:
        local.copy(Path(path), local_path(uri))


def download(uri: str, path: Path | str) -> None:
    """Copy a file to local disk; it appears whole or not at all."""
    if not is_s3(uri):
        local.copy(local_path(uri), Path(path))
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=local.TEMPORARY, dir=target.parent) as folder:
        aside = Path(folder) / "download"
        with open(aside, "wb") as file:
            _s3.download(uri, file)
        aside.replace(target)


def copy(uri: str, to: str) -> None:
    """Make a file stand at a second URI, too, replacing what stood there; it appears whole.

    Within S3 the server copies it. On local disk the two names are one file where the file system allows (a hard link), so
    neither takes room; files here are replaced and never written into, so neither changes with the other.
    """
    if is_s3(uri) and is_s3(to):
        _s3_upload.copy(uri, to)
    elif is_s3(uri):
        download(uri, local_path(to))
    elif is_s3(to):
        upload(local_path(uri), to)
    else:
        local.link(local_path(uri), local_path(to))


def move(uri: str, to: str) -> None:
    """Move a file within a store: it never passes through this machine. It appears whole, replacing what stood there."""
    if is_s3(uri):
        _s3_upload.move(uri, to)
    else:
        local.move(local_path(uri), local_path(to))


def delete(uri: str) -> None:
    """Remove a file; none there is no error."""
    if is_s3(uri):
        _s3.delete(uri)
    else:
        local.delete(local_path(uri))


def delete_unfinished(uri: str) -> None:
    """Delete what writers that were killed left below a folder, of files that never appeared. None may be at work there."""
    if is_s3(uri):
        _s3_upload.delete_unfinished(uri)
    else:
        local.delete_unfinished(local_path(uri))


def delete_rest(uri: str) -> None:
    """Delete what is left of a folder whose files were deleted: what killed writers left, and empty folders."""
    if is_s3(uri):
        _s3_upload.delete_unfinished(uri)
    else:
        local.delete_rest(local_path(uri))


def check_store(uri: str) -> None:
    """Make sure that a store can be written, by writing and removing a probe; a local folder is made if missing.

    Raises:
        InputError: one line: no such bucket, credentials missing or refused, server out of reach, not writable, a file.
    """
    if is_s3(uri):
        _s3.check_store(uri)
    else:
        local.check_store(local_path(uri))


def check_there(uri: str) -> None:
    """Make sure that a store stands, as it is, by looking: a folder, or on S3 a prefix with something below it.

    Raises:
        InputError: in one line, if there is none.
        StorageError: if that cannot be told: no such bucket, credentials missing or refused, server out of reach.
    """
    if not (any(True for _ in walk(uri)) if is_s3(uri) else local_path(uri).is_dir()):
        file = not is_s3(uri) and local_path(uri).exists()
        raise InputError(f"there is no store at {uri}{', a file' if file else ''}; expected one that a command made")


def free_bytes(uri: str) -> int | None:
    """What is left on the disk of a folder that may still have to be made; None for S3."""
    if is_s3(uri):
        return None
    path = local_path(uri)
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free


def fingerprint(uri: str) -> str:
    """Identity of a file, or of all that is below a folder, without reading it.

    Returns:
        sha256 (hex) over names (below the folder), sizes, and times of change (local) or ETags (S3), or what `walk` says is wrong.
    """
    base = absolute(uri)
    state = _describe(base)
    found: list[tuple[str, int | None, str]]
    if state:
        found = [(base.rpartition("/")[2], *state)]
    else:
        found = sorted((entry.name, entry.size_bytes, entry.problem or entry.version) for entry in walk(base))
    if not found:
        raise MissingError(f"no file or folder with files at {uri}")
    digest = hashlib.sha256()
    for number, each in enumerate(found):  # one JSON list of lists, never whole in memory
        digest.update(f"{', ' if number else '['}{json.dumps(each)}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def _describe(uri: str) -> tuple[int, str] | None:
    return _s3.describe(uri) if is_s3(uri) else local.describe(local_path(uri))
