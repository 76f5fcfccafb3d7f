"""Configs and weights to networks and schedules, and the names by which both are told apart."""

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ddpm_core
from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights, list_checkpoints, read_weights
from ddpm_core.artifacts.manifest import DatasetIndex, read_index
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.interop.diffusers import imported_weights, is_diffusers
from ddpm_core.model.unet import UNet
from ddpm_core.plain import from_json
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.labels import labelled, labels_of_seeds
from ddpm_core.training.build import build_network, build_schedule, run_config
from ddpm_core.training.state import load_network
from ddpm_core.types import Int, Tensor
from pipelines.recipes import Recipe
from pipelines.tracking import Tracker, resolve_model


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


def digest(plain: Any, length: int = 12) -> str:
    """The first hex digits of the sha256 over canonical JSON."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:length]


def seeded_process(
    network: UNet, config: dict[str, Any], seeds: Int[Tensor, " b"], request: SampleConfig
) -> ReverseProcess:
    """p_theta of a network that a checkpoint's config describes, for images of these seeds."""
    labels = labels_of_seeds(seeds, request, config["unet"]["num_classes"])
    return reverse_process(network, config, labels, request.guidance)


def reverse_process(
    network: UNet, config: dict[str, Any], labels: Int[Tensor, " b"], guidance: float = 0.0
) -> ReverseProcess:
    """p_theta of a network that a checkpoint's config describes, for images of these classes (-1: none)."""
    return ReverseProcess(
        denoiser=labelled(network, labels, guidance, config["channels"]),
        schedule=build_schedule(config),
        config=from_json(ReverseConfig, config["reverse"]),
    )


def build_denoiser(weights: Weights) -> UNet:
    """The network with a checkpoint's averaged weights, ready to sample."""
    network = build_network(weights.config)
    load_network(network, weights.tensors)
    return network.eval().requires_grad_(False)


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


@lru_cache(maxsize=1)
def code_version() -> str:
    """A digest of the source tree; a submitted copy may have no .git."""
    roots = [Path(ddpm_core.__file__).parent, Path(__file__).parent]
    files = sorted((path.relative_to(root.parent).as_posix(), path) for root in roots for path in root.rglob("*.py"))
    total = hashlib.sha256()
    for name, path in files:
        total.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def run_folder(store: str, name: str) -> str:
    """Where a run's checkpoints and previews lie."""
    return storage.join(store, "runs", name)
