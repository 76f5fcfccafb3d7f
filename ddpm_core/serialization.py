"""Configs as plain JSON, and back, strictly."""

import dataclasses
import json
from typing import Any, TypeVar

import cattrs

from ddpm_core.errors import InputError

_strict = cattrs.Converter(forbid_extra_keys=True)
T = TypeVar("T")


def to_json(config: Any) -> dict[str, Any]:
    """A config as JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_json(kind: type[T], plain: dict[str, Any]) -> T:
    """A config from JSON, read strictly.

    Raises:
        InputError: if a key is unknown or a value is of the wrong type.
    """
    try:
        return _strict.structure(plain, kind)
    except cattrs.BaseValidationError as error:
        raise InputError(f"not a {kind.__name__}: {'; '.join(cattrs.transform_error(error))}") from None
