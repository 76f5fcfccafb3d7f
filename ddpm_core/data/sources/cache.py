"""A folder on local disk for what can only be read once it is fetched or unpacked.

It lies in the user's cache folder (XDG_CACHE_HOME on Linux), and can be deleted at any time when nothing runs.
"""

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs

from ddpm_core import storage


def cached(kind: str, identity: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` filled, now or earlier.

    Args:
        kind: what is in it, as `unpacked`.
        identity: of what it is made from; the same identity means the same content.
        make: fills the empty folder that it is given; processes that want the same folder wait for the first.

    Returns:
        The folder; whole, for it gets its name once `make` has returned.
    """
    root = Path(platformdirs.user_cache_dir("ddpm")) / "sources"
    folder = root / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / f"{folder.name}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=root))
                try:
                    make(aside)
                    aside.rename(folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    except PermissionError as error:
        raise storage.StorageError(f"cannot write to the cache {root}: {error.strerror}; set XDG_CACHE_HOME") from None
    return folder


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
    versions = [storage.fingerprint(storage.join(folder, name)) for name in names]

    def download(aside: Path) -> None:
        for name in names:
            storage.download(storage.join(folder, name), aside / name)

    return cached("fetched", f"{folder} {names} {versions}", download)
