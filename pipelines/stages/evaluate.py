"""The evaluate stage: features measured by parallel tasks and merged, neighbours searched, a report written."""

from dataclasses import dataclass
from typing import Any

import ray
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.report import MARKER_NAME, PAGE_NAME, read_figures
from ddpm_core.artifacts.sample_set import SampleSet, read_images
from ddpm_core.data.loader import ImageReader
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features import NAME, extract, extractor_digest
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all
from pipelines.cluster import shard_cache
from pipelines.models import digest, to_json
from pipelines.progress import progress
from pipelines.recipes import Recipe
from pipelines.stages import reporting


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation found."""

    report_uri: str
    page_uri: str
    metric: str
    """The figure by which models are ranked; lower is better."""
    figures: dict[str, float]
    reference: str
    """What the figure was measured against and how: only equal references compare."""


def run_evaluate(weights: Weights, samples: SampleSet, index: DatasetIndex, recipe: Recipe) -> Evaluated:
    """Measure a sample set against the training images and write its report; one that is there is read.

    Raises:
        ValueError: if the set has fewer images than are to be measured.
    """
    config = recipe.evaluate
    if samples.num_images < config.num_images:
        raise ValueError(
            f"evaluate.num-images is {config.num_images}, the sample set has {samples.num_images}; "
            "lower it, or raise --sample.num-images"
        )
    inputs = [
        samples.identity,
        samples.first_seed,
        samples.block_size,
        index.digest,
        to_json(config),
        extractor_digest(),
    ]
    uri = storage.join(recipe.store, "reports", f"{recipe.recipe}-{digest(inputs)}")
    reference = f"dataset {index.digest[:16]} train, {extractor_digest()}, {config.num_images} images"
    if storage.exists(storage.join(uri, MARKER_NAME)):
        figures = {name: value for name, value in read_figures(uri).items() if isinstance(value, float)}
    else:
        figures = _measure(samples, index, config, recipe.store)
        reporting.write(uri, weights, samples, index, recipe, figures, reference)
    return Evaluated(
        report_uri=uri,
        page_uri=storage.join(uri, PAGE_NAME),
        metric=NAME,
        figures=figures,
        reference=reference,
    )


def _measure(samples: SampleSet, index: DatasetIndex, config: EvaluateConfig, store: str) -> dict[str, float]:
    train = real_stats(index, "train", config, store)
    heldout = real_stats(index, "heldout", config, store)
    generated = generated_stats(samples, config)
    return {
        NAME: frechet_distance(generated, train),
        "floor": frechet_distance(heldout, train),
        "num_generated": float(generated.count),
        "num_train": float(train.count),
        "num_heldout": float(heldout.count),
    }


def real_stats(index: DatasetIndex, split: str, config: EvaluateConfig, store: str) -> FeatureStats:
    """The features' stats of a split, measured once and kept in the store."""
    kept = storage.join(store, "reference", f"{index.digest[:16]}-{split}-{extractor_digest()}.npz")
    if storage.exists(kept):
        return FeatureStats.from_bytes(storage.read_bytes(kept))
    numbers = range(sum(shard.split == split for shard in index.shards))
    tasks = [_shard_stats.remote(index, split, number, config.batch_size) for number in numbers]
    stats = merge_all(_gather(f"measure {split}", tasks))
    storage.write_bytes(kept, stats.to_bytes())
    return stats


def generated_stats(samples: SampleSet, config: EvaluateConfig) -> FeatureStats:
    """The features' stats of the set's first images."""
    stop = samples.first_seed + config.num_images
    tasks = [_block_stats.remote(samples, first, stop) for first in samples.blocks if first < stop]
    return merge_all(_gather("measure samples", tasks))


def _gather(what: str, tasks: list[Any]) -> list[Any]:
    """The tasks' results in their order, so that rounding does not depend on who was first."""
    with progress(what, len(tasks), "part") as shown:
        waiting = list(tasks)
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done)
            shown.set(len(tasks) - len(waiting))
    results: list[Any] = ray.get(tasks)
    return results


@ray.remote(num_cpus=1)
def _shard_stats(index: DatasetIndex, split: str, number: int, batch_size: int) -> FeatureStats:
    torch.set_num_threads(1)
    batches = ImageReader(index, split, shard_cache(), keep_bytes=0).in_order(batch_size, range(number, number + 1))
    return merge_all(FeatureStats.from_features(extract(images)) for images in batches)


@ray.remote(num_cpus=1)
def _block_stats(samples: SampleSet, first_seed: int, stop: int) -> FeatureStats:
    torch.set_num_threads(1)
    pngs = [png for seed, png in read_images(samples, range(first_seed, first_seed + 1)) if seed < stop]
    return FeatureStats.from_features(extract(reporting.decoded(pngs)))
