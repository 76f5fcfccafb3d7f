"""What one process measures of a model by itself: a checkpoint beside training, a trial of a sweep.

The same seeds and the same noise whichever model it is, so figures of two models differ by the models alone.
"""

from functools import reduce

import torch

from ddpm_core.api.model import Model
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.evaluation.bits_per_dim import GROUP, BoundStats
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.random_conv import extract
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.types import Tensor
from pipelines.measuring.likelihood import group_bound


def sample_distance(
    model: Model, num_images: int, request: SampleConfig, reference: FeatureStats, num_kept: int = 0
) -> tuple[float, Tensor]:
    """The Fréchet distance of images of the seeds 0, 1, ... by random_conv; and the first of the images, uint8 [n, c, h, w]."""
    parts, kept = [], []
    for seeds in torch.split(torch.arange(num_images), request.batch_size):
        images = model.generate(seeds, request)
        parts.append(FeatureStats.from_features(extract(images)))
        kept.append(images[: max(0, num_kept - int(seeds[0]))].cpu())
    return frechet_distance(merge_all(parts), reference), torch.cat(kept)


def validation_bound(model: Model, index: DatasetIndex, config: EvaluateConfig) -> float | None:
    """Bits/dim of validation's first `bits_per_dim_images`; None if none are asked for, or there are none."""
    count = min(config.bits_per_dim_images, index.num_samples("validation"))
    if not count:
        return None
    groups = (range(first, min(first + GROUP, count)) for first in range(0, count, GROUP))
    bounds = (group_bound(model, index, "validation", group, config) for group in groups)
    return reduce(BoundStats.merge, bounds).bits_per_dim
