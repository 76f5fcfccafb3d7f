"""Configs as plain JSON, and back, strictly."""

import dataclasses
import json
from typing import Any, Literal, TypeVar

import cattrs

from ddpm_core.errors import InputError
from ddpm_core.types import ImageSize, canonical_size

_strict = cattrs.Converter(forbid_extra_keys=True)
T = TypeVar("T")
_WHERE = "\0"
"""Ends what is told of an error; cattrs puts the place behind it."""


@_strict.register_structure_hook
def _image_size(plain: Any, _: Any) -> ImageSize:
    """One whole number, or a list of two."""
    if type(plain) is int:
        return plain
    if isinstance(plain, list | tuple) and [type(side) for side in plain] == [int, int]:
        return canonical_size(plain)
    raise ValueError(f"{plain!r} is no size; expected one number for a square, or [height, width]")


@_strict.register_structure_hook
def _number_or_auto(plain: Any, _: Any) -> int | Literal["auto"] | None:
    if plain is None or plain == "auto" or type(plain) is int:
        return plain  # type: ignore[no-any-return]
    raise ValueError(f"{plain!r} is no number; expected one, auto or null")


def to_json(config: Any) -> dict[str, Any]:
    """A config as JSON types.

    A field that was added when configs had been saved already says so by the metadata `unless_default`. It is left out while
    it has its default: what is named by a digest of the JSON keeps its name, and what was saved before is no different.
    """
    plain: dict[str, Any] = json.loads(json.dumps(_plain(config)))
    return plain


def from_json(kind: type[T], plain: dict[str, Any]) -> T:
    """A config from JSON, read strictly.

    Raises:
        InputError: if a key is unknown or a value is of the wrong type.
    """
    try:
        return _strict.structure(plain, kind)
    except cattrs.BaseValidationError as error:
        told = [line.partition(_WHERE)[0] for line in cattrs.transform_error(error, format_exception=_told)]
        raise InputError(f"not a {kind.__name__}: {'; '.join(told)}") from None


def _told(error: BaseException, kind: Any) -> str:
    """What a config itself said of a value that is out of its range is kept; it names the value, and needs no place."""
    return f"{error}{_WHERE}" if isinstance(error, InputError) else cattrs.v.format_exception(error, kind)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if not dataclasses.is_dataclass(value):
        return value
    said = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if _says(field, value)}
    return _plain(said)


def _says(field: dataclasses.Field[Any], config: Any) -> bool:
    """Whether the JSON names the field."""
    if not field.metadata.get("unless_default"):
        return True
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return bool(getattr(config, field.name) != default)
