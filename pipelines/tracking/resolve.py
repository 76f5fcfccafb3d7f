"""The weights and the dataset that a name or a URI means."""

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights, list_checkpoints, read_weights
from ddpm_core.artifacts.manifest import DatasetIndex, read_index
from ddpm_core.interop.diffusers import imported_weights, is_diffusers
from pipelines.tracking import Tracker, resolve_model


def find_weights(model: str, tracker: Tracker) -> Weights:
    """The averaged weights of a model.

    Args:
        model: the URI of a checkpoint, or of a run (its newest checkpoint), or of a folder that diffusers wrote; or
            models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        ValueError: if there is none, in one line.
    """
    if model.startswith("models:/"):
        found = resolve_model(tracker, model)
        config = dict(found.config)
        training = config.pop("training")
        return Weights(
            uri=training["checkpoint_uri"],
            step=training["step"],
            sha256=found.weights_sha256,
            config=config,
            dataset_digest=training["dataset_digest"],
            dataset_uri=training["dataset_uri"],
            file=found.weights.read_bytes(),
        )
    uri = storage.absolute(model)
    complete = [uri] if storage.exists(storage.join(uri, "state.json")) else list_checkpoints(uri)
    if not complete and is_diffusers(uri):
        return imported_weights(uri)
    if not complete:
        raise ValueError(
            f"no model at {model}; expected models:/NAME@champion, or the URI of a checkpoint, a run or a diffusers folder"
        )
    return read_weights(complete[-1])


def dataset_of(weights: Weights) -> DatasetIndex:
    """The dataset that a model was trained on.

    Raises:
        ValueError: if that is not known, as of a model that was trained elsewhere.
    """
    if not weights.dataset_uri:
        raise ValueError(
            f"the model at {weights.uri} does not say what it was trained on, so there is nothing to judge it against; "
            "expected a model that was trained here"
        )
    return read_index(weights.dataset_uri)
