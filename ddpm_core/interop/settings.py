"""What both readers of a foreign config.json share: its defaults filled in, and a refusal that names both values."""

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from ddpm_core.errors import InputError

T = TypeVar("T")

_SHOWN = 160
"""Characters of a value in a message: a list of all betas is not for one line."""


def settle(plain: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings that a config means: what it leaves out is as in diffusers.

    Args:
        plain: the JSON object. Keys that begin with an underscore are about the file, not about the model.
        where: its URI, for the message.

    Raises:
        InputError: if it has a key that is not known, and so may mean anything.
    """
    given = {key: value for key, value in plain.items() if not key.startswith("_")}
    for key in sorted(given.keys() - defaults.keys()):
        raise InputError(
            f"{where}: {key} is {_short(given[key])}; expected no such key, of which this code knows nothing"
        )
    return {**defaults, **given}


def expect_class(plain: Mapping[str, Any], expected: tuple[str, ...], where: str) -> None:
    """Refuse the config of another class.

    Raises:
        InputError: with both names.
    """
    if plain.get("_class_name") not in expected:
        raise InputError(f"{where}: _class_name is {plain.get('_class_name')!r}; expected {' or '.join(expected)}")


def expect(settings: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Refuse settings that have no counterpart here.

    Args:
        expected: the only value of each that can be said here.

    Raises:
        InputError: naming the first, with both values.
    """
    for key, value in expected.items():
        if settings[key] != value:
            refuse(settings, key, repr(value), where)


def refuse(settings: Mapping[str, Any], key: str, expected: str, where: str) -> NoReturn:
    """Say what was found and what was expected.

    Raises:
        InputError: always.
    """
    raise InputError(f"{where}: {key} is {_short(settings[key])}; expected {expected}")


def whole(settings: Mapping[str, Any], key: str, where: str, least: int = 1) -> int:
    """A setting that is a whole number, `least` or more.

    Raises:
        InputError: if it is not.
    """
    value = settings[key]
    if type(value) is not int or value < least:
        refuse(settings, key, f"a whole number, {least} or more", where)
    return value


def chosen(settings: Mapping[str, Any], key: str, meanings: Mapping[Any, T], where: str) -> T:
    """What a setting means that is one of a few values.

    Raises:
        InputError: if it is another one.
    """
    value = settings[key]
    for known, meaning in meanings.items():
        if type(value) is type(known) and value == known:
            return meaning
    refuse(settings, key, " or ".join(map(repr, meanings)), where)


def number(settings: Mapping[str, Any], key: str, where: str) -> float:
    """A setting that is a number.

    Raises:
        InputError: if it is not.
    """
    value = settings[key]
    if type(value) not in (int, float):
        refuse(settings, key, "a number", where)
    return float(value)


def flag(settings: Mapping[str, Any], key: str, where: str) -> bool:
    """A setting that is true or false.

    Raises:
        InputError: if it is neither.
    """
    value = settings[key]
    if type(value) is not bool:
        refuse(settings, key, "true or false", where)
    return value


def numbers(settings: Mapping[str, Any], key: str, count: int, where: str) -> tuple[float, ...]:
    """A setting that is a list of so many numbers.

    Raises:
        InputError: if it is not.
    """
    values = settings[key]
    if not isinstance(values, list | tuple) or any(type(value) not in (int, float) for value in values):
        refuse(settings, key, "a list of numbers", where)
    if len(values) != count:
        refuse(settings, key, f"{count} numbers and not {len(values)}", where)
    return tuple(map(float, values))


def listed(settings: Mapping[str, Any], key: str, kind: type, where: str) -> list[Any]:
    """A setting that is a list of values of a kind, at least one.

    Raises:
        InputError: if it is not.
    """
    values = settings[key]
    if not isinstance(values, list | tuple) or not values or any(type(value) is not kind for value in values):
        refuse(settings, key, f"a list of {kind.__name__}", where)
    return list(values)


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
