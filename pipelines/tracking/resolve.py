"""The weights and the dataset that a name or a URI means."""

from ddpm_core.api import loading
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex, read_index
from ddpm_core.errors import InputError
from pipelines.tracking import Tracker, resolve_model


def find_weights(model: str, tracker: Tracker) -> Weights:
    """The averaged weights of a model.

    Args:
        model: the URI of a checkpoint, or of a run (its newest checkpoint), or of a folder that diffusers wrote; or
            models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        InputError: if there is none, in one line.
    """
    if model.startswith("models:/"):
        return loading.read_registered(str(resolve_model(tracker, model).weights.parent))
    weights = loading.find_weights(model)
    if weights is None:
        raise InputError(
            f"no model at {model}; expected models:/NAME@champion, or the URI of a checkpoint, a run or a diffusers folder"
        )
    return weights


def dataset_of(weights: Weights) -> DatasetIndex:
    """The dataset that a model was trained on.

    Raises:
        InputError: if that is not known, as of a model that was trained elsewhere.
    """
    if not weights.dataset_uri:
        raise InputError(
            f"the model at {weights.uri} does not say what it was trained on, so there is nothing to judge it against; "
            "expected a model that was trained here"
        )
    return read_index(weights.dataset_uri)
