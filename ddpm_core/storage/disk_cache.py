"""What caches on this machine's disk share: a limit from the environment, and locks that end with their process."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_core.errors import InputError
from ddpm_core.storage.uri import StorageError

ARRIVING = ".arriving"
"""End of the name of what is being fetched or made; `<name>.lock` is held meanwhile."""
FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
REMEDY = "set XDG_CACHE_HOME to a folder that may be written, on a disk that has room"


class CacheError(StorageError):
    """A cache cannot be written, or its disk is full."""


def limit_from(variable: str, default: int) -> int:
    """Bytes that a cache may take.

    Raises:
        InputError: if the environment variable is no positive whole number.
    """
    text = os.environ.get(variable, str(default))
    if not re.fullmatch(r"[0-9]+", text) or int(text) == 0:
        raise InputError(f"{variable} is {text!r}; expected a whole number of bytes, 1 or more")
    return int(text)


def make_folder(folder: Path, what: str) -> None:
    """Make the folder of a cache, if it is not there.

    Raises:
        CacheError: if that cannot be done, for whatever reason: the user cache may be named below a file, in /proc, ...
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cannot write to {what} {folder}: {error.strerror}; {REMEDY}") from None


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file, which is there only while somebody holds it."""
    while True:
        with open(lock, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not stands(lock, file.fileno()):
                continue  # whoever held it removed it, and the lock is now the file that another has made since
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def stands(path: Path, file: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Remove what processes that were killed had fetched or made so far."""
    for aside in folder.glob(f"*{ARRIVING}"):
        lock = aside.with_suffix(".lock")
        with open(lock, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it is being fetched now
            if not stands(lock, file.fileno()):
                continue  # it has come, and another has begun to fetch the like
            shutil.rmtree(aside, ignore_errors=True)
            lock.unlink(missing_ok=True)
