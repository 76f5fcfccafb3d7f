"""The names by which runs, configs and code are told apart."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ddpm_core
from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.serialization import to_json
from ddpm_core.training.config import MAY_CHANGE, TrainConfig
from ddpm_core.training.identity import run_config
from pipelines.recipes.config import Recipe


def trajectory(recipe: Recipe, index: DatasetIndex, init_from: str | None) -> dict[str, Any]:
    """All that decides the weights of a recipe's run at a given step, as JSON."""
    train = replace(recipe.train, precision=recipe.train.resolved_precision)
    return run_config(
        index,
        unet=recipe.unet,
        schedule=recipe.schedule,
        reverse=recipe.reverse,
        loss=recipe.loss,
        train=train,
        init_from=init_from,
    )


def settings(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe that decides its models, but for the dataset and how long they are trained, as JSON."""
    train = {field.name for field in fields(TrainConfig)} - MAY_CHANGE
    parts = {name: to_json(getattr(recipe, name)) for name in ("unet", "schedule", "reverse", "loss")}
    return {**parts, "train": {key: value for key, value in to_json(recipe.train).items() if key in train}}


_ALWAYS = {
    "schedule": {"name"},
    "reverse": {"prediction"},
    "loss": {"objective"},
    "train": {"batch_size", "learning_rate", "seed"},
}


def headline_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings by which a person compares models: the few that are not the defaults, which are the paper's, and some always."""
    usual, shown = settings(Recipe()), {}
    for part, each in settings(recipe).items():
        always = _ALWAYS.get(part, ())
        shown[part] = {key: value for key, value in each.items() if key in always or value != usual[part].get(key)}
    return {part: each for part, each in shown.items() if each}


def unlike_paper(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's config as JSON, by dotted names: the settings that are not the defaults, which are the paper's."""
    train = Recipe().train
    usual = settings(replace(Recipe(), train=replace(train, precision=train.resolved_precision)))
    usual["unet"]["form"] = to_json(Recipe().unet.form)  # JSON leaves it out, as it is the default
    return {name: value for part, plain in usual.items() for name, value in _unlike(part, config.get(part, {}), plain)}


def _unlike(part: str, config: Mapping[str, Any], usual: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():  # JSON leaves out what is younger than it and has its default
        if isinstance(value, Mapping) and isinstance(usual.get(key), Mapping):
            yield from _unlike(f"{part}.{key}", value, usual[key])
        elif key not in usual or value != usual[key]:
            yield f"{part}.{key}", value


def digest(plain: Any, length: int = 12) -> str:
    """The first hex digits of the sha256 over canonical JSON."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:length]


@lru_cache(maxsize=1)
def code_version() -> str:
    """A digest of the source tree; a submitted copy may have no .git."""
    roots = [Path(ddpm_core.__file__).parent, Path(__file__).parent]
    files = sorted((path.relative_to(root.parent).as_posix(), path) for root in roots for path in root.rglob("*.py"))
    total = hashlib.sha256()
    for name, path in files:
        total.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def recipe_named_in(folder: str) -> str:
    """The recipe or project whose dataset, run or report a folder's name says it is, NAME-DIGEST; empty if it says none."""
    name, _, end = folder.rpartition("-")
    return name if re.fullmatch("[0-9a-f]{12}", end) else ""


def run_folder(store: str, name: str) -> str:
    """Where a run's checkpoints and previews lie."""
    return storage.join(store, "runs", name)


def sweep_folder(store: str, name: str) -> str:
    """Where a sweep's records and ranking lie."""
    return storage.join(store, "sweeps", name)
