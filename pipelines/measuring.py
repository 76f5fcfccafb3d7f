"""Features and likelihoods, measured by parallel tasks and merged in one order."""

from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any, TypeVar

import ray
import torch

from ddpm_core import storage
from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex, Split
from ddpm_core.artifacts.sample_set import SampleSet, read_images
from ddpm_core.data.images import decode_pngs
from ddpm_core.data.reader import ImageReader
from ddpm_core.evaluation.bits_per_dim import GROUP, BoundStats, measure_bound
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.frechet import FeatureStats, merge_all
from pipelines.cluster.model_cache import loaded_model
from pipelines.cluster.placement import Ask, for_a_cpu, for_sampling
from pipelines.cluster.session import shard_cache
from pipelines.cluster.tasks import gather
from pipelines.progress import progress
from pipelines.recipes.config import SampleStage

R = TypeVar("R")


_ONE_CPU = for_a_cpu("evaluate")
RANDOM_CONV = Features()
"""What validation and sweeps rank by: cheap at every checkpoint, and nothing to fetch."""


def real_stats(
    index: DatasetIndex,
    split: Split,
    config: EvaluateConfig,
    store: str,
    count: int | None = None,
    features: Features = RANDOM_CONV,
) -> FeatureStats:
    """The features' stats of a split, or of its first `count` images (they lie in random order); measured once and kept."""
    count = index.num_samples(split) if count is None else count
    kept = storage.join(store, "reference", f"{index.digest[:16]}-{split}-{count}-{features.digest}.npz")
    if storage.exists(kept):
        return FeatureStats.from_bytes(storage.read_bytes(kept))
    parts, left = [], count
    for number, size in enumerate(index.shard_sizes(split)):
        if left > 0:
            parts.append((number, min(int(size), left)))
        left -= int(size)
    stats = merge_all(
        _gather(f"measure {split}", _shard_stats, parts, _ONE_CPU, index, split, config.batch_size, features)
    )
    storage.write_bytes(kept, stats.to_bytes())
    return stats


def generated_stats(samples: SampleSet, count: int, batch_size: int, features: Features) -> FeatureStats:
    """The features' stats of the set's first `count` images."""
    stop = samples.first_seed + count
    blocks = [first for first in samples.blocks if first < stop]
    return merge_all(_gather("measure samples", _block_stats, blocks, _ONE_CPU, samples, stop, batch_size, features))


def split_bound(
    weights: Weights, index: DatasetIndex, split: Split, config: EvaluateConfig, where: SampleStage
) -> BoundStats | None:
    """The variational bound of a split's first images; None if none are asked for.

    Args:
        where: it is computed as samples are, on CPUs or GPUs.
    """
    count = min(config.bits_per_dim_images, index.num_samples(split))
    if not count:
        return None
    groups = [range(first, min(first + GROUP, count)) for first in range(0, count, GROUP)]
    arguments = (ray.put(weights),), index, split, config.bits_per_dim_steps, where
    return reduce(BoundStats.merge, _gather("measure bits/dim", _group_bound, groups, for_sampling(where), *arguments))


def _gather(what: str, work: Callable[..., R], items: list[Any], ask: Ask, *args: Any) -> list[R]:
    with progress(what, len(items), "part") as shown:
        return gather(work, items, ask, *args, on_done=shown.set)


def _shard_stats(
    part: tuple[int, int], index: DatasetIndex, split: Split, batch_size: int, features: Features
) -> FeatureStats:
    torch.set_num_threads(1)
    number, count = part
    batches = ImageReader(index, split, shard_cache(), keep_bytes=0).in_order(batch_size, range(number, number + 1))
    parts, left = [], count
    for images in batches:
        parts.append(FeatureStats.from_features(features.extract(images[:left])))
        left -= len(images)
        if left <= 0:
            break
    return merge_all(parts)


def _block_stats(first_seed: int, samples: SampleSet, stop: int, batch_size: int, features: Features) -> FeatureStats:
    torch.set_num_threads(1)
    pngs = [png for seed, png in read_images(samples, range(first_seed, first_seed + 1)) if seed < stop]
    batches = (pngs[start : start + batch_size] for start in range(0, len(pngs), batch_size))
    return merge_all(FeatureStats.from_features(features.extract(decode_pngs(batch))) for batch in batches)


def _group_bound(
    numbers: range,
    shared: tuple[ray.ObjectRef],
    index: DatasetIndex,
    split: Split,
    num_steps: int | None,
    where: SampleStage,
) -> BoundStats:
    torch.set_num_threads(where.threads)
    model = loaded_model(shared, torch.device("cuda" if where.use_gpu else "cpu"))
    return group_bound(model, index, split, numbers, num_steps)


@lru_cache(maxsize=1)
def _reader(index: DatasetIndex, split: Split) -> ImageReader:
    """A worker process's reader, opened once for all the groups that it measures."""
    return ImageReader(index, split, shard_cache(), keep_bytes=0)


def group_bound(model: Model, index: DatasetIndex, split: Split, numbers: range, num_steps: int | None) -> BoundStats:
    """The bound of one group of a split's images: the sum over groups does not depend on who measured which."""
    reader = _reader(index, split)
    places = reader.places(numbers)
    p = model.reverse_process(reader.labels(*places).to(model.device))
    return measure_bound(p, reader.images(*places).to(model.device), numbers.start, num_steps)
