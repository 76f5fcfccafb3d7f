"""The evaluate stage: features measured by parallel tasks and merged, neighbours searched, a report written."""

from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any

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
from ddpm_core.plain import to_json
from pipelines.cluster.session import shard_cache
from pipelines.models import build_denoiser, digest, reverse_process
from pipelines.progress import progress
from pipelines.recipes import Recipe, SampleStage
from pipelines.stages import reporting

_TASKS_AN_ACTOR = 4
"""So that the bar moves, and none waits long for the last."""


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
    tasks, left = [], count
    for number, size in enumerate(index.shard_sizes(split)):
        if left > 0:
            tasks.append(_shard_stats.remote(index, split, number, min(int(size), left), config.batch_size))
        left -= int(size)
    stats = merge_all(_gather(f"measure {split}", tasks))
    storage.write_bytes(kept, stats.to_bytes())
    return stats


def generated_stats(samples: SampleSet, count: int, batch_size: int) -> FeatureStats:
    """The features' stats of the set's first `count` images."""
    stop = samples.first_seed + count
    tasks = [_block_stats.remote(samples, first, stop, batch_size) for first in samples.blocks if first < stop]
    return merge_all(_gather("measure samples", tasks))


def heldout_bound(
    weights: Weights, index: DatasetIndex, config: EvaluateConfig, where: SampleStage
) -> BoundStats | None:
    """The variational bound of the first held-out images; None if none are asked for.

    Args:
        where: it is computed as samples are, on so many actors' CPUs or GPUs.
    """
    count = min(config.bits_per_dim_images, index.num_samples("heldout"))
    if not count:
        return None
    shared, span = ray.put(weights), GROUP * -(-count // (GROUP * _TASKS_AN_ACTOR * where.num_actors))
    work = _span_bound.options(num_cpus=1, num_gpus=int(where.use_gpu))
    tasks = [
        work.remote(shared, index, range(first, min(first + span, count)), config.bits_per_dim_steps, where.use_gpu)
        for first in range(0, count, span)
    ]
    groups: list[BoundStats] = list(chain.from_iterable(_gather("measure bits/dim", tasks)))
    return reduce(BoundStats.merge, groups)


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
def _shard_stats(index: DatasetIndex, split: str, number: int, count: int, batch_size: int) -> FeatureStats:
    torch.set_num_threads(1)
    batches = ImageReader(index, split, shard_cache(), keep_bytes=0).in_order(batch_size, range(number, number + 1))
    parts, left = [], count
    for images in batches:
        parts.append(FeatureStats.from_features(extract(images[:left])))
        left -= len(images)
        if left <= 0:
            break
    return merge_all(parts)


@ray.remote(num_cpus=1)
def _block_stats(samples: SampleSet, first_seed: int, stop: int, batch_size: int) -> FeatureStats:
    torch.set_num_threads(1)
    pngs = [png for seed, png in read_images(samples, range(first_seed, first_seed + 1)) if seed < stop]
    batches = (pngs[start : start + batch_size] for start in range(0, len(pngs), batch_size))
    return merge_all(FeatureStats.from_features(extract(reporting.decoded(batch))) for batch in batches)


@ray.remote
def _span_bound(
    weights: Weights, index: DatasetIndex, numbers: range, num_steps: int | None, use_gpu: bool
) -> list[BoundStats]:
    torch.set_num_threads(1)
    return span_bound(weights, index, numbers, num_steps, torch.device("cuda" if use_gpu else "cpu"))


def span_bound(
    weights: Weights, index: DatasetIndex, numbers: range, num_steps: int | None, device: torch.device
) -> list[BoundStats]:
    """The bound of some held-out images, a group at a time: the sum over groups does not depend on who measured which."""
    reader = ImageReader(index, "heldout", shard_cache(), keep_bytes=0)
    network = build_denoiser(weights).to(device)
    found = []
    for first in range(numbers.start, numbers.stop, GROUP):
        places = reader.places(range(first, min(first + GROUP, numbers.stop)))
        p = reverse_process(network, weights.config, reader.labels(*places).to(device))
        found.append(measure_bound(p, reader.images(*places).to(device), first, num_steps))
    return found
