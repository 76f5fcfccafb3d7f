"""From an evaluation to its report: pictures gathered by Ray tasks, the page rendered, the artifact written."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.report import write_report
from ddpm_core.artifacts.sample_set import SampleSet
from ddpm_core.data.reader import ImageReader
from ddpm_core.evaluation import pictures as draw
from ddpm_core.evaluation.bits_per_dim import BoundStats
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.figures import Figure
from ddpm_core.evaluation.frechet_infinity import Extrapolation
from ddpm_core.evaluation.neighbours import Neighbours, merge, nearest
from ddpm_core.evaluation.plots import bound_curves, distance_curve, loss_curve, precision_recall_curve, steps_curve
from ddpm_core.evaluation.report_page import ImageFacts, ReportContent, Strip, render_report
from ddpm_core.serialization import from_json, to_json
from ddpm_core.training.ailments import judge
from ddpm_core.types import Tensor
from pipelines.cluster.model_cache import loaded_model
from pipelines.cluster.placement import for_a_cpu, for_sampling
from pipelines.cluster.session import shard_cache, versions
from pipelines.cluster.tasks import gather
from pipelines.measuring.copies import Copies, first_images
from pipelines.measuring.image_sets import SplitImages
from pipelines.naming import code_version
from pipelines.recipes.config import Recipe, SampleStage
from pipelines.recipes.paper import Printed
from pipelines.report_facts import command, course_to, dataset_facts, model_facts
from pipelines.subject import Subject

_STRIP_FRAMES = 11


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What an evaluation measured."""

    figures: tuple[Figure, ...]
    curve: Extrapolation | None = None
    precision_recall: NDArray[np.float64] | None = None
    by_steps: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """By sampler, its steps and the distance that they reach."""
    bound: BoundStats | None = None
    copies: Copies | None = None
    without_copies: str = ""
    """Why copies were not sought."""
    paper: Printed | None = None
    """What the paper prints of this model, if it is the paper's."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What the report shows."""

    real: Tensor
    generated: Tensor
    strip: Strip | None
    neighbours: Neighbours


def write(
    uri: str,
    subject: Subject,
    index: DatasetIndex,
    recipe: Recipe,
    found: Found,
    facts: dict[str, Any],
    features: Features,
) -> None:
    """Write the report of an evaluation."""
    pictures = _gather(subject, index, recipe)
    rows = recipe.evaluate.num_rows
    content = _content(subject, index, recipe, found, pictures, features)
    near = pictures.neighbours
    pngs = {
        "real.png": draw.image_grid(pictures.real),
        "generated.png": draw.image_grid(pictures.generated),
        "neighbours.png": draw.neighbours_grid(pictures.generated[:rows], near.images, near.distances),
    }
    if pictures.strip is not None:
        pngs["denoising.png"] = draw.denoising_strip(pictures.strip.frames, list(pictures.strip.labels))
    if content.history:
        pngs["loss.png"] = loss_curve(content.history)
    if found.curve is not None:
        pngs["distance.png"] = distance_curve(found.curve)
    if found.precision_recall is not None:
        pngs["precision_recall.png"] = precision_recall_curve(found.precision_recall)
    if found.by_steps:
        pngs["steps.png"] = steps_curve(found.by_steps)
    if found.bound is not None:
        pngs["bound.png"] = bound_curves(found.bound)
    if found.copies is not None:
        pngs["copies.png"] = draw.image_grid(found.copies.pairs.flatten(0, 1), 8)
    write_report(uri, [to_json(figure) for figure in found.figures], facts, render_report(content), pngs)


def _gather(subject: Subject, index: DatasetIndex, recipe: Recipe) -> Pictures:
    config = recipe.evaluate
    generated = first_images(subject.images, max(config.num_shown, config.num_rows))
    queries = generated[: config.num_rows]
    parts = [(number, part.start) for number, part in enumerate(SplitImages(index, "train").parts)]
    near = gather(_shard_neighbours, parts, for_a_cpu("report"), index, queries, config.num_neighbours)
    return Pictures(
        real=first_images(SplitImages(index, "train"), config.num_shown),
        generated=generated[: config.num_shown],
        strip=None if subject.model is None else _denoising(*subject.model, recipe),
        neighbours=reduce(lambda one, other: merge(one, other, config.num_neighbours), near),
    )


def _denoising(weights: Weights, samples: SampleSet, recipe: Recipe) -> Strip:
    seeds = list(range(samples.first_seed, samples.first_seed + min(recipe.evaluate.num_rows, samples.num_images)))
    request = _request(samples, recipe.sample)
    ((frames, times),) = gather(_strip, [seeds], for_sampling(request), (ray.put(weights),), request)
    return Strip(frames=frames, labels=tuple(str(t) for t in times))


def _content(
    subject: Subject, index: DatasetIndex, recipe: Recipe, found: Found, pictures: Pictures, features: Features
) -> ReportContent:
    name = recipe.recipe
    course = course_to(subject.model[0]) if subject.model else None
    history = course.history if course else ()
    rates = sorted(row["images_per_s"] for row in history)
    return ReportContent(
        title=f"{name}: a DDPM after {subject.step:,} steps" if subject.model else f"Images of {subject.where}",
        created_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        dataset=dataset_facts(name, index),
        images=ImageFacts(uri=subject.where, first=subject.first, count=recipe.evaluate.num_images),
        model=model_facts(*subject.model, index) if subject.model else None,
        figures=found.figures,
        curve=found.curve,
        precision_recall=found.precision_recall,
        by_steps=found.by_steps,
        bound=found.bound,
        copies=found.copies.report if found.copies else None,
        copy_pairs=found.copies.pairs if found.copies else None,
        without_copies=found.without_copies,
        paper_progress=found.paper.progress if found.paper else {},
        protocol=features.protocol,
        extractor_digest=features.digest,
        real=pictures.real,
        generated=pictures.generated,
        strip=pictures.strip,
        queries=pictures.generated[: recipe.evaluate.num_rows],
        neighbours=pictures.neighbours,
        history=history,
        looks=course.looks if course else (),
        course=judge(course).lines if course else (),
        train_images_per_s=rates[len(rates) // 2] if rates else None,
        commands=(command(subject, index, recipe, features),),
        versions={**versions(), "code": code_version()},
    )


def _request(samples: SampleSet, where: SampleStage) -> SampleStage:
    """The request that decides the images of a set, but for their number; done where samples are."""
    names = ("sampler", "labels", "guidance", "precision")
    request = from_json(SampleStage, {name: samples.identity[name] for name in names})
    return replace(request, threads=where.threads, use_gpu=where.use_gpu, node_labels=where.node_labels)


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
