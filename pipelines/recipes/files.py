"""A recipe as a TOML file: which one it starts from, and what it changes.

    recipe = "digits"

    [schedule]
    name = "cosine"

Any command takes such a file in place of a recipe's name.
"""

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import InputError, MissingError, nearest
from ddpm_core.serialization import from_json, to_json
from pipelines.recipes.config import Recipe
from pipelines.recipes.recipes import RECIPES, make

_NONE = "none"
"""TOML has no null."""
_LEFT_OUT = ("store", "recipe", "name")
"""Of the command, not of what is trained."""


def recipe_file(recipe: Recipe, about: str) -> str:
    """The file's text.

    Args:
        about: a line for whoever reads it.
    """
    own, changed = (_flat(_complete(each)) for each in (make(recipe.recipe), recipe))
    tables: dict[str, list[str]] = {}
    for path, value in changed.items():
        if path not in _LEFT_OUT and own[path] != value:
            table, _, name = path.rpartition(".")
            tables.setdefault(table, []).append(f"{name} = {json.dumps(_NONE if value is None else value)}")
    lines = [f"# {about}.", f"recipe = {json.dumps(recipe.recipe)}", *tables.pop("", [])]
    for table in sorted(tables):
        lines += ["", f"[{table}]", *tables[table]]
    return "\n".join(lines) + "\n"


def read_recipe(path: str) -> Recipe:
    """The recipe that a file says, which lies in a folder or on S3.

    Raises:
        MissingError: if there is no such file.
        InputError: in one line, if it is no TOML, starts from no recipe, or has a field that there is not, or a value that is none.
    """
    if not storage.exists(path):
        raise MissingError(f"no recipe file at {path}")
    try:
        said = tomllib.loads(storage.read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from None
    name = said.pop("recipe", None)
    if name not in RECIPES:
        raise InputError(f"{path} has recipe = {name!r}; expected one of {', '.join(RECIPES)}")
    recipe = make(name)
    plain = to_json(recipe)
    known = _flat(_complete(recipe))
    for field, value in _flat(said).items():
        if field in _LEFT_OUT or field not in known:
            raise InputError(f"{path} has {field}, which is no field of a recipe{nearest(field, known)}")
        *tables, last = field.split(".")
        node = plain
        for table in tables:
            node = node[table]
        node[last] = None if value == _NONE else value
    try:
        return from_json(Recipe, plain)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _complete(config: Any) -> dict[str, Any]:
    """All fields, those too that a config's JSON leaves out while they have their defaults."""
    return {
        name: _complete(value) if hasattr(value, "__dataclass_fields__") else value
        for name, value in vars(config).items()
    }


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted path."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found
