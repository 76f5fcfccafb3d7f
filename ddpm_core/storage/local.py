"""Files on local disk. Whatever appears under its own name is whole: written aside, flushed, then moved into place."""

import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ddpm_core.errors import InputError, MissingError
from ddpm_core.storage.entries import CIRCLE, DANGLING, SPECIAL, UNREADABLE, Entry, printable
from ddpm_core.storage.uri import StorageError

TEMPORARY = ".tmp-"
"""Start of the names of files that are still being written; list_files passes over what a killed writer left."""
_MAX_WAYS = 1000
"""Links that cross multiply: ten folders that each link to all others are millions of paths."""
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """One line in place of the operating system's errors; FileNotFoundError keeps its type."""
    try:
        yield
    except FileNotFoundError:
        raise MissingError(f"no file at {path}") from None
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error


def read_range(path: Path, offset: int, size: int) -> bytes:
    with errors(path), open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def read_bytes(path: Path) -> bytes:
    with errors(path):
        return path.read_bytes()


def open_read(path: Path) -> BinaryIO:
    with errors(path):
        return open(path, "rb")


def size_bytes(path: Path) -> int:
    with errors(path):
        return path.stat().st_size


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chain:
    """A folder that is being walked, by what it really is, and the folders that led to it."""

    device_and_inode: tuple[int, int]
    outer: "_Chain | None"
    through_link: bool
    """Whether a link, here or above, led to it, so that it may lie elsewhere, too."""

    def leads_back_to(self, state: os.stat_result) -> bool:
        link: _Chain | None = self
        while link is not None:
            if link.device_and_inode == (state.st_dev, state.st_ino):
                return True
            link = link.outer
        return False


def walk(folder: Path) -> Iterator[Entry]:
    """See ddpm_core.storage.walk."""
    with errors(folder):
        if not folder.is_dir():
            return
        state = folder.stat()
        os.scandir(folder).close()
    pending = [("", _Chain(device_and_inode=(state.st_dev, state.st_ino), outer=None, through_link=False))]
    ways: Counter[tuple[int, int]] = Counter()
    while pending:  # no recursion: folders may lie deeper than Python's stack
        name, chain = pending.pop()
        if chain.through_link:
            ways[chain.device_and_inode] += 1
            if ways[chain.device_and_inode] > _MAX_WAYS:
                raise StorageError(
                    f"links lead to the folder {folder / name} in more than {_MAX_WAYS} ways; expected links that do not cross: "
                    f"remove those that no image needs"
                )
        try:
            with os.scandir(folder / name) as entries:
                for entry in entries:
                    if entry.name.startswith(TEMPORARY):
                        continue
                    found = _look_at(entry, f"{name}/{entry.name}" if name else entry.name, chain)
                    if isinstance(found, Entry):
                        yield found
                    elif found is not None:
                        pending.append(found)
        except FileNotFoundError:  # it went away meanwhile
            continue
        except OSError as error:
            yield Entry(name=name, size_bytes=None, version="", problem=f"{UNREADABLE}: {error.strerror}")


def _look_at(entry: "os.DirEntry[str]", name: str, chain: _Chain) -> Entry | tuple[str, _Chain] | None:
    """A file, or a folder that is still to be walked; None if it went away meanwhile."""
    try:
        state = entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            if isinstance(error, FileNotFoundError):
                return None
            problem = f"unreadable: {error.strerror}"
        elif error.errno == errno.ELOOP:
            problem = CIRCLE
        else:
            problem = DANGLING if isinstance(error, FileNotFoundError) else f"{DANGLING}: {error.strerror}"
        return Entry(name=name, size_bytes=None, version="", problem=problem)
    if stat.S_ISDIR(state.st_mode):
        if chain.leads_back_to(state):
            return Entry(name=name, size_bytes=None, version="", problem=CIRCLE)
        linked = chain.through_link or entry.is_symlink()
        return name, _Chain(device_and_inode=(state.st_dev, state.st_ino), outer=chain, through_link=linked)
    if not stat.S_ISREG(state.st_mode):
        return Entry(name=name, size_bytes=None, version="", problem=SPECIAL)
    return Entry(name=name, size_bytes=state.st_size, version=str(state.st_mtime_ns), changed_s=state.st_mtime)


def describe(path: Path) -> tuple[int, str] | None:
    """(size, version) of one file; None if there is none."""
    if not path.is_file():
        return None
    state = path.stat()
    return state.st_size, str(state.st_mtime_ns)


@contextmanager
def _written_aside(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; flushed to disk on leaving, and gone afterwards whatever happened."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as below /proc: no file is missing, none can be made
        raise StorageError(f"{path.parent} cannot be made: {error.strerror}") from error
    aside = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Make a file's bytes, or a folder's names, last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """See ddpm_core.storage.writing."""
    with errors(path), _written_aside(path) as aside:
        aside.touch()
        mode = aside.stat().st_mode  # as the umask has it, which whoever writes may not heed
        yield aside
        aside.chmod(mode)
        _flush(aside)
        os.replace(aside, path)
        _flush(path.parent)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """See ddpm_core.storage.writing_folder."""
    aside = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    with errors(path):
        aside.mkdir(parents=True)  # not by tempfile, whose folders are for their owner alone
    try:
        yield aside
        with errors(path):
            try:
                os.rename(aside, path)  # refuses a folder with anything in it
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise occupied(str(path)) from None
            _flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def occupied(uri: str) -> InputError:
    """Something stands where something new was to be written."""
    return InputError(f"{uri} is there; expected a folder that does not exist yet: name another one, or delete it")


def write_bytes(path: Path, data: bytes) -> None:
    with writing(path) as aside:
        aside.write_bytes(data)


def create_bytes(path: Path, data: bytes) -> bool:
    with errors(path), _written_aside(path) as aside:
        aside.write_bytes(data)
        _flush(aside)
        try:
            os.link(aside, path)  # unlike rename, refuses to replace, and the file is whole the moment it appears
        except FileExistsError:
            return False
        _flush(path.parent)
        return True


def replace_bytes(path: Path, data: bytes, expected: bytes) -> bool:
    with errors(path):
        if not path.is_file():
            return False
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # one swap at a time in this folder; freed on closing
            if not path.is_file() or path.read_bytes() != expected:
                return False
            write_bytes(path, data)
            return True
        finally:
            os.close(folder)


def copy(source: Path, target: Path) -> None:
    """Copy a file; the target appears whole or not at all."""
    with errors(source), open(source, "rb") as file, writing(target) as aside, open(aside, "wb") as copied:
        shutil.copyfileobj(file, copied, 1 << 20)


def link(path: Path, to: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links or it is another one."""
    with errors(path), _written_aside(to) as aside:
        try:
            os.link(path, aside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            copy(path, to)
            return
        os.replace(aside, to)
        _flush(to.parent)


def move(path: Path, to: Path) -> None:
    with errors(path):
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, to)
        _flush(to.parent)


def delete(path: Path) -> None:
    with errors(path):
        path.unlink(missing_ok=True)


def delete_unfinished(folder: Path) -> None:
    with errors(folder):
        for path in folder.rglob(f"{TEMPORARY}*") if folder.is_dir() else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def delete_rest(folder: Path) -> None:
    delete_unfinished(folder)
    with errors(folder):
        for path, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # a file came meanwhile, or another process did this
                os.rmdir(path)


def check_store(path: Path) -> None:
    """See ddpm_core.storage.check_store."""
    if path.exists() and not path.is_dir():
        raise InputError(f"the store {path} is a file; expected a folder or s3://bucket/prefix")
    if str(path).encode(errors="replace").decode() != str(path):  # MLflow's database takes none
        raise InputError(
            f"the store {printable(str(path))} has bytes in its path that are no UTF-8; expected a path without"
        )
    probe = path / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        write_bytes(probe, b"probe")
        probe.unlink()
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some, or name another --store" if full else "name a folder that you may write to"
        raise InputError(f"the store {path} cannot be written: {cause.strerror or cause}; {remedy}") from None
