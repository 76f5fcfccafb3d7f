"""Configs and weights to networks and schedules, and the names by which both are told apart."""

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ddpm_core
from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.model.unet import UNet
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.labels import labelled, labels_of_seeds
from ddpm_core.serialization import from_json
from ddpm_core.training.build import build_network, build_schedule, run_config
from ddpm_core.training.state import load_network
from ddpm_core.types import Int, Tensor
from pipelines.recipes.config import Recipe


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
