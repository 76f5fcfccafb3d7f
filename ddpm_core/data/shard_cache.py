"""Copies of S3 shards on a node's disk, shared by its processes and kept under a byte limit.

A copy is named by its sha256, so it can be wrong only by damage, and datasets that share shards share copies. Beside it lie,
for a while, `<sha256>.lock` (held by the one process that downloads it) and `<sha256>.arriving` (what has come so far).

A process that uses a copy holds a shared lock on it. Deleting takes the exclusive lock, so a copy in use is never deleted, and
two processes never take turns in deleting and downloading the same one. (Whoever deletes it by hand harms no reader: on Linux
an open or mapped file outlives its name.) Locks are flock(2)'s: they end with their process, however it ends.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.storage.disk_cache import ARRIVING, FULL, alone, limit_from, make_folder, sweep

LIMIT_VARIABLE = "DDPM_SHARD_CACHE_BYTES"
"""Environment variable: bytes that the copies on this node may take; read at every download."""
DEFAULT_LIMIT_BYTES = 50_000_000_000
DAMAGED = "the shard was changed or damaged: delete it and shard the same images again, which makes it anew"
_COPY = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


def limit_bytes() -> int:
    """Bytes that the copies may take.

    Raises:
        InputError: if DDPM_SHARD_CACHE_BYTES is no positive whole number.
    """
    return limit_from(LIMIT_VARIABLE, DEFAULT_LIMIT_BYTES)


def open_copy(uri: str, *, sha256: str, size_bytes: int, folder: Path) -> int:
    """The local copy of a shard, downloaded unless it is there; the processes of a node download it once.

    The least recently opened copies that no process uses are deleted first, so that the limit holds and the disk has
    room. Copies in use may exceed the limit, which is logged; so may what other processes are downloading at this moment.

    Args:
        uri: of the shard in S3.
        sha256: of the whole file, hex; verified once, when it arrives.
        size_bytes: of the whole file; verified at every opening.
        folder: of the copies.

    Returns:
        A file descriptor for reading. The copy counts as used until it is closed.

    Raises:
        MissingError: if there is no such shard.
        InputError: if it is not what the index says.
        StorageError: if it cannot be fetched, or the disk is full or not writable.
    """
    path = folder / sha256
    with _room_errors(uri, size_bytes, folder):
        found = _use(path, size_bytes)
        if found is not None:
            return found
        make_folder(folder, "the shard cache")
        with alone(path.with_suffix(".lock")):
            found = _use(path, size_bytes)  # another process may have fetched it while we waited
            if found is not None:
                return found
            _trim(folder, size_bytes)
            return _download(uri, sha256, size_bytes, path)


def _use(path: Path, size_bytes: int) -> int | None:
    """Open a copy and mark it as used, now and from now on; None if there is none."""
    try:
        file = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    fcntl.flock(file, fcntl.LOCK_SH)  # waits only while somebody is deleting it
    state = os.fstat(file)
    # Deleted meanwhile, or torn by a power cut: as good as absent. What is downloaded takes its place.
    if state.st_nlink == 0 or state.st_size != size_bytes:
        os.close(file)
        return None
    os.utime(file)
    return file


def _download(uri: str, sha256: str, size_bytes: int, path: Path) -> int:
    """Fetch, verify and name a copy; the caller holds its lock."""
    aside = path.with_suffix(ARRIVING)
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed here
    aside.mkdir()
    try:
        storage.download(uri, aside / "shard")
        file = os.open(aside / "shard", os.O_RDONLY)
        try:
            _verify(file, uri, sha256, size_bytes)
            os.fsync(file)
            fcntl.flock(file, fcntl.LOCK_SH)  # before it has its name, so that at no moment it could be deleted
            os.replace(aside / "shard", path)
        except BaseException:
            os.close(file)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return file


def _verify(file: int, uri: str, sha256: str, size_bytes: int) -> None:
    size = os.fstat(file).st_size
    if size != size_bytes:
        raise InputError(f"{uri}: it has {size} bytes, the index says {size_bytes}; {DAMAGED}")
    with open(file, "rb", closefd=False) as reading:
        found = hashlib.file_digest(reading, "sha256").hexdigest()
    if found != sha256:
        raise InputError(f"{uri}: sha256 is {found}, the index says {sha256}; {DAMAGED}")


def _trim(folder: Path, coming: int) -> None:
    """Delete the least recently opened copies that nobody uses, until `coming` bytes more fit the limit and the disk."""
    with alone(folder / "trim.lock"):
        limit = limit_bytes()
        sweep(folder)
        copies = sorted((entry.stat().st_mtime_ns, entry.name, entry.stat().st_size) for entry in _copies(folder))
        taken = sum(size for _, _, size in copies)
        excess = max(taken + coming - limit, coming - shutil.disk_usage(folder).free)
        for _, name, size in copies:
            if excess <= 0:
                return
            if _deleted(folder / name):
                taken, excess = taken - size, excess - size
    if taken + coming > limit:
        _warn(folder, limit)


@cache
def _warn(folder: Path, limit: int) -> None:
    """Once a process; it goes on, for without these shards it could not train at all."""
    logger.warning(
        f"the shards in use alone exceed {LIMIT_VARIABLE} = {limit:,} in {folder}; raise it, or lower --train.window"
    )


def _copies(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if _COPY.fullmatch(entry.name)]


def _deleted(path: Path) -> bool:
    """Delete a copy, unless a process uses it."""
    try:
        file = os.open(path, os.O_RDWR)  # a network file system wants it writable for an exclusive lock
    except FileNotFoundError:  # by hand
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


@contextmanager
def _room_errors(uri: str, size_bytes: int, folder: Path) -> Iterator[None]:
    """One line where the disk is full or not writable."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise storage.StorageError(
                f"{uri}: the disk of the shard cache {folder} is full: {shutil.disk_usage(folder).free:,} bytes are free, "
                f"the shard has {size_bytes:,}; make room there or set XDG_CACHE_HOME to a folder on another disk"
            ) from None
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise storage.StorageError(
                f"cannot write to the shard cache {folder}: {error.strerror}; set XDG_CACHE_HOME"
            ) from None
        raise
