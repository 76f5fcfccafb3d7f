"""What a URI is here: an absolute local path (or file://), or s3://bucket/key."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from ddpm_core.errors import InputError, UserError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):/")


class StorageError(UserError, OSError):
    """A store that could not be read or written; the message is one line: what, where, and what to do."""


def is_s3(uri: str) -> bool:
    """Whether the URI names an S3 object or prefix.

    Raises:
        InputError: if it has a scheme other than s3:// and file://.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None or uri.startswith("file://"):
        return False
    if uri.startswith("s3://"):
        return True
    raise InputError(f"{uri} is no store that is known here; expected a local path, file:///path or s3://bucket/prefix")


def split_s3(uri: str) -> tuple[str, str]:
    """s3://bucket/key -> (bucket, key without a slash at its end)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise InputError(
            "the s3:// URI has a part before @, as of a key and its secret; expected s3://bucket/prefix, and credentials from the "
            "environment, a profile or a role"
        )
    if not bucket:
        raise InputError(f"{uri} names no bucket; expected s3://bucket/prefix")
    return bucket, key.rstrip("/")


def local_path(uri: str) -> Path:
    """The absolute path of a local URI; ~ is expanded, symbolic links are left as they are."""
    path = unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri
    if not path:
        raise InputError("an empty path was given; expected a local path or s3://bucket/prefix")
    return Path(os.path.abspath(os.path.expanduser(path)))


def absolute(uri: str) -> str:
    """The same place, independent of the working directory: local paths made absolute, no slash at the end."""
    if is_s3(uri):
        return "s3://" + "/".join(part for part in split_s3(uri) if part)
    return str(local_path(uri))


def join(uri: str, *parts: str) -> str:
    """The URI of something below a folder; slashes between the parts are put right."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def below(uri: str, name: str) -> str:
    """The URI of what `walk` found below a folder; unlike `join` it leaves every slash of the name as it is."""
    return f"{absolute(uri).rstrip('/')}/{name}"
