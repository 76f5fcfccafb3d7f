"""This machine's folder for temporary files, which TMPDIR names."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_core.errors import InputError, UserError
from ddpm_core.storage.uri import StorageError

_REMEDY = "set TMPDIR to a folder that may be written, on a disk that has room"


def check_temporary() -> None:
    """Make sure that temporary files can be written somewhere.

    Raises:
        InputError: in one line.
    """
    try:
        tempfile.gettempdir()  # which tries TMPDIR and the usual folders by writing there
    except OSError as error:
        raise InputError(f"temporary files cannot be written: {error.strerror}; {_REMEDY}") from None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone after the block.

    Raises:
        StorageError: if there can be none, or its disk is full.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="ddpm-")
    except OSError as error:
        raise StorageError(f"temporary files cannot be written: {error.strerror}; {_REMEDY}") from None
    with made as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if isinstance(error, UserError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageError(f"{folder}: {error.strerror}; {_REMEDY}") from None
