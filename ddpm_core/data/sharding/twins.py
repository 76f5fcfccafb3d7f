"""Images with the same pixels: how many, and which lie in two splits, where they would be trained on and tested with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import SPLITS, Split
from ddpm_core.data.sharding.census import Twins

_NAMED = 100


@dataclass(frozen=True, kw_only=True)
class Found:
    """Images that came before."""

    num_duplicates: int
    """How many have the pixels of an image before them."""
    num_across: int
    """How many of these have the pixels of an image in another split."""
    across: tuple[Twins, ...]
    """The first of those."""


def find_twins(
    shards: Sequence[tuple[Split, Sequence[str], NDArray[np.uint64]]], name_of: Callable[[int], str]
) -> Found:
    """Compare all images of a dataset.

    Args:
        shards: split, keys and hashes [n, 2] of each.
        name_of: an image's name by its key.
    """
    hashes = np.concatenate([hashes for _, _, hashes in shards])
    splits = np.concatenate([np.full(len(keys), SPLITS.index(split), np.int8) for split, keys, _ in shards])
    keys = np.concatenate([np.array(keys, dtype=np.int64) for _, keys, _ in shards])
    order = np.lexsort((keys, splits, hashes[:, 1], hashes[:, 0]))
    same = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    first = (
        np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
        if len(order)
        else order
    )
    apart = same & (splits[order[1:]] != splits[order[first[1:]]])
    later = np.flatnonzero(apart) + 1
    across = tuple(
        Twins(
            names=(name_of(int(keys[order[first[place]]])), name_of(int(keys[order[place]]))),
            splits=(SPLITS[splits[order[first[place]]]], SPLITS[splits[order[place]]]),
        )
        for place in later[:_NAMED].tolist()
    )
    return Found(num_duplicates=int(same.sum()), num_across=len(later), across=across)
