"""Which image of a source goes to which split and shard: by the seed, the number of images and the source's own splits alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import SPLITS, ShardEntry, Split
from ddpm_core.data.config import DataConfig
from ddpm_core.errors import InputError
from ddpm_core.random import Purpose, random_bits

_DATASET_STEP = (1 << 24) - 1  # the last one, so that no epoch's permutation is this one


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A shard of an earlier dataset whose images still stand, all of them or some."""

    dataset: str
    """URI."""
    group: int
    """Its number among the shards of that dataset's origins."""
    number: int
    """Its number in that dataset's index."""
    entry: ShardEntry | None
    """What the index says of it; None if none of its images could be used, so that it is not there."""
    whole: bool
    """Whether all of its images still stand."""
    certain: bool
    """Whether the listing alone tells that none of them changed."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard to be written."""

    name: str
    split: Split
    indices: NDArray[np.int64]
    """Places of its images in the source, in the order of the shard; [number of samples]."""
    keys: NDArray[np.int64]
    """Their keys: the same places, but in a dataset that grew, where a key stays an image's; [number of samples]."""
    standing: Standing | None = None
    """The shard that it was before; None for a new one."""


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
    return plan_shards(np.arange(num_images), config, own_splits or {})


def plan_shards(
    places: NDArray[np.int64],
    config: DataConfig,
    own_splits: Mapping[Split, NDArray[np.int64]],
    *,
    first_key: int = 0,
    first_shard: int = 0,
) -> tuple[ShardPlan, ...]:
    """As `plan_dataset`, of the images at some places of a source, which are added to those that had the keys below the first.

    Args:
        places: [number of images], ascending; the first gets the first key.
        first_key: one more than any image before had.
        first_shard: one more than the number in any shard's name before.
    """
    plans: list[ShardPlan] = []
    own = {split: np.flatnonzero(np.isin(places, indices)) for split, indices in own_splits.items()}
    splits = _split(permutation(len(places), config.seed, first_key), config, own, first_key)
    for split in SPLITS:
        for start in range(0, len(splits[split]), config.samples_per_shard):
            chosen = splits[split][start : start + config.samples_per_shard]
            name = shard_name(first_shard + len(plans))
            plans.append(ShardPlan(name=name, split=split, indices=places[chosen], keys=first_key + chosen))
    return tuple(plans)


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:06d}.tar"


def shard_number(name: str) -> int:
    """The number that a shard's name says."""
    return int(name.removeprefix("shard-").removesuffix(".tar"))


def _split(
    order: NDArray[np.int64], config: DataConfig, own: Mapping[Split, NDArray[np.int64]], num_before: int
) -> dict[Split, NDArray[np.int64]]:
    """The images of each split, in this order: what the source sets aside, then draws from the head of the rest.

    A share is rounded together with the images before, of which that share was drawn: so the shares hold however few come at
    a time, and one image out of ten that come one by one is in a split of a tenth.
    """
    splits = {split: order[np.isin(order, indices)] for split, indices in own.items()}
    rest = order[~np.isin(order, np.concatenate([*own.values(), []]))]
    drawn: tuple[tuple[Split, float], ...] = (
        ("test", config.test_fraction),
        ("validation", config.validation_fraction),
    )
    for split, fraction in drawn:
        if split not in splits:
            drawn_before = round(num_before * fraction)
            count = round((num_before + len(rest)) * fraction) - drawn_before
            if fraction and not num_before:
                count = min(max(count, 1), len(rest) - 1)
            splits[split], rest = rest[:count], rest[count:]
            num_before -= drawn_before
    return {**splits, "train": rest}


def permutation(num_images: int, seed: int, first_key: int = 0) -> NDArray[np.int64]:
    """0..n-1 in the order of a 64-bit word each, keyed by the seed and the image's key; the same everywhere."""
    keys = torch.arange(first_key, first_key + num_images)
    drawn = random_bits(seed, Purpose.PERMUTATION, keys, 2, step=_DATASET_STEP).numpy().astype(np.uint64)
    return np.argsort(drawn[:, 0] << np.uint64(32) | drawn[:, 1], kind="stable")
