"""A model's folder: config.json and weights.safetensors, as a registered version has them, for weights that no run made."""

import json
from typing import Any

import safetensors.torch
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.errors import InputError
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.weights import check_weights
from ddpm_core.serialization import to_json
from ddpm_core.types import Tensor

WEIGHTS, CONFIG = "weights.safetensors", "config.json"


def write_model(folder_uri: str, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Write a folder that `ddpm_core.load` reads; done twice, it changes nothing.

    Args:
        tensors: the weights under our names, float32.

    Raises:
        InputError: in one line: the weights are of another network, or another model lies in the folder.
    """
    with torch.device("meta"):
        check_weights(config.build_network(), tensors)
    # In this order: without its weights there is no model.
    write_once(
        {
            storage.join(folder_uri, CONFIG): (json.dumps(to_json(config), indent=2, sort_keys=True) + "\n").encode(),
            storage.join(folder_uri, WEIGHTS): safetensors.torch.save(
                {name: tensor.contiguous() for name, tensor in tensors.items()}
            ),
        }
    )


def write_weights(folder_uri: str, weights: Weights) -> None:
    """Write weights as such a folder: the same file to the byte, all that their config says, and what they were trained on.

    Done twice, it changes nothing.

    Raises:
        InputError: in one line: another model lies in the folder.
    """
    config = {**weights.config, "training": training_of(weights)}
    write_once(
        {
            storage.join(folder_uri, CONFIG): (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
            storage.join(folder_uri, WEIGHTS): weights.file,
        }
    )


def training_of(weights: Weights) -> dict[str, Any]:
    """Where weights come from, as `read_model` takes it from the config's `training`."""
    return {
        "checkpoint_uri": weights.uri,
        "step": weights.step,
        "dataset_uri": weights.dataset_uri,
        "dataset_digest": weights.dataset_digest,
        "recipe": weights.recipe,
    }


def read_model(folder_uri: str) -> Weights:
    """The weights of such a folder, whose config says what they were trained on, where that is known.

    Raises:
        InputError: if the config is not JSON.
    """
    file = storage.read_bytes(storage.join(folder_uri, WEIGHTS))
    try:
        config = json.loads(storage.read_bytes(storage.join(folder_uri, CONFIG)))
    except ValueError as error:
        raise InputError(f"{storage.join(folder_uri, CONFIG)} is not JSON ({error})") from None
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


def write_once(files: dict[str, bytes]) -> None:
    """Write files that are not there yet, in their order, by URI.

    Raises:
        InputError: before anything is written, if one that is there is another.
    """
    for uri in [uri for uri, data in files.items() if not _stands(uri, data)]:
        storage.write_bytes(uri, files[uri])


def _stands(uri: str, data: bytes) -> bool:
    if not storage.exists(uri):
        return False
    if storage.size_bytes(uri) != len(data) or storage.read_bytes(uri) != data:
        raise InputError(f"{uri} is there and is another model's; expected a folder that is empty or does not exist")
    return True
