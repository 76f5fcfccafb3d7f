"""Weights and models by where they lie."""

import json

import torch

from ddpm_core import storage
from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Weights, read_weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.artifacts.checkpoint_store import find_checkpoint
from ddpm_core.errors import InputError
from ddpm_core.interop import model_folder
from ddpm_core.interop.diffusers import imported_weights, is_diffusers

REGISTERED_WEIGHTS, REGISTERED_CONFIG = model_folder.WEIGHTS, model_folder.CONFIG
"""The files of a registered version, in its folder `artifacts`."""


def load(uri: str, device: torch.device | str = "cpu") -> Model:
    """The model of a run (its newest checkpoint), a checkpoint, a registered version's folder, or a folder of diffusers.

    Args:
        uri: a folder, or s3://bucket/prefix.

    Raises:
        InputError: if there is none, or its files are damaged, in one line.
    """
    weights = find_weights(uri)
    if weights is None:
        raise InputError(
            f"no model at {uri}; expected the folder of a run, a checkpoint, a registered version, or of diffusers"
        )
    return Model.from_weights(weights, device)


def find_weights(uri: str) -> Weights | None:
    """The averaged weights that lie at a URI, as `load` takes it; None if there are none."""
    uri = storage.absolute(uri)
    if checkpoint := find_checkpoint(uri):
        return read_weights(checkpoint)
    for folder in (uri, storage.join(uri, "artifacts")):
        if storage.exists(storage.join(folder, REGISTERED_WEIGHTS)):
            return read_registered(folder)
    return imported_weights(uri) if is_diffusers(uri) else None


def read_registered(folder_uri: str) -> Weights:
    """The weights of a registered version, whose config says what they were trained on, where that is known."""
    file = storage.read_bytes(storage.join(folder_uri, REGISTERED_WEIGHTS))
    config = json.loads(storage.read_bytes(storage.join(folder_uri, REGISTERED_CONFIG)))
    unknown = {"checkpoint_uri": folder_uri, "step": 0, "dataset_digest": "", "dataset_uri": "", "recipe": ""}
    training = unknown | config.pop("training", {})
    return Weights(
        uri=training["checkpoint_uri"],
        step=training["step"],
        sha256=sha256_of(file),
        config=config,
        dataset_digest=training["dataset_digest"],
        dataset_uri=training["dataset_uri"],
        recipe=training["recipe"],
        file=file,
    )
