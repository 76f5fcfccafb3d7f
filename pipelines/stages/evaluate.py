"""The evaluate stage: features measured by parallel tasks and merged, neighbours searched, a report written."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, TypeVar

import ray
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex, Split
from ddpm_core.artifacts.report import MARKER_NAME, PAGE_NAME, read_figures
from ddpm_core.artifacts.sample_set import SampleSet, read_images
from ddpm_core.data.reader import ImageReader
from ddpm_core.evaluation.bits_per_dim import GROUP, BoundStats, measure_bound
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features import NAME, extract, extractor_digest
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all
from ddpm_core.model.unet import UNet
from ddpm_core.plain import to_json
from pipelines.cluster.placement import Ask, for_a_cpu, for_sampling
from pipelines.cluster.session import shard_cache
from pipelines.cluster.tasks import gather
from pipelines.models import digest, reverse_process
from pipelines.progress import progress
from pipelines.recipes import Recipe, SampleStage
from pipelines.stages import reporting
from pipelines.stages.networks import loaded_network

R = TypeVar("R")

_ONE_CPU = for_a_cpu("evaluate")


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

    @property
    def summary(self) -> str:
        """The figure beside its floor, in words."""
        said = f"{self.metric} {self.figures[self.metric]:.4g}"
        if "floor" not in self.figures:
            return said
        equal = self.figures["num_floor"] == self.figures["num_generated"]
        same = "" if equal else f"{self.figures['same_n']:.4g} at {self.figures['num_floor']:,.0f} images, "
        return f"{said} ({same}held-out images: {self.figures['floor']:.4g})"


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
        bound = heldout_bound(weights, index, config, recipe.sample)
        if bound is not None:
            figures |= {
                "bits_per_dim": bound.bits_per_dim,
                "bits_per_dim_error": bound.standard_error,
                "rate": bound.rate,
                "distortion": bound.distortion,
                "rmse": float(bound.rmse[0]),
            }
        reporting.write(uri, weights, samples, index, recipe, figures, bound, reference)
    return Evaluated(
        report_uri=uri,
        page_uri=storage.join(uri, PAGE_NAME),
        metric=NAME,
        figures=figures,
        reference=reference,
    )


def _measure(samples: SampleSet, index: DatasetIndex, config: EvaluateConfig, store: str) -> dict[str, float]:
    train = real_stats(index, "train", config, store)
    generated = generated_stats(samples, config.num_images, config.batch_size)
    figures = {
        NAME: frechet_distance(generated, train),
        "num_generated": float(generated.count),
        "num_train": float(train.count),
    }
    # Fewer images raise the distance: the floor is a floor for as many generated images as there are held-out ones.
    num_floor = min(index.num_samples("heldout"), config.num_images)
    if num_floor < 2:  # no covariance
        return figures
    heldout = real_stats(index, "heldout", config, store, num_floor)
    same_n = generated if num_floor == generated.count else generated_stats(samples, num_floor, config.batch_size)
    return {
        **figures,
        "floor": frechet_distance(heldout, train),
        "same_n": frechet_distance(same_n, train),
        "num_floor": float(num_floor),
    }


def real_stats(
    index: DatasetIndex, split: Split, config: EvaluateConfig, store: str, count: int | None = None
) -> FeatureStats:
    """The features' stats of a split, or of its first `count` images (they lie in random order); measured once and kept."""
    count = index.num_samples(split) if count is None else count
    kept = storage.join(store, "reference", f"{index.digest[:16]}-{split}-{count}-{extractor_digest()}.npz")
    if storage.exists(kept):
        return FeatureStats.from_bytes(storage.read_bytes(kept))
    parts, left = [], count
    for number, size in enumerate(index.shard_sizes(split)):
        if left > 0:
            parts.append((number, min(int(size), left)))
        left -= int(size)
    stats = merge_all(_gather(f"measure {split}", _shard_stats, parts, _ONE_CPU, index, split, config.batch_size))
    storage.write_bytes(kept, stats.to_bytes())
    return stats


def generated_stats(samples: SampleSet, count: int, batch_size: int) -> FeatureStats:
    """The features' stats of the set's first `count` images."""
    stop = samples.first_seed + count
    blocks = [first for first in samples.blocks if first < stop]
    return merge_all(_gather("measure samples", _block_stats, blocks, _ONE_CPU, samples, stop, batch_size))


def heldout_bound(
    weights: Weights, index: DatasetIndex, config: EvaluateConfig, where: SampleStage
) -> BoundStats | None:
    """The variational bound of the first held-out images; None if none are asked for.

    Args:
        where: it is computed as samples are, on CPUs or GPUs.
    """
    count = min(config.bits_per_dim_images, index.num_samples("heldout"))
    if not count:
        return None
    groups = [range(first, min(first + GROUP, count)) for first in range(0, count, GROUP)]
    arguments = (ray.put(weights),), index, config.bits_per_dim_steps, where
    return reduce(BoundStats.merge, _gather("measure bits/dim", _group_bound, groups, for_sampling(where), *arguments))


def _gather(what: str, work: Callable[..., R], items: list[Any], ask: Ask, *args: Any) -> list[R]:
    with progress(what, len(items), "part") as shown:
        return gather(work, items, ask, *args, on_done=shown.set)


def _shard_stats(part: tuple[int, int], index: DatasetIndex, split: Split, batch_size: int) -> FeatureStats:
    torch.set_num_threads(1)
    number, count = part
    batches = ImageReader(index, split, shard_cache(), keep_bytes=0).in_order(batch_size, range(number, number + 1))
    parts, left = [], count
    for images in batches:
        parts.append(FeatureStats.from_features(extract(images[:left])))
        left -= len(images)
        if left <= 0:
            break
    return merge_all(parts)


def _block_stats(first_seed: int, samples: SampleSet, stop: int, batch_size: int) -> FeatureStats:
    torch.set_num_threads(1)
    pngs = [png for seed, png in read_images(samples, range(first_seed, first_seed + 1)) if seed < stop]
    batches = (pngs[start : start + batch_size] for start in range(0, len(pngs), batch_size))
    return merge_all(FeatureStats.from_features(extract(reporting.decoded(batch))) for batch in batches)


def _group_bound(
    numbers: range, shared: tuple[ray.ObjectRef], index: DatasetIndex, num_steps: int | None, where: SampleStage
) -> BoundStats:
    torch.set_num_threads(where.threads)
    network, model = loaded_network(shared, torch.device("cuda" if where.use_gpu else "cpu"))
    return group_bound(network, model, index, numbers, num_steps)


@lru_cache(maxsize=1)
def _heldout(index: DatasetIndex) -> ImageReader:
    """A worker process's reader, opened once for all the groups that it measures."""
    return ImageReader(index, "heldout", shard_cache(), keep_bytes=0)


def group_bound(
    network: UNet, model: dict[str, Any], index: DatasetIndex, numbers: range, num_steps: int | None
) -> BoundStats:
    """The bound of one group of held-out images: the sum over groups does not depend on who measured which."""
    reader, device = _heldout(index), next(network.parameters()).device
    places = reader.places(numbers)
    p = reverse_process(network, model, reader.labels(*places).to(device))
    return measure_bound(p, reader.images(*places).to(device), numbers.start, num_steps)
