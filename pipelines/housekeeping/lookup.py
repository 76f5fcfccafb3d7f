"""What a person's word names: an item of a store, a checkpoint, or a registered model."""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from ddpm_core import storage
from ddpm_core.api import loading
from ddpm_core.artifacts.checkpoint import Weights, checkpoint_uri, read_weights, run_of
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, find_checkpoint
from ddpm_core.errors import InputError, nearest
from pipelines.housekeeping.inventory import KINDS, Item
from pipelines.recipes.files import SUFFIX, find_recipe
from pipelines.tracking import Server, default_model, open_server, standing_server
from pipelines.tracking.registry import champion_of, model_name, models
from pipelines.tracking.resolve import check_registry, find_weights

MODELS = "models:/"
_IN_STORE = re.compile(rf"(?P<store>.+)/(?P<name>(?:{'|'.join(KINDS)})/[^/]+)(?:/.*)?")
_REMEDY = (
    "expected a run as `store.py list` prints it, models:/NAME@ALIAS, or the folder of a run, a checkpoint or a model"
)


class Place(NamedTuple):
    """An item, by the store in which it lies."""

    store: str
    name: str
    """KIND/NAME, or NAME alone."""


def place_of(named: str, store: str) -> Place:
    """Where to look for an item: a URI of it, or of a file in it, says that by itself."""
    is_path = named.startswith(("/", ".", "~", "file:", "s3:")) or (
        not named.startswith(MODELS) and _IN_STORE.fullmatch(named)  # STORE/runs/NAME, and not runs/NAME
    )
    if is_path and (found := _IN_STORE.fullmatch(storage.absolute(named))):
        return Place(found["store"], found["name"])
    kind, _, rest = named.strip("/").partition("/")
    return Place(store, f"{kind}/{rest.partition('/')[0]}" if kind in KINDS and rest else named.rstrip("/"))


def find_item(named: str, store: str, items: dict[str, Item], models: Iterable[str]) -> Item | str:
    """The item of a store that KIND/NAME or NAME means, or the name of a registered model.

    Raises:
        InputError: in one line, with the nearest, if there is none, or more than one.
    """
    known = [item.name for item in items.values() if item.kind in KINDS]
    names = {name: [name] for name in known} | {name: [] for each in known for name in [each.partition("/")[2]]}
    for each in known:
        names[each.partition("/")[2]].append(each)
    for model in models:
        names.setdefault(model, []).append(f"{MODELS}{model}")
    match names.get(named, []):
        case [only]:
            return items.get(only, named)
        case []:
            raise InputError(
                f"no {named} in {store}; expected KIND/NAME or NAME as `store.py list` prints it, a URI of it, or "
                f"models:/NAME@ALIAS{nearest(named, names)}"
            )
        case several:
            raise InputError(f"{named} is {' and '.join(several)}; expected one of them")


def open_registry(uri: str, store: str) -> Server:
    """The MLflow that is to know a model; none is made to find that it knows nothing.

    Raises:
        InputError: in one line, if the URI is none of a model, or nothing was ever registered.
    """
    model_name(uri)
    check_registry(uri, store)
    return open_server(store)


def weights_of(named: str, store: str, *, step: int | None = None, part: Literal["ema", "model"] = "ema") -> Weights:
    """The weights of a run (its newest checkpoint's, or those of a step), a checkpoint, a registered model, or a model's folder.

    Args:
        named: models:/NAME@ALIAS, models:/NAME/VERSION, runs/NAME or NAME of the store, a URI, or a registered model's name or its
            project's file: of a run before a model, and of a model its champion, or its candidate while it has none.
        part: the averaged weights (ema), or those that training went on from (model), which only checkpoints have.

    Raises:
        InputError: in one line, with the nearest, if there are none, or one of them holds NaN or infinity.
    """
    if named.endswith(SUFFIX):
        named = model_name(champion_of(find_recipe(named).recipe))
    if (uri := _checkpoints_at(named, store)) is not None:
        checkpoint = find_checkpoint(uri) if step is None else _of_step(uri, step)
        assert checkpoint is not None
        weights = read_weights(checkpoint, part)
        weights.check()
        return weights
    if not named.startswith(MODELS) and (weights_there := loading.find_weights(named)) is not None:
        _check_has(named, weights_there, step, part)
        return weights_there
    if named.startswith(MODELS):
        weights = find_weights(named, open_registry(named, store), store)
    else:
        server = standing_server(store)
        if server is None or named not in [model.name for model in models(server)]:
            raise InputError(
                f"no run and no model {named} in {store}; {_REMEDY}{nearest(named, _known(store, server))}"
            )
        weights = find_weights(default_model(server, named), server, store)
    _check_has(named, weights, step, part)
    return weights


def _checkpoints_at(named: str, store: str) -> str | None:
    """The run or the checkpoint, the store's before one in the working directory."""
    if named.startswith(MODELS):
        return None
    is_path = named.startswith(("/", ".", "~", "file:", "s3:"))
    in_store = [] if is_path else [storage.join(store, named), storage.join(store, "runs", named)]
    return next((uri for uri in (*in_store, storage.absolute(named)) if find_checkpoint(uri)), None)


def _of_step(uri: str, step: int) -> str:
    steps = CheckpointStore(uri).steps()
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none: this is a checkpoint, and no run"
        raise InputError(f"step is {step}; expected one of which {uri} has a checkpoint: {there}")
    return checkpoint_uri(uri, step)


def _check_has(named: str, weights: Weights, step: int | None, part: str) -> None:
    """Refuse what only a run has."""
    if part == "ema" and step is None:
        return
    asked = f"step is {step}" if step is not None else f"weights is {part}"
    run = run_of(weights.uri)
    of = f", as of the run that it comes from, {run}" if run else ""
    raise InputError(f"{asked}, and {named} has the averaged weights of one step alone; expected a run{of}")


def _known(store: str, server: Server | None) -> list[str]:
    runs = {entry.name.split("/")[0] for entry in storage.walk(storage.join(store, "runs")) if "/" in entry.name}
    registered = [model.name for model in models(server)] if server else []
    return [
        *sorted(runs),
        *(f"runs/{run}" for run in sorted(runs)),
        *registered,
        *(MODELS + each for each in registered),
    ]
