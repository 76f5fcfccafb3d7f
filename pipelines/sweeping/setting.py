"""A setting: a value for each field that is searched and read; what it makes of a recipe, and how it is named and shown."""

import json
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pipelines.naming import digest
from pipelines.recipes.config import Recipe
from pipelines.sweeping.fields import is_read

Setting = dict[str, Any]
"""By the field's dotted path, as `schedule.beta-end`, the value as JSON has it."""


def apply(recipe: Recipe, setting: Mapping[str, Any]) -> Recipe:
    """The recipe with a setting's values in it; with another batch size, of so many steps that it sees as many images.

    Raises:
        InputError: if a part of it refuses a value.
    """
    tree: dict[str, Any] = {}
    for path, value in setting.items():
        *parts, last = path.replace("-", "_").split(".")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = tuple(value) if isinstance(value, list) else value
    changed: Recipe = _replaced(recipe, tree)
    steps = math.ceil(recipe.train.steps * recipe.train.batch_size / changed.train.batch_size)
    return replace(changed, train=replace(changed.train, steps=steps))


def read_part(recipe: Recipe, setting: Mapping[str, Any]) -> Setting:
    """The setting without what its other values leave unread; as JSON has it.

    Raises:
        InputError: as `apply`.
    """
    changed = apply(recipe, setting)
    read = {path: value for path, value in setting.items() if is_read(changed, path)}
    return typing.cast(Setting, json.loads(json.dumps(read)))


def key_of(setting: Setting) -> str:
    """The name of a setting: by it its figures are found again."""
    return digest(setting)


def unique(settings: Iterable[Setting]) -> list[Setting]:
    """Each once."""
    return list({key_of(each): each for each in settings}.values())


def words_of(setting: Mapping[str, Any]) -> str:
    """A setting as a person reads it: cosine, base-channels 32."""
    said = []
    for path, value in setting.items():
        name = path.rpartition(".")[2]
        said.append(shown(value) if name == "name" else f"{name} {shown(value)}")
    return ", ".join(said) or "the recipe as it is"


def shown(value: Any) -> str:
    """A value as it is typed: 0.02; 1,2,4."""
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def flags_of(setting: Mapping[str, Any]) -> list[str]:
    """The flags that make it of the recipe."""
    return [
        word
        for path, value in setting.items()
        for word in (f"--{path}", *map(str, value if isinstance(value, list | tuple) else [value]))
    ]


def _replaced(config: Any, tree: Mapping[str, Any]) -> Any:
    changes = {
        name: _replaced(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in tree.items()
    }
    return replace(config, **changes)
