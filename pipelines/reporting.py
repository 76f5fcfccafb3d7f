"""From an evaluation to its report: pictures gathered by Ray tasks, the page rendered, the artifact written."""

import time
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any

import ray
import torch

from ddpm_core.artifacts.checkpoint import HistoryRow, Weights, read_history
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.report import write_report
from ddpm_core.artifacts.sample_set import SampleSet, read_images
from ddpm_core.data.images import decode_pngs
from ddpm_core.data.reader import ImageReader
from ddpm_core.evaluation import pictures as draw
from ddpm_core.evaluation.bits_per_dim import BoundStats
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.neighbours import Neighbours, merge, nearest
from ddpm_core.evaluation.plots import bound_curves, loss_curve
from ddpm_core.evaluation.report_page import DatasetFacts, ModelFacts, ReportContent, render_report
from ddpm_core.serialization import from_json
from ddpm_core.types import Tensor
from pipelines.cluster.model_cache import loaded_model
from pipelines.cluster.placement import for_a_cpu, for_sampling
from pipelines.cluster.session import shard_cache, versions
from pipelines.cluster.tasks import gather
from pipelines.metric_rows import bound_rows, distance_rows
from pipelines.naming import code_version
from pipelines.recipes.config import Recipe, SampleStage

_STRIP_FRAMES = 11


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What the report shows."""

    real: Tensor
    generated: Tensor
    denoising: Tensor
    times: list[int]
    """t of each column of the strip."""
    neighbours: Neighbours


def write(
    uri: str,
    weights: Weights,
    samples: SampleSet,
    index: DatasetIndex,
    recipe: Recipe,
    metrics: dict[str, float],
    bound: BoundStats | None,
    reference: str,
    features: Features,
) -> None:
    """Write the report of an evaluation."""
    pictures = _gather(weights, samples, index, recipe)
    rows = recipe.evaluate.num_rows
    content = _content(weights, samples, index, recipe, metrics, bound, pictures, features)
    near = pictures.neighbours
    pngs = {
        "real.png": draw.image_grid(pictures.real),
        "generated.png": draw.image_grid(pictures.generated),
        "denoising.png": draw.denoising_strip(pictures.denoising, list(content.denoising_labels)),
        "neighbours.png": draw.neighbours_grid(pictures.generated[:rows], near.images, near.distances),
    }
    if content.history:
        pngs["loss.png"] = loss_curve(content.history)
    if bound is not None:
        pngs["bound.png"] = bound_curves(bound)
    facts = {**metrics, "reference": reference, "samples": samples.set_uri, "checkpoint": weights.uri}
    write_report(uri, facts, render_report(content), pngs)


def _gather(weights: Weights, samples: SampleSet, index: DatasetIndex, recipe: Recipe) -> Pictures:
    config = recipe.evaluate
    seeds = list(range(samples.first_seed, samples.first_seed + min(config.num_rows, samples.num_images)))
    shown = min(max(config.num_shown, config.num_rows), samples.num_images)
    generated = decode_pngs(png for _, png in islice(read_images(samples), shown))
    starts, first = [], 0
    sizes = index.shard_sizes("train")
    for size in sizes:
        starts.append(first)
        first += int(size)
    queries = generated[: config.num_rows]
    request = _request(samples, recipe.sample)
    ((denoising, times),) = gather(_strip, [seeds], for_sampling(request), (ray.put(weights),), request)
    near = gather(
        _shard_neighbours, list(enumerate(starts)), for_a_cpu("report"), index, queries, config.num_neighbours
    )
    neighbours = reduce(lambda one, other: merge(one, other, config.num_neighbours), near)
    real = next(iter(ImageReader(index, "train", shard_cache(), keep_bytes=0).in_order(config.num_shown)))
    return Pictures(
        real=real, generated=generated[: config.num_shown], denoising=denoising, times=times, neighbours=neighbours
    )


def _content(
    weights: Weights,
    samples: SampleSet,
    index: DatasetIndex,
    recipe: Recipe,
    metrics: dict[str, float],
    bound: BoundStats | None,
    pictures: Pictures,
    features: Features,
) -> ReportContent:
    name, history = recipe.recipe, _history(weights)
    rates = sorted(row["images_per_s"] for row in history)
    return ReportContent(
        title=f"{name}: a DDPM after {weights.step:,} steps",
        created_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        dataset=_dataset_facts(name, index),
        model=_model_facts(weights, samples, recipe.evaluate.num_images),
        metrics=(
            *distance_rows(features, metrics, index),
            *bound_rows(bound, index),
        ),
        bound=bound,
        protocol=features.protocol,
        extractor_digest=features.digest,
        real=pictures.real,
        generated=pictures.generated,
        denoising=pictures.denoising,
        denoising_labels=tuple(str(t) for t in pictures.times),
        queries=pictures.generated[: recipe.evaluate.num_rows],
        neighbours=pictures.neighbours,
        history=history,
        train_images_per_s=rates[len(rates) // 2] if rates else None,
        sample_images_per_s=None,
        commands=(
            f"python pipelines/evaluate.py {name} --store {recipe.store} --model {weights.uri}{_flags(features)}",
        ),
        versions={**versions(), "code": code_version()},
    )


def _flags(features: Features) -> str:
    """Those that ask for the same features."""
    if features.network != "inception":
        return "" if features.network == "random_conv" else f" --evaluate.features {features.network}"
    return f" --evaluate.features inception --evaluate.resize {features.resize} --evaluate.weights {features.weights}"


def _dataset_facts(name: str, index: DatasetIndex) -> DatasetFacts:
    return DatasetFacts(
        name=name,
        uri=index.uri,
        digest=index.digest,
        image_size=index.image_size,
        channels=index.channels,
        counts=index.counts,
        own_splits=index.own_splits,
        num_rejected=index.num_rejected,
        class_names=index.class_names,
    )


def _model_facts(weights: Weights, samples: SampleSet, num_images: int) -> ModelFacts:
    sampler = samples.identity["sampler"]
    steps = sampler["num_steps"] or weights.config["schedule"]["num_timesteps"]
    return ModelFacts(
        checkpoint_uri=weights.uri,
        weights_sha256=weights.sha256,
        num_parameters=sum(tensor.numel() for tensor in weights.tensors.values()),
        step=weights.step,
        images_seen=weights.step * weights.config["train"]["batch_size"],
        sampler=f"{sampler['name']}, {steps} steps{_noise(samples.identity)}, {samples.identity['precision']}",
        first_seed=samples.first_seed,
        num_images=num_images,
    )


def _request(samples: SampleSet, where: SampleStage) -> SampleStage:
    """The request that decides the images of a set, but for their number; done where samples are."""
    names = ("sampler", "labels", "guidance", "precision")
    request = from_json(SampleStage, {name: samples.identity[name] for name in names})
    return replace(request, threads=where.threads, use_gpu=where.use_gpu, node_labels=where.node_labels)


def _noise(identity: dict[str, Any]) -> str:
    """The noise of a sampler in words; none of one that has none."""
    sampler = identity["sampler"]
    match sampler["name"]:
        case "ddim":
            return f", eta {sampler['eta']:g}"
        case "ancestral":
            variance: str = sampler["variance"] or identity["reverse"]["variance"]
            return f", {variance.replace('_', ' ')} variance"
        case _:
            return ""


def _history(weights: Weights) -> list[HistoryRow]:
    """The loss curve, where the checkpoint still stands; old ones are deleted by policy."""
    try:
        return read_history(weights.uri)
    except FileNotFoundError:
        return []


def _shard_neighbours(shard: tuple[int, int], index: DatasetIndex, queries: Tensor, count: int) -> Neighbours:
    """In a task: the neighbours in one shard, given with its first image's number."""
    torch.set_num_threads(1)
    number, first_index = shard
    found: Neighbours | None = None
    for images in ImageReader(index, "train", shard_cache(), keep_bytes=0).in_order(1024, range(number, number + 1)):
        near = nearest(queries, images, count, first_index=first_index)
        found = merge(found, near, count) if found else near
        first_index += len(images)
    assert found is not None
    return found


def _strip(seeds: list[int], shared: tuple[ray.ObjectRef], request: SampleStage) -> tuple[Tensor, list[int]]:
    """In a task, as samples are made."""
    torch.set_num_threads(request.threads)
    model = loaded_model(shared, torch.device("cuda" if request.use_gpu else "cpu"))
    frames, times = model.denoising_strip(torch.tensor(seeds), request, _STRIP_FRAMES)
    return frames.cpu(), times
