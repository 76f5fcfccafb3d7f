"""Whether a value in a TOML file is one of a field's, and what was expected instead."""

import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any

from ddpm_core.errors import nearest

NONE = "none"
"""TOML has no null."""
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "words in quotes",
    type(None): f'"{NONE}"',
}


def kinds_of(config: type, prefix: str = "") -> dict[str, Any]:
    """By dotted path, the types of all fields of a config and of those inside it."""
    hints = typing.get_type_hints(config)
    found: dict[str, Any] = {}
    for field in fields(config):
        path, kind = f"{prefix}{field.name}", hints[field.name]
        found |= kinds_of(kind, f"{path}.") if is_dataclass(kind) and isinstance(kind, type) else {path: kind}
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, as strictly as TOML tells them apart; a whole number is a number."""
    inner = typing.get_args(kind)
    if _is_union(kind):
        return any(fits(value, each) for each in inner)
    if typing.get_origin(kind) is typing.Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return False
        each_kind = (inner[0],) * len(value) if inner[-1] is ... else inner
        return len(value) == len(each_kind) and all(map(fits, value, each_kind))
    return type(value) is kind or (kind is float and type(value) is int)


def expected_words(value: Any, kind: Any) -> str:
    """What a value may be, in words, with the nearest name where it is one of some."""
    if _is_union(kind):
        return " or ".join(expected_words(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        names = [str(each) for each in typing.get_args(kind)]
        return f"one of {', '.join(names)}{nearest(str(value), names)}"
    if typing.get_origin(kind) is tuple:
        first, *more = typing.get_args(kind)
        return f"a list of {expected_words(value, first)}{' each' if more == [...] else ', of two'}"
    return _WORDS[kind]


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
