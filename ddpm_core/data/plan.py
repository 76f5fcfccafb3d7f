"""Which image of a source goes to which split and shard: by the seed, the number of images and the source's own splits alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import SPLITS, Split
from ddpm_core.data.config import DataConfig
from ddpm_core.errors import InputError
from ddpm_core.random import Purpose, random_bits

_DATASET_STEP = (1 << 24) - 1  # the last one, so that no epoch's permutation is this one


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard to be written."""

    name: str
    split: Split
    indices: NDArray[np.int64]
    """Places of its images in the source, in the order of the shard; [number of samples]."""


def plan_dataset(
    num_images: int, config: DataConfig, own_splits: Mapping[Split, NDArray[np.int64]] | None = None
) -> tuple[ShardPlan, ...]:
    """Which images go to which shard, in the order of a seeded permutation.

    Args:
        num_images: in the source.
        config: the shares of the test and of validation, where the source has none of its own.
        own_splits: of the source; the rest of its images is for training.

    Returns:
        The shards of training, of validation, of the test. Training has one image at the least; so has a split whose
        share is not 0, if there are enough.

    Raises:
        InputError: if there are fewer than 2 images.
    """
    if num_images < 2:
        raise InputError(
            f"{config.source} holds {num_images} image; expected 2 or more, to train on some and hold out some"
        )
    plans: list[ShardPlan] = []
    splits = _split(permutation(num_images, config.seed), config, own_splits or {})
    for split in SPLITS:
        indices = splits[split]
        for start in range(0, len(indices), config.samples_per_shard):
            name = f"shard-{len(plans):06d}.tar"
            plans.append(ShardPlan(name=name, split=split, indices=indices[start : start + config.samples_per_shard]))
    return tuple(plans)


def _split(
    order: NDArray[np.int64], config: DataConfig, own: Mapping[Split, NDArray[np.int64]]
) -> dict[Split, NDArray[np.int64]]:
    """The images of each split, in this order: what the source sets aside, then draws from the head of the rest."""
    splits = {split: order[np.isin(order, indices)] for split, indices in own.items()}
    rest = order[~np.isin(order, np.concatenate([*own.values(), []]))]
    drawn: tuple[tuple[Split, float], ...] = (
        ("test", config.test_fraction),
        ("validation", config.validation_fraction),
    )
    for split, fraction in drawn:
        if split not in splits:
            count = min(max(round(len(rest) * fraction), 1), len(rest) - 1) if fraction else 0
            splits[split], rest = rest[:count], rest[count:]
    return {**splits, "train": rest}


def permutation(num_images: int, seed: int) -> NDArray[np.int64]:
    """0..n-1 in the order of a keyed 64-bit word each; the same everywhere."""
    drawn = (
        random_bits(seed, Purpose.PERMUTATION, torch.arange(num_images), 2, step=_DATASET_STEP)
        .numpy()
        .astype(np.uint64)
    )
    return np.argsort(drawn[:, 0] << np.uint64(32) | drawn[:, 1], kind="stable")
