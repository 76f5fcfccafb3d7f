"""The weights and the dataset that a name or a URI means."""

from dataclasses import replace

from ddpm_core import storage
from ddpm_core.api import loading
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import INDEX_NAME, DatasetIndex, read_index
from ddpm_core.errors import InputError
from pipelines.tracking import Tracker, resolve_model


def find_weights(model: str, tracker: Tracker, store: str) -> Weights:
    """The averaged weights of a model. What they say of other artifacts is true of this store, also if it was moved or copied.

    Args:
        model: the URI of a checkpoint, or of a run (its newest checkpoint), or of a folder that diffusers wrote; or
            models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        InputError: if there is none, in one line.
    """
    if model.startswith("models:/"):
        weights: Weights | None = loading.read_registered(str(resolve_model(tracker, model).weights.parent))
    else:
        weights = loading.find_weights(model)
    if weights is None:
        raise InputError(
            f"no model at {model}; expected models:/NAME@champion, or the URI of a checkpoint, a run or a diffusers folder"
        )
    return replace(
        weights,
        uri=_here(store, "runs", weights.uri, "state.json"),
        dataset_uri=_here(store, "datasets", weights.dataset_uri, INDEX_NAME),
    )


def _here(store: str, kind: str, uri: str, commit: str) -> str:
    """Where what a store held at a URI lies in this store; the URI itself, if it does not lie there."""
    _, found, below = uri.rpartition(f"/{kind}/")
    own = storage.join(storage.absolute(store), kind, below)
    return own if found and storage.exists(storage.join(own, commit)) else uri


def find_dataset(named: str, store: str) -> DatasetIndex:
    """A dataset by its URI, or by the name of its folder in the store.

    Raises:
        InputError: if there is none, in one line.
    """
    places = [
        storage.absolute(named),
        *([] if "/" in named else [storage.join(storage.absolute(store), "datasets", named)]),
    ]
    for uri in places:
        if storage.exists(storage.join(uri, INDEX_NAME)):
            return read_index(uri)
    raise InputError(
        f"no dataset at {' or '.join(places)}; expected a folder with {INDEX_NAME}, as shard.py names it at its end"
    )


def dataset_of(weights: Weights) -> DatasetIndex:
    """The dataset that a model was trained on.

    Raises:
        InputError: if that is not known, as of a model that was trained elsewhere, or another one lies there.
    """
    if not weights.dataset_uri:
        raise InputError(
            f"the model at {weights.uri} does not say what it was trained on, so there is nothing to judge it against; "
            "expected --dataset, or a model that was trained here"
        )
    index = read_index(weights.dataset_uri)
    if index.digest != weights.dataset_digest:
        raise InputError(
            f"the model at {weights.uri} was trained on dataset {weights.dataset_digest[:12]}, at {index.uri} lies "
            f"{index.digest[:12]}; expected --dataset, to judge it against another one"
        )
    return index
