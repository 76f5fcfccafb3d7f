"""The weights that a name or a URI means."""

from dataclasses import replace

from ddpm_core import storage
from ddpm_core.api import loading
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.errors import InputError
from ddpm_core.interop.model_folder import read_model
from pipelines.progress import shown
from pipelines.tracking import Server, resolve_model, tracking_uri
from pipelines.tracking.store import is_there


def check_model(model: str, store: str) -> None:
    """That a model lies where it is named, as far as it is seen without its being read or MLflow's being asked: at once.

    Args:
        model: as `find_weights` takes it.

    Raises:
        InputError: if there is none, in one line.
    """
    if model.startswith("models:/"):
        check_registry(model, store)
    elif not any(map(loading.is_model, places(model, store))):
        raise no_model(model)


def check_registry(model: str, store: str) -> None:
    """That a model was ever registered.

    Raises:
        InputError: in one line.
    """
    if not is_there(store):
        raise InputError(f"{model}: {none_registered(store)}, or a model by its folder")


def none_registered(store: str) -> str:
    """What is said where no MLflow stands that could know a model."""
    return (
        f"no model is registered in {store}; expected another --store, or MLFLOW_TRACKING_URI of the MLflow that keeps them "
        f"(as it is, {shown(tracking_uri(store))}, which does not exist)"
    )


def no_model(model: str) -> InputError:
    """What is said where a model's name means nothing."""
    return InputError(
        f"no model at {model}; expected models:/NAME@champion, or the URI of a checkpoint, a run or a diffusers folder, or "
        "the name of a run in the store"
    )


def find_weights(model: str, tracker: Server, store: str) -> Weights:
    """The averaged weights of a model.

    Args:
        model: the URI of a checkpoint, or of a run (its newest checkpoint), or of a folder that diffusers wrote; the name of a run
            of the store; or models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        InputError: if there is none, or one of the weights holds NaN or infinity, in one line.
    """
    if model.startswith("models:/"):
        registered = read_model(str(resolve_model(tracker, model).weights.parent))
        registered.check()
        return replace(registered, uri=here(store, "runs", registered.uri, "state.json"))
    for place in places(model, store):
        if (weights := loading.find_weights(place)) is not None:
            return weights
    raise no_model(model)


def places(model: str, store: str) -> list[str]:
    """Where what is no registered model may lie: at this URI, or in the store under this name."""
    named = not model.startswith(("/", ".", "~", "file:", "s3:"))
    return [
        storage.absolute(model),
        *([storage.join(store, model), storage.join(store, "runs", model)] if named else []),
    ]


def here(store: str, kind: str, folder: str, file: str) -> str:
    """Where a folder of a store lies now, if the store was moved or copied since it was told where.

    Args:
        kind: under which it lies there: runs, reports.
        file: in it, by which it is known.
    """
    _, found, below = folder.rpartition(f"/{kind}/")
    own = storage.join(storage.absolute(store), kind, below)
    return own if found and storage.exists(storage.join(own, file)) else folder
