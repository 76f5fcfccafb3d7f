"""Bits/dim of a split's images, by parallel tasks and summed in one order."""

from functools import lru_cache
from typing import Any

import ray
import torch

from ddpm_core import storage
from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex, Split
from ddpm_core.data.reader import ImageReader
from ddpm_core.evaluation.bits_per_dim import GROUP, BoundStats, measure_bound
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.figures import Figure, sure
from ddpm_core.evaluation.intervals import interval
from pipelines.cluster.model_cache import loaded_model
from pipelines.cluster.placement import for_sampling
from pipelines.cluster.session import shard_cache
from pipelines.cluster.tasks import merged
from pipelines.measuring.wording import chosen_by, said
from pipelines.naming import digest
from pipelines.progress import progress
from pipelines.recipes.config import SampleStage


def split_bound(
    weights: Weights, index: DatasetIndex, split: Split, config: EvaluateConfig, store: str, where: SampleStage
) -> BoundStats | None:
    """The variational bound of a split's first images; None if none are asked for.

    What a group of images was found to have is kept in <store>/bounds: the same again goes on where it was.

    Args:
        where: it is computed as samples are, on CPUs or GPUs.
    """
    count = min(config.bits_per_dim_images, index.num_samples(split))
    if not count:
        return None
    identity: list[Any] = [weights.sha256, weights.config, index.digest, split, config.bits_per_dim_steps]
    if config.bits_per_dim_clip != "static":  # which those that were kept before have
        identity.append(config.bits_per_dim_clip)
    folder = storage.join(store, "bounds", digest(identity, 16))
    groups = [range(first, min(first + GROUP, count)) for first in range(0, count, GROUP)]
    arguments = (ray.put(weights),), index, split, config, folder, where
    with progress("measure bits/dim", len(groups), "group") as shown:
        return merged(_group_bound, groups, for_sampling(where), BoundStats.merge, *arguments, on_done=shown.set)


def _group_bound(
    numbers: range,
    shared: tuple[ray.ObjectRef],
    index: DatasetIndex,
    split: Split,
    config: EvaluateConfig,
    folder: str,
    where: SampleStage,
) -> BoundStats:
    """In a task."""
    kept = storage.join(folder, f"group-{numbers.start:08d}-{len(numbers)}.npz")
    if storage.exists(kept):
        return BoundStats.from_bytes(storage.read_bytes(kept))
    torch.set_num_threads(where.threads)
    model = loaded_model(shared, torch.device("cuda" if where.use_gpu else "cpu"))
    found = group_bound(model, index, split, numbers, config)
    storage.write_bytes(kept, found.to_bytes())
    return found


@lru_cache(maxsize=1)
def _reader(index: DatasetIndex, split: Split) -> ImageReader:
    """A worker process's reader, opened once for all the groups that it measures."""
    return ImageReader(index, split, shard_cache(), keep_bytes=0)


def group_bound(model: Model, index: DatasetIndex, split: Split, numbers: range, config: EvaluateConfig) -> BoundStats:
    """The bound of one group of a split's images: the sum over groups does not depend on who measured which."""
    reader = _reader(index, split)
    places = reader.places(numbers)
    p = model.reverse_process(reader.labels(*places).to(model.device))
    images = reader.images(*places).to(model.device)
    return measure_bound(p, images, numbers.start, config.bits_per_dim_steps, config.bits_per_dim_clip)


_RAW = 8.0
"""Bits/dim of grey levels as they are."""
_SAYS_NOTHING = (
    "an upper bound, above the 8 that grey levels cost as they are: it says nothing of the images. Where x_0 is predicted "
    "the last of the grey levels are seldom learned"
)


def bound_figures(bound: BoundStats | None, index: DatasetIndex) -> tuple[Figure, ...]:
    """Bits/dim and its two parts."""
    if bound is None:
        return ()
    split = f"{bound.count:,} of {index.num_samples(index.final_split):,} {index.final_split} images"
    degrees = bound.count - 1
    found = interval(bound.bits_per_dim, bound.standard_error, degrees) if degrees else None
    says = bound.bits_per_dim < _RAW
    whole: dict[str, Any] = {
        "name": "bits_per_dim",
        "of": split,
        "note": said("an upper bound" if says else _SAYS_NOTHING, chosen_by(index)),
        "headline": says,
    }
    return (
        sure(found, **whole) if found else Figure(value=bound.bits_per_dim, **whole),
        Figure(name="rate", value=bound.rate, of=split, note="bits/dim of all steps but the last"),
        Figure(name="distortion", value=bound.distortion, of=split, note="bits/dim of the last step"),
        Figure(
            name="rmse",
            value=float(bound.rmse[0]),
            of=split,
            note="error of the last step's image, of 0..255",
        ),
    )
