"""The sample stage: blocks of seeds, each made by a task, and a set that names them once all stand."""

import time
from dataclasses import dataclass, replace
from itertools import islice

import ray
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.provenance import provenance, with_provenance
from ddpm_core.artifacts.sample_set import (
    SampleSet,
    block_uri,
    commit_sample_set,
    missing_blocks,
    read_images,
    sample_set_folder,
    write_block,
)
from ddpm_core.data.images import decode_pngs, encode_png
from ddpm_core.diffusion.sampler_config import network_passes
from ddpm_core.evaluation.pictures import image_grid
from ddpm_core.model.config import ModelConfig, model_json, read_model_config
from ddpm_core.model.cost import forward_flops, forward_flops_at_most
from ddpm_core.sampling.checks import check_request
from ddpm_core.sampling.labels import labels_in_turn
from ddpm_core.serialization import to_json
from ddpm_core.types import Tensor
from pipelines.cluster.model_cache import compiled_model, loaded_model
from pipelines.cluster.placement import for_sampling
from pipelines.cluster.session import versions
from pipelines.cluster.tasks import share
from pipelines.naming import code_version
from pipelines.progress import progress, say
from pipelines.recipes.config import SampleStage

_GRID_IMAGES = 64
# A request pays for compiling from so many operations on: some ten minutes of two cores, a few of a GPU.
_FLOPS_THAT_PAY_ON_CPU, _FLOPS_THAT_PAY_ON_GPU = 1e14, 1e16


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a request for samples has come to."""

    samples: SampleSet
    grid_uri: str
    num_new: int
    """Its images that were computed now; the others were there."""
    images_per_s: float
    """Over all tasks, their start included; all images of the blocks count, as all are computed."""


def describe_samples(weights: Weights, config: SampleStage, store: str) -> SampleSet:
    """The SampleSet that a request names; nothing is computed.

    Raises:
        InputError: if the model cannot do what the request asks for.
    """
    model = read_model_config(weights.config)
    check_request(model, config, label_dropout=weights.config.get("train", {}).get("label_dropout"))
    identity = {
        "weights_sha256": weights.sha256,
        **model_json(weights.config),
        "sampler": to_json(config.sampler),
        "precision": config.precision,
        "labels": list(labels_in_turn(config, model.num_classes)),
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
            "threads": config.threads,
            "versions": {**versions(), "code": code_version()},
        },
    )


def run_sample(weights: Weights, config: SampleStage, store: str) -> Sampled:
    """Generate the images of a request that are not there yet, and commit its set."""
    samples = describe_samples(weights, config, store)
    grid_uri = samples.set_uri.removesuffix(".json") + "-grid.png"
    missing = missing_blocks(samples)
    began = time.perf_counter()
    if missing:
        is_compiled = _generate_blocks(weights, config, samples, missing)
        samples = replace(samples, facts={**samples.facts, "compiled": is_compiled})
    took = time.perf_counter() - began
    if not storage.exists(samples.set_uri):
        shown = _first_images(samples)
        said = provenance(samples, range(samples.first_seed, samples.first_seed + len(shown)))
        storage.write_bytes(grid_uri, with_provenance(image_grid(shown, columns=8), said))
        commit_sample_set(samples)
    return Sampled(
        samples=samples,
        grid_uri=grid_uri,
        num_new=sum(map(samples.asked_of, missing)),
        images_per_s=len(missing) * config.block_size / took if missing else 0.0,
    )


def compiles(model: ModelConfig, config: SampleStage) -> bool:
    """Whether the network is compiled: by the images that are asked for, so that neither a resume nor other workers change it."""
    if config.compile != "auto":
        return config.compile == "on"
    passes = network_passes(config.sampler, model.schedule.num_timesteps) * (2 if config.guidance else 1)
    least = _FLOPS_THAT_PAY_ON_GPU if config.use_gpu else _FLOPS_THAT_PAY_ON_CPU
    times = passes * config.num_images
    return forward_flops_at_most(model) * times >= least and forward_flops(model) * times >= least


def _generate_blocks(weights: Weights, config: SampleStage, samples: SampleSet, missing: list[int]) -> bool:
    """Returns whether a compiled network made them, all of them."""
    shared, ask = (ray.put(weights),), for_sampling(config)
    is_compiled, why_not = compiles(read_model_config(weights.config), config), ""
    if is_compiled:
        say("sample: the network is compiled first, which takes up to a minute, unless this machine has done so before")
    with progress("sample", sum(map(samples.asked_of, missing)), "image") as shown:
        made = 0
        more = shared, config, samples.uri, is_compiled
        blocks = share(_generate_block, missing, ask, *more, at_once=config.num_workers, on_look=shown.beat)
        for block, why in blocks:
            if why and not why_not:
                say(f"sample: the network goes as it is written, which is slower: {why}")
            why_not = why_not or why
            made += samples.asked_of(block)
            shown.set(made)
    return is_compiled and not why_not


def _generate_block(
    first_seed: int, shared: tuple[ray.ObjectRef], config: SampleStage, uri: str, is_compiled: bool
) -> str:
    """In a task: generate and store one block, unless one that was lost has done so.

    Returns:
        why the network could not be compiled, if it was to be.
    """
    if storage.exists(block_uri(uri, first_seed)):
        return ""
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if config.use_gpu else "cpu")
    # Of a block there are no more at once; a compiled network would fill up what is missing.
    at_once = replace(config, batch_size=min(config.batch_size, config.block_size))
    model, why = compiled_model(shared, device, at_once) if is_compiled else (loaded_model(shared, device), "")
    images = model.generate(torch.arange(first_seed, first_seed + config.block_size), config)
    pngs = [encode_png(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
    write_block(uri, first_seed, pngs)
    return why


def _first_images(samples: SampleSet) -> Tensor:
    return decode_pngs(png for _, png in islice(read_images(samples), _GRID_IMAGES))
