"""What lies outside a store and belongs to it: images that sample.py wrote, and a project's file."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ddpm_core import storage
from ddpm_core.artifacts.manifest import INDEX_NAME, read_index
from ddpm_core.artifacts.provenance import read_provenance
from ddpm_core.errors import InputError
from pipelines.housekeeping.description import (
    Aliases,
    Description,
    Rows,
    describe,
    drawn_in_words,
    settings_in_words,
    some,
    with_aliases,
)
from pipelines.housekeeping.inventory import KINDS, Item
from pipelines.housekeeping.lookup import MODELS, place_of
from pipelines.naming import recipe_named_in, settings
from pipelines.recipes.files import KEPT, SUFFIX, find_recipe

_IMAGES = (".png", ".gif", ".webp", ".npz")


def is_outside(named: str) -> bool:
    """Whether a word names a project's file, or a file of images that is there, and neither lies in an item of a store."""
    if "/" in place_of(named, "").store:
        return False
    return named.endswith(SUFFIX) or (named.lower().endswith(_IMAGES) and storage.exists(storage.absolute(named)))


def describe_outside(named: str, store: str, items: Mapping[str, Item], aliases: Aliases) -> Description:
    """A file, and what the store has of it.

    Raises:
        InputError: in one line, if it does not say what it is of.
    """
    if named.endswith(SUFFIX):
        return _project(named, items, aliases)
    return _images(named, store, items, aliases)


def _images(named: str, store: str, items: Mapping[str, Item], aliases: Aliases) -> Description:
    said = read_provenance(storage.absolute(named))
    if said is None:
        raise InputError(f"{named} does not say what made it; expected a file that sample.py wrote")
    made = Description(name=named, kind="images", rows=[("file", storage.absolute(named)), *_said(said)])
    there = items.get(f"samples/{said['samples']}")
    if there is None:
        made.rows += [("samples", f"{said['samples']}: not in {store} (--store says where they were made)")]
        return made
    rest = describe(there, items, aliases)
    made.rows += [row for row in rest.rows if row[0] not in ("images", "changed")]
    made.rows = [(what, _by_name(said, dict(rest.rows)) if what == "labels" else value) for what, value in made.rows]
    made.figures, made.page = rest.figures, rest.page
    return made


def _said(said: Mapping[str, Any]) -> Rows:
    yield "images", drawn_in_words(said["first_seed"], said["num_images"], said["sampler"])
    if said.get("labels"):
        yield "labels", _by_name(said, {})
    yield "weights", f"sha256 {said['weights_sha256']}, step {said['step']}"


def _by_name(said: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """Which classes an image may have, with their names where the dataset that is known stands."""
    data = known.get("data", "")
    names = read_index(data).class_names if data and storage.exists(storage.join(data, INDEX_NAME)) else ()
    labels = [f"{label} ({names[label]})" if 0 <= label < len(names) else str(label) for label in said["labels"]]
    return f"{' '.join(labels)} in turn, guidance {said.get('guidance', 0)}"


def _project(named: str, items: Mapping[str, Item], aliases: Aliases) -> Description:
    recipe = find_recipe(named)
    made = Description(name=named, kind="recipe", rows=[("file", storage.absolute(named)), ("name", recipe.recipe)])
    made.rows += [("images", recipe.dataset or recipe.data.source)]
    resolved = replace(recipe, train=replace(recipe.train, precision=recipe.train.resolved_precision))
    made.rows += [("settings", settings_in_words(settings(resolved)))]
    own = list(_of(recipe.recipe, items))
    for kind in ("datasets", "runs", "sweeps", "reports"):
        names = [_named(each) for each in own if each.kind == kind]
        made.rows += [(kind, some(names))] if names else []
    models = [with_aliases(each, aliases) for each in aliases if each.startswith(f"{MODELS}ddpm-{recipe.recipe}/")]
    made.rows += [("models", some(models[::-1]))] if models else []
    made.rows += [] if own else [("made", "nothing yet; workflow.py takes the file")]
    reports = [each for each in own if each.kind == "reports" and each.is_whole]
    if reports:
        made.page = describe(max(reports, key=lambda each: each.changed_s), items, aliases).page
        made.rows += [("page", made.page)]
    return made


def _named(item: Item) -> str:
    return f"{item.name.partition('/')[2]}{'' if item.is_whole else ' (unfinished)'}"


def _of(name: str, items: Mapping[str, Item]) -> Iterator[Item]:
    """The items of a project: by their names, or, of a run with another, by the file that it keeps."""
    for item in items.values():
        kept = f"{item.name}/{KEPT}"
        if item.kind in KINDS and recipe_named_in(item.name.partition("/")[2]) == name:
            yield item
        elif item.kind == "runs" and kept in item.files:
            said = tomllib.loads(storage.read_bytes(storage.join(item.store, kept)).decode())
            if said.get("project") == name:
                yield item
