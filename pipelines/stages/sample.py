"""The sample stage: actors with the weights, blocks of seeds to do, and a set that names them once all stand."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.sample_set import (
    SampleSet,
    block_uri,
    commit_sample_set,
    read_images,
    sample_set_folder,
    write_block,
)
from ddpm_core.data.images import decode_png, encode_png
from ddpm_core.diffusion.samplers import check_sampler
from ddpm_core.evaluation.figures import image_grid
from ddpm_core.model.unet import UNet
from ddpm_core.plain import from_json, to_json
from ddpm_core.sampling.generate import generate
from ddpm_core.sampling.labels import check_labels, labels_in_turn
from ddpm_core.training.build import image_shape
from ddpm_core.types import Tensor
from pipelines.cluster.placement import cpus_per_worker
from pipelines.cluster.session import versions
from pipelines.models import build_denoiser, code_version, seeded_process
from pipelines.progress import progress
from pipelines.recipes import SampleStage

_GRID_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a request for samples has come to."""

    samples: SampleSet
    grid_uri: str
    num_new: int
    """Images that were computed now; the others were there."""
    images_per_s: float
    """Of those, over the actors, their start included."""


def describe_samples(weights: Weights, config: SampleStage, store: str) -> SampleSet:
    """The SampleSet that a request names; nothing is computed.

    Raises:
        ValueError: if the model cannot do what the request asks for.
    """
    num_classes = weights.config["unet"]["num_classes"]
    check_labels(config, num_classes, label_dropout=weights.config.get("train", {}).get("label_dropout"))
    reverse, num_timesteps = weights.config["reverse"], weights.config["schedule"]["num_timesteps"]
    check_sampler(config.sampler, reverse["variance"], num_timesteps)
    identity = {
        "weights_sha256": weights.sha256,
        "image_size": weights.config["image_size"],
        "channels": weights.config["channels"],
        "unet": weights.config["unet"],
        "schedule": weights.config["schedule"],
        "reverse": weights.config["reverse"],
        "sampler": to_json(config.sampler),
        "precision": config.precision,
        "labels": list(labels_in_turn(config, num_classes)),
        "guidance": config.guidance,
    }
    return SampleSet(
        uri=sample_set_folder(store, identity, config.block_size),
        identity=identity,
        first_seed=config.first_seed,
        num_images=config.num_images,
        block_size=config.block_size,
        facts={
            "checkpoint": weights.uri,
            "step": weights.step,
            "batch_size": config.batch_size,
            "versions": {**versions(), "code": code_version()},
        },
    )


def run_sample(weights: Weights, config: SampleStage, store: str) -> Sampled:
    """Generate the images of a request that are not there yet, and commit its set."""
    samples = describe_samples(weights, config, store)
    grid_uri = samples.set_uri.removesuffix(".json") + "-grid.png"
    missing = [first for first in samples.blocks if not storage.exists(block_uri(samples.uri, first))]
    began = time.perf_counter()
    if missing:
        _generate_blocks(weights, config, samples, missing)
    took = time.perf_counter() - began
    if not storage.exists(samples.set_uri):
        storage.write_bytes(grid_uri, image_grid(_decoded(islice(read_images(samples), _GRID_IMAGES)), columns=8))
        commit_sample_set(samples)
    num_new = len(missing) * config.block_size
    return Sampled(samples=samples, grid_uri=grid_uri, num_new=num_new, images_per_s=num_new / took if missing else 0.0)


def _generate_blocks(weights: Weights, config: SampleStage, samples: SampleSet, missing: list[int]) -> None:
    count = min(config.num_actors, len(missing))
    cpus, shared = cpus_per_worker(count), ray.put(weights)
    options = {"num_cpus": cpus, "num_gpus": int(config.use_gpu), "max_task_retries": 3, "max_restarts": 3}
    actors = [ray.remote(_Sampler).options(**options).remote(to_json(config), cpus) for _ in range(count)]
    waiting = iter(missing)
    under_way = {
        actor.block.remote(shared, samples.uri, first): actor for actor, first in zip(actors, waiting, strict=False)
    }
    with progress("sample", len(missing) * config.block_size, "image") as shown:
        done = 0
        while under_way:
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            actor = under_way.pop(ready)
            ray.get(ready)
            done += config.block_size
            shown.set(done)
            following = next(waiting, None)
            if following is not None:
                under_way[actor.block.remote(shared, samples.uri, following)] = actor


def _decoded(images: Iterable[tuple[int, bytes]]) -> Tensor:
    return torch.stack([torch.from_numpy(decode_png(png).copy()).permute(2, 0, 1) for _, png in images])


class _Sampler:
    """Holds the network; makes blocks."""

    def __init__(self, config: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._config = from_json(SampleStage, config)
        self._device = torch.device("cuda" if self._config.use_gpu else "cpu")
        self._network: UNet | None = None

    def block(self, weights: Weights, uri: str, first_seed: int) -> None:
        """Generate and store one block. The weights come with each call: a restarted actor has none."""
        config = self._config
        self._network = self._network or build_denoiser(weights).to(self._device)
        shape = image_shape(weights.config)
        pngs: list[bytes] = []
        for start in range(first_seed, first_seed + config.block_size, config.batch_size):
            stop = min(start + config.batch_size, first_seed + config.block_size)
            seeds = torch.arange(start, stop, device=self._device)
            reduced = torch.autocast(self._device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
            with reduced:
                p = seeded_process(self._network, weights.config, seeds, config)
                images = generate(p, config.sampler, seeds, shape)
            pngs += [encode_png(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
        write_block(uri, first_seed, pngs)
