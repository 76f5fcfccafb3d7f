"""What a library raises over a stranger's bytes, as one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ddpm_core.errors import InputError, UserError

_DISKS_OWN = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.EMFILE,
        errno.ENFILE,
        errno.EROFS,
    )
)
_MAX_CHARACTERS = 200


@contextmanager
def worded(where: str, form: str) -> Iterator[None]:
    """Whatever is raised over damaged content becomes an InputError that names it; the disk's own trouble stays what it is.

    Args:
        where: the file.
        form: what it is read as.
    """
    try:
        yield
    except UserError:
        raise
    # Libraries raise anything over damaged bytes: ValueError, struct.error, tokenize.TokenError, OSError without a number, ...
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISKS_OWN:
            raise
        said = " ".join(str(error).split())[:_MAX_CHARACTERS] or type(error).__name__
        raise InputError(f"{where} is damaged and cannot be read as {form}: {said}; fetch it again") from error
