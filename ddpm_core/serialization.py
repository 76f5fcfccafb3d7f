"""Configs as plain JSON, and back, strictly."""

import dataclasses
import json
from typing import Any, TypeVar

import cattrs

from ddpm_core.errors import InputError

_strict = cattrs.Converter(forbid_extra_keys=True)
T = TypeVar("T")


def to_json(config: Any) -> dict[str, Any]:
    """A config as JSON types.

    A field that was added when configs had been saved already says so by the metadata `unless_default`. It is left out while
    it has its default: what is named by a digest of the JSON keeps its name, and what was saved before is no different.
    """
    plain: dict[str, Any] = json.loads(json.dumps(_plain(config)))
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        said = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: _plain(v) for f, v in said if not (f.metadata.get("unless_default") and v == f.default)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[T], plain: dict[str, Any]) -> T:
    """A config from JSON, read strictly.

    Raises:
        InputError: if a key is unknown or a value is of the wrong type.
    """
    try:
        return _strict.structure(plain, kind)
    except cattrs.BaseValidationError as error:
        raise InputError(f"not a {kind.__name__}: {'; '.join(cattrs.transform_error(error))}") from None
