"""Weights and models by where they lie."""

import logging

import torch

from ddpm_core import storage
from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Weights, read_weights
from ddpm_core.artifacts.checkpoint_store import find_checkpoint
from ddpm_core.errors import InputError
from ddpm_core.interop.diffusers import imported_weights, is_diffusers
from ddpm_core.interop.model_folder import WEIGHTS, read_model
from ddpm_core.training.averages import young_weights

logger = logging.getLogger(__name__)


def load(uri: str, device: torch.device | str = "cpu") -> Model:
    """The model of a run (its newest checkpoint), a checkpoint, a registered version's folder, or a folder of diffusers.

    A warning is logged of averaged weights that are still more than 1% those that they began with.

    Args:
        uri: a folder, or s3://bucket/prefix.

    Raises:
        InputError: if there is none, its files are damaged, or a weight holds NaN or infinity, in one line.
    """
    weights = find_weights(uri)
    if weights is None:
        raise InputError(
            f"no model at {uri}; expected the folder of a run, a checkpoint, a registered version, or of diffusers"
        )
    if warning := young_weights(weights.config, weights.step):
        logger.warning("%s: %s", uri, warning)
    return Model.from_weights(weights, device)


def is_model(uri: str) -> bool:
    """Whether there is something at a URI that `load` would take; it is not read."""
    uri = storage.absolute(uri)
    return find_checkpoint(uri) is not None or _registered(uri) is not None or is_diffusers(uri)


def find_weights(uri: str) -> Weights | None:
    """The averaged weights that lie at a URI, as `load` takes it; None if there are none.

    Raises:
        InputError: if the files are damaged, or a weight holds NaN or infinity.
    """
    weights = _read(storage.absolute(uri))
    if weights is not None:
        weights.check()
    return weights


def _read(uri: str) -> Weights | None:
    if checkpoint := find_checkpoint(uri):
        return read_weights(checkpoint)
    if folder := _registered(uri):
        return read_model(folder)
    return imported_weights(uri) if is_diffusers(uri) else None


def _registered(uri: str) -> str | None:
    """The folder of a registered version's files."""
    folders = uri, storage.join(uri, "artifacts")
    return next((folder for folder in folders if storage.exists(storage.join(folder, WEIGHTS))), None)
