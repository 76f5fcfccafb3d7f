"""A checkpoint's state.json, in whichever format, and the files that it names, each with its sha256."""

import hashlib
import json
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import InputError, MissingError

FORMAT_VERSION = 3
SUFFIX = {"model": ".safetensors", "ema": ".safetensors", "optimizer": ".safetensors", "history": ".parquet"}
_FACTS = {
    "format_version": int,
    "step": int,
    "images_seen": int,
    "seed": int,
    "dataset_digest": str,
    "dataset_uri": str,
    "config": dict,
    "versions": dict,
    "sha256": dict,
}
"""What a state.json says at least, whichever code wrote it."""
_REMEDY = "take another checkpoint of the run, or train on by its command, which makes this one anew"


class NewerFormatError(InputError):
    """A checkpoint that a later version of this code wrote: it is not damaged, and not to be replaced."""


def sha256_of(file: bytes) -> str:
    """By which weights are named: of their safetensors file, in hex."""
    return hashlib.sha256(file).hexdigest()


def read_state(uri: str) -> dict[str, Any]:
    """What a checkpoint's state.json says.

    Raises:
        MissingError: if there is none.
        InputError: if it is damaged; NewerFormatError, if it is newer than this code.
    """
    try:
        state: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, "state.json")))
    except FileNotFoundError:
        raise MissingError(f"no checkpoint at {uri}; expected a folder with state.json") from None
    except ValueError as error:  # bytes that are no text are one too
        raise InputError(f"{uri}/state.json is not JSON ({error})") from None
    missing = {fact for fact in _FACTS if not isinstance(state, dict) or not isinstance(state.get(fact), _FACTS[fact])}
    if missing:
        raise InputError(
            f"{uri}/state.json does not say {', '.join(sorted(missing))}; it is damaged, or of something else"
        )
    if state["format_version"] > FORMAT_VERSION:
        raise NewerFormatError(
            f"{uri} has format_version {state['format_version']}; this code reads up to {FORMAT_VERSION}: update it"
        )
    return state


def parts_of(state: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Of each part the file and its sha256. Up to format 2 the files had no writer in their names, and the sums went by file."""
    sums = state["sha256"]
    if "files" in state:
        return {part: (name, sums[part]) for part, name in state["files"].items()}
    return {part: (part + suffix, sums[part + suffix]) for part, suffix in SUFFIX.items()}


def read_part(uri: str, part: str, state: dict[str, Any]) -> bytes:
    """The bytes of a part.

    Raises:
        InputError: if they do not have the recorded sha256.
    """
    name, expected = parts_of(state)[part]
    data = storage.read_bytes(storage.join(uri, name))
    found = sha256_of(data)
    if found != expected:
        raise InputError(f"{uri}/{name}: sha256 is {found}, state.json says {expected}; {_REMEDY}")
    return data
