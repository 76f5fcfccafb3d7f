"""The fields of a recipe that can be searched: their names, the types of their values, and when anything depends on them."""

import types
import typing
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.errors import InputError, nearest
from pipelines.recipes.config import Recipe

_SEARCHED = ("unet", "schedule", "reverse", "loss", "train", "sample")
"""The parts of a recipe that may be searched; the data are the same for all."""
_FIXED = {
    "train.steps": "trials train to the sweep's rungs",
    "train.seed": "all settings share it, and the finalists are trained again with others",
    "train.validate-every": "a sweep measures by itself",
    "sample.num-images": "sweep.num-images says how many are measured",
    "sample.first-seed": "all settings are measured on the same seeds",
    "sample.labels": "all settings are measured on the same classes",
}
_CHANGES_NOTHING = {
    "num_workers", "min_workers", "threads", "use_gpu", "node_labels", "validate_images", "log_every", "checkpoint_every",
    "keep_checkpoints", "keep_every", "max_skipped", "preview_every", "recompute", "micro_batch_size", "block_size", "compile",
}  # fmt: skip


def field_path(said: str) -> str:
    """The dotted path as flags have it.

    Raises:
        InputError: if it names no field, with the nearest one; or one that is not to be searched.
    """
    path = said.replace("_", "-")
    if path in _FIXED:
        raise InputError(f"space.{path} cannot be searched: {_FIXED[path]}")
    known = _searchable(Recipe)
    if path not in known:
        close = nearest(f"space.{path}", (f"space.{each}" for each in known))
        expected = close or "; expected one as schedule.name or train.learning-rate"
        raise InputError(f"space.{path} is no field that can be searched{expected}")
    return path


def typed_value(path: str, word: str, *, ranges: bool = False) -> Any:
    """A word as the field's value.

    Raises:
        InputError: if it is none.
    """
    kind = _searchable(Recipe)[path]
    if ranges and float not in (kind, *typing.get_args(kind)):
        raise InputError(f"space.{path} takes no range; expected values, or integers:LOW:HIGH of whole numbers")
    for each in typing.get_args(kind) if _is_union(kind) else (kind,):
        try:
            return _as(each, word)
        except ValueError:
            continue
    raise InputError(f"space.{path} has {word!r}; expected {_kind_words(kind)}")


def is_read(recipe: Recipe, path: str) -> bool:
    """Whether anything depends on the field, the others being as they are."""
    sampler, loss, train = recipe.sample.sampler, recipe.loss, recipe.train
    rules = {
        "loss.hybrid-weight": loss.objective == "hybrid",
        "loss.min-snr-gamma": loss.objective == "min_snr",
        "train.ema-half-life": train.ema_decay is None,
        "train.ema-warmup": train.ema_decay is None,
        "train.augment-kinds": train.augment > 0,
        "train.label-dropout": recipe.unet.num_classes > 0,
        "sample.guidance": recipe.unet.num_classes > 0,
        "sample.sampler.eta": sampler.name == "ddim",
        "sample.sampler.variance": sampler.name == "ancestral",
        "sample.sampler.spacing": (sampler.num_steps or recipe.schedule.num_timesteps) < recipe.schedule.num_timesteps,
    }
    if path in ("schedule.beta-start", "schedule.beta-end"):
        name, schedule = path.rpartition("-")[2], recipe.schedule
        other = replace(schedule, **{f"beta_{name}": 0.5 * getattr(schedule, f"beta_{name}")})
        return not make_schedule(schedule).betas.equal(make_schedule(other).betas)
    return rules.get(path, True)


def _searchable(kind: Any, prefix: str = "") -> dict[str, Any]:
    """By dotted path, the types of all fields that decide what a trial comes to."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in fields(kind):
        path = f"{prefix}{field.name.replace('_', '-')}"
        if (not prefix and field.name not in _SEARCHED) or field.name in _CHANGES_NOTHING or path in _FIXED:
            continue
        if is_dataclass(hints[field.name]):
            found.update(_searchable(hints[field.name], f"{path}."))
        else:
            found[path] = hints[field.name]
    return found


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _as(kind: Any, word: str) -> Any:
    """A word as a value of one type.

    Raises:
        ValueError: if it is none.
    """
    if kind is type(None):
        if word.lower() != "none":
            raise ValueError
        return None
    if kind is bool:
        if word.lower() not in ("true", "false"):
            raise ValueError
        return word.lower() == "true"
    if typing.get_origin(kind) is typing.Literal:
        if word not in typing.get_args(kind):
            raise ValueError
        return word
    if typing.get_origin(kind) is tuple:
        return tuple(_as(typing.get_args(kind)[0], each) for each in word.split(",") if each)
    return kind(word)


def _kind_words(kind: Any) -> str:
    """What a value may be, in words."""
    if _is_union(kind):
        return " or ".join(map(_kind_words, typing.get_args(kind)))
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"{_kind_words(typing.get_args(kind)[0])}, several joined by commas"
    return {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}.get(kind, str(kind))
