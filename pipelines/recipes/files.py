"""A recipe as a TOML file. Any command takes one in place of a recipe's name.

A sweep's winner starts from a recipe, under whose name its runs go on, and says what it changes:

    recipe = "digits"

    [schedule]
    name = "cosine"

A project has a name of its own, under which nothing of another one lies; what it does not say is as the paper has it:

    project = "flowers"

    [data]
    source = "photos"    # beside this file
"""

import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm_core import storage
from ddpm_core.data.sources import DIGITS
from ddpm_core.errors import InputError, MissingError, nearest
from ddpm_core.serialization import from_json, to_json
from pipelines.recipes.config import Recipe, check_folder_name
from pipelines.recipes.recipes import RECIPES, make
from pipelines.recipes.values import NONE, expected_words, fits, kinds_of

SUFFIX = ".toml"
KEPT = f"recipe{SUFFIX}"
"""In the folder of a project's run: what it was trained by."""
_LEFT_OUT = ("store", "recipe", "file", "name")
"""Of the command, not of what is trained."""
_PLACES = ("data.source", "data.labels")
"""Paths, which are meant from where the file lies."""
_WIDTH = 110
"""Of a comment."""


def find_recipe(named: str) -> Recipe:
    """The recipe of a name, or that a file says.

    Args:
        named: as it was typed; a file ends with .toml.

    Raises:
        MissingError: if there is no such file.
        InputError: in one line, if there is no recipe of this name, or as `read_recipe`.
    """
    if named.endswith(SUFFIX):
        return replace(read_recipe(storage.absolute(named)), file=named)
    if named in RECIPES:
        return make(named)
    known = [*RECIPES, *(path.name for path in Path.cwd().glob(f"*{SUFFIX}"))]
    raise InputError(
        f"unknown recipe {named!r}; expected one of {', '.join(RECIPES)}, or a file NAME{SUFFIX}{nearest(named, known)}"
    )


def check_project(name: str) -> None:
    """Refuse a name that cannot be a project's: of another form, or a recipe's, whose models it would share.

    Raises:
        InputError: in one line.
    """
    if name in RECIPES:
        raise InputError(
            f"project is {name!r}, the name of a recipe, whose datasets and models it would share; expected another one"
        )
    check_folder_name("project", name)


def recipe_file(recipe: Recipe, about: str, reasons: Mapping[str, str] | None = None) -> str:
    """The file's text: what differs from the recipe of that name; of a project, what differs from the paper's settings.

    Args:
        about: for whoever reads it, a paragraph a line.
        reasons: by a field's dotted path, what is said above it; a field with a reason is always written.
    """
    import tomlkit  # whoever only reads does without

    reasons = reasons or {}
    own, changed = (_flat(_complete(each)) for each in (_begun(recipe.recipe), recipe))
    tree: dict[str, Any] = {}
    for path, value in changed.items():
        said = path in own and path not in _LEFT_OUT  # a command's flags have fields beside the recipe's
        if said and (own[path] != value or path in reasons):
            *tables, last = path.split(".")
            node = tree
            for table in tables:
                node = node.setdefault(table, {})
            node[last] = NONE if value is None else value
    document = tomlkit.document()
    for paragraph in about.splitlines():
        _comment(document, paragraph)
    document.append("recipe" if recipe.recipe in RECIPES else "project", tomlkit.item(recipe.recipe))
    _fill(document, tree, reasons)
    return tomlkit.dumps(document)


def _fill(container: Any, tree: Mapping[str, Any], reasons: Mapping[str, str], prefix: str = "") -> None:
    """Values first: behind a table they would be its own."""
    import tomlkit

    for name, value in sorted(tree.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(value, dict):
            table = tomlkit.table(is_super_table=all(isinstance(each, dict) for each in value.values()))
            _fill(table, value, reasons, f"{prefix}{name}.")
            container.append(name, table)
        else:
            _comment(container, reasons.get(f"{prefix}{name}", ""))
            container.append(name, tomlkit.item(list(value) if isinstance(value, tuple) else value))


def _comment(container: Any, paragraph: str) -> None:
    import tomlkit

    for line in textwrap.wrap(paragraph, _WIDTH, break_on_hyphens=False, break_long_words=False):
        container.add(tomlkit.comment(line))


def read_recipe(path: str) -> Recipe:
    """The recipe that a file says, which lies in a folder or on S3.

    Raises:
        MissingError: if there is no such file.
        InputError: in one line, if it is no TOML, is of no recipe and no project, or has a field that there is not, or a value
            that is none.
    """
    said = _parsed(path)
    recipe = _beginning(path, said)
    plain, known, kinds = to_json(recipe), _flat(_complete(recipe)), kinds_of(Recipe)
    for field, value in _flat(said).items():
        if field in _LEFT_OUT or field not in known:
            fields = [each for each in known if each not in _LEFT_OUT]
            raise InputError(f"{path} has {field}, which is no field of a recipe{nearest(field, fields)}")
        value = None if value == NONE and fits(None, kinds[field]) else value
        if not fits(value, kinds[field]):
            raise InputError(f"{path} has {field} = {value!r}; expected {expected_words(value, kinds[field])}")
        *tables, last = field.split(".")
        node = plain
        for table in tables:
            node = node.setdefault(table, {})
        node[last] = _from_file(path, value) if field in _PLACES and isinstance(value, str) else value
    try:
        return from_json(Recipe, plain)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _parsed(path: str) -> dict[str, Any]:
    if not storage.exists(path):
        folder, _, name = path.rpartition("/")
        there = [] if storage.is_s3(path) else [each.name for each in Path(folder or "/").glob(f"*{SUFFIX}")]
        raise MissingError(f"no recipe file at {path}{nearest(name, there)}")
    try:
        return tomllib.loads(storage.read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from None


def _beginning(path: str, said: dict[str, Any]) -> Recipe:
    """What the file changes; the keys that say so are taken out."""
    project, name = said.pop("project", None), said.pop("recipe", None)
    if project is None or name is not None:
        _check_recipe(path, name)
    if project is None:
        return make(name)
    if not isinstance(project, str):
        raise InputError(f"{path} has project = {project!r}; expected a name in quotes")
    try:
        check_project(project)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if "data.source" not in _flat(said) and "dataset" not in said:
        raise InputError(f"{path} has no data.source; expected the project's own images: [data] source = FOLDER")
    return replace(Recipe() if name is None else make(name), recipe=project)


def _check_recipe(path: str, name: Any) -> None:
    if not isinstance(name, str) or name not in RECIPES:
        near = nearest(name, RECIPES) if isinstance(name, str) else ""
        raise InputError(
            f"{path} has recipe = {name!r}; expected one of {', '.join(RECIPES)}{near}; or project = NAME, a name of its own"
        )


def _begun(name: str) -> Recipe:
    """What a file of this recipe or project need not say."""
    return make(name) if name in RECIPES else replace(Recipe(), recipe=name)


def _from_file(path: str, place: str) -> str:
    """A path as the file means it, absolute; a word that is none (`digits`, `none`) as it is."""
    if place in ("", NONE, DIGITS) or storage.is_s3(place) or place.startswith(("/", "~", "file://")):
        return place
    return storage.absolute(storage.join(path.rpartition("/")[0], place))


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
