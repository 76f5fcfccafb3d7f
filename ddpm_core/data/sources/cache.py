"""A folder on local disk for what can only be read once it is fetched, unpacked or laid out; kept under a byte limit.

It lies in the user's cache folder (XDG_CACHE_HOME on Linux), and can be deleted at any time when nothing runs. In each entry
lies `.in-use`, on which a process that uses the entry holds a shared lock until it ends. Deleting takes the exclusive lock,
so an entry in use is never deleted. Its time of change is that of the last use.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import platformdirs

from ddpm_core import storage
from ddpm_core.errors import UserError
from ddpm_core.storage.disk_cache import (
    ARRIVING,
    FULL,
    REMEDY,
    CacheError,
    alone,
    limit_from,
    make_folder,
    stands,
    sweep,
)
from ddpm_core.types import bytes_words

LIMIT_VARIABLE = "DDPM_SOURCE_CACHE_BYTES"
"""Environment variable: bytes that the entries on this machine may take; read whenever one is made."""
DEFAULT_LIMIT_BYTES = 50_000_000_000
_IN_USE = ".in-use"
_LEAVING = ".tmp-"
_LARGE_BYTES = 100_000_000
_STEP_BYTES = 1 << 20

logger = logging.getLogger(__name__)
_held: dict[Path, int] = {}
"""Locks on the entries that this process uses, kept until it ends: whoever was given one may read it at any later time."""


def cached(kind: str, identity: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` filled, now or earlier; it stays there until this process ends.

    When one is made, the least recently used ones that no process uses are deleted, so that the limit holds. Those in use
    may exceed it, which is logged.

    Args:
        kind: what is in it, as `unpacked`.
        identity: of what it is made from; the same identity means the same content.
        make: fills the empty folder that it is given; processes that want the same folder wait for the first.

    Returns:
        The folder; whole, for it gets its name once `make` has returned.

    Raises:
        CacheError: if the cache cannot be written, or its disk has no room.
    """
    root = Path(platformdirs.user_cache_dir("ddpm")) / "sources"
    folder = root / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    if _use(folder):
        return folder
    make_folder(root, "the cache")
    with _disk_errors(root):
        with alone(root / f"{folder.name}.lock"):
            if not _use(folder):  # else another process has made it while we waited
                _make(folder, make)
        _trim(root, 0)  # it may have become larger than was known before
    return folder


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    """Fill an entry and name it; the caller holds its lock."""
    aside = folder.with_suffix(ARRIVING)
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed here
    aside.mkdir()
    try:
        make(aside)
        lock = _locked(aside)  # before it has its name, so that at no moment it could be deleted
        aside.rename(folder)
        _held[folder] = lock
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _use(folder: Path) -> bool:
    """Mark an entry as used, now and until this process ends; False if there is none."""
    try:
        file = _held[folder] if folder in _held else _locked(folder)
    except OSError:  # none is there, or it cannot be reached, which making it will tell
        return False
    if not stands(folder / _IN_USE, file):  # deleted while we waited for the lock, or by hand
        os.close(file)
        _held.pop(folder, None)
        return False
    _held[folder] = file
    with suppress(OSError):  # on a disk that may only be read nobody deletes it
        os.utime(file)
    return True


def _locked(folder: Path) -> int:
    """A shared lock; waits only while somebody is deleting the entry."""
    path = folder / _IN_USE
    try:
        file = os.open(
            path, os.O_RDWR | os.O_CREAT, 0o666
        )  # a network file system wants it writable for an exclusive lock
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        file = os.open(path, os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def make_room(folder: Path, num_bytes: int, what: str) -> None:
    """Delete the least recently used entries until so many bytes more fit the limit and the disk.

    Args:
        folder: of the entry that is being made.
        num_bytes: that will be written into it.
        what: is written there, for the message.

    Raises:
        CacheError: if the disk cannot hold them and keep some room for others.
    """
    _trim(folder.parent, num_bytes)
    free, reserve = shutil.disk_usage(folder).free, _reserve_bytes(folder)
    if free < num_bytes + reserve:
        raise CacheError(
            f"{what} takes {bytes_words(num_bytes)}, and the disk of the cache {folder.parent} has {bytes_words(free)} left, "
            f"of which {bytes_words(reserve)} stay free; make room there or {REMEDY}"
        )


class Room:
    """The disk's room for an entry whose length nobody knows, as of what is unpacked: all that is free but for a reserve."""

    def __init__(self, folder: Path, what: str) -> None:
        """
        Args:
            folder: of the entry that is being made.
            what: is written there, for the message.
        """
        self._folder, self._what, self._written = folder, what, 0
        self._reserve = _reserve_bytes(folder)

    def take(self, num_bytes: int) -> None:
        """Before so many bytes more are written.

        Raises:
            CacheError: if the disk does not hold them.
        """
        needed = self._reserve + num_bytes
        if shutil.disk_usage(self._folder).free < needed:
            _trim(self._folder.parent, needed)
            if (free := shutil.disk_usage(self._folder).free) < needed:
                raise CacheError(
                    f"{self._what} unpacks to more than {bytes_words(self._written)}, and the disk of the cache "
                    f"{self._folder.parent} has {bytes_words(free)} left; make room there or {REMEDY}"
                )
        self._written += num_bytes


def copy_stream(read: Callable[[int], bytes], write: Callable[[bytes], int], room: Room) -> None:
    """Copy what is being unpacked, while there is room."""
    while data := read(_STEP_BYTES):
        room.take(len(data))
        write(data)


def _reserve_bytes(folder: Path) -> int:
    """What of a disk is left to others: 1 GiB, less on a small disk or on one that is nearly full already."""
    disk = shutil.disk_usage(folder)
    return min(1 << 30, disk.total // 20, disk.free // 2)


def _trim(root: Path, coming: int) -> None:
    """Delete the least recently used entries that nobody uses, until `coming` bytes more fit the limit and the disk."""
    limit = limit_from(LIMIT_VARIABLE, DEFAULT_LIMIT_BYTES)
    with alone(root / "trim.lock"):
        for left in root.glob(f"{_LEAVING}*"):  # by a process that was killed below
            shutil.rmtree(left, ignore_errors=True)
        sweep(root)
        entries = sorted((_last_used_ns(folder), _size_bytes(folder), folder) for folder in _entries(root))
        taken = sum(size for _, size, _ in entries)
        excess = max(taken + coming - limit, coming - shutil.disk_usage(root).free)
        for _, size, folder in entries:
            if excess <= 0:
                return
            if _deleted(folder):
                taken, excess = taken - size, excess - size
    if taken + coming > limit:
        _warn(root, limit)


@cache
def _warn(root: Path, limit: int) -> None:
    """Once a process; it goes on, for without these it could not read its images at all."""
    logger.warning(f"the sources in use alone exceed {LIMIT_VARIABLE} = {limit:,} in {root}")


def _entries(root: Path) -> list[Path]:
    with os.scandir(root) as found:
        return [root / each.name for each in found if each.is_dir() and "." not in each.name]


def _last_used_ns(folder: Path) -> int:
    lock = folder / _IN_USE
    return (lock if lock.exists() else folder).stat().st_mtime_ns


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


def _deleted(folder: Path) -> bool:
    """Delete an entry, unless a process uses it; the caller holds the lock of trimming."""
    lock = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        aside = folder.parent / f"{_LEAVING}{uuid.uuid4().hex}"
        folder.rename(aside)  # at once, so that nobody finds half of it
        shutil.rmtree(aside)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """One line where the disk is full or not writable; what is wrong with the source stays what it is."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno in FULL:
            free = shutil.disk_usage(root).free
            raise CacheError(
                f"the disk of the cache {root} is full: {bytes_words(free)} left; make room there or {REMEDY}"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and str(error.filename).startswith(str(root)):
            raise CacheError(f"cannot write to the cache {root}: {error.strerror}; {REMEDY}") from None
        raise


def fetched(uri: str) -> Path:
    """A local copy of a file: itself if it is local, else downloaded once for each version of it."""
    if not storage.is_s3(uri):
        return Path(storage.absolute(uri))
    folder, _, name = uri.rpartition("/")
    return fetched_together(folder, [name]) / name


def fetched_together(folder: str, names: Sequence[str]) -> Path:
    """A local folder with these files of a folder: itself if it is local, else they are downloaded into one."""
    if not storage.is_s3(folder):
        return Path(storage.absolute(folder))
    uris = [storage.join(folder, name) for name in names]
    versions = [storage.fingerprint(uri) for uri in uris]

    def download(aside: Path) -> None:
        size = sum(storage.size_bytes(uri) for uri in uris)
        what = uris[0] if len(uris) == 1 else f"{len(uris)} files of {folder}"
        make_room(aside, size, what)
        if size > _LARGE_BYTES:
            logger.warning(f"fetching {what} ({bytes_words(size)}) into the cache {aside.parent}, once")
        for name, uri in zip(names, uris, strict=True):
            storage.download(uri, aside / name)

    return cached("fetched", f"{folder} {names} {versions}", download)
