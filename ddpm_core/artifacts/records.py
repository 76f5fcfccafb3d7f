"""JSON records that several processes change by compare-and-swap: read with the bytes that stand, for the swap."""

import json
from typing import Any, TypeVar

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.serialization import from_json, to_json

T = TypeVar("T")


def read_record(kind: type[T], uri: str, format_version: int, *, remedy: str) -> tuple[T, bytes] | None:
    """A record, and its bytes as they stand; None if there is none.

    Args:
        kind: a dataclass with a `format_version`.
        format_version: the newest that this code reads.
        remedy: what to do with a file that is no record.

    Raises:
        InputError: in one line, if it is no record, or a newer one.
    """
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return None
    try:
        plain = json.loads(data)
    except ValueError:
        raise InputError(f"{uri} is not JSON; {remedy}") from None
    version = plain.get("format_version") if isinstance(plain, dict) else None
    if not isinstance(version, int) or version > format_version:
        raise InputError(f"{uri} has format_version {version}; this code reads up to {format_version}: update it")
    return from_json(kind, plain), data


def record_bytes(record: Any) -> bytes:
    """A record as it is to stand."""
    return json.dumps(to_json(record), indent=2).encode() + b"\n"
