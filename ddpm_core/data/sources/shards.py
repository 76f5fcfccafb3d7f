"""Folders of tars: WebDataset's shards, and this project's own datasets, whose index says more."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from ddpm_core import storage
from ddpm_core.artifacts.manifest import INDEX_NAME, read_index
from ddpm_core.data.sources.base import LeftOut
from ddpm_core.data.sources.files import FileSet
from ddpm_core.data.sources.image_files import ImageFiles, open_images
from ddpm_core.data.sources.labels import LabelRule, ordered
from ddpm_core.data.sources.splits import set_aside
from ddpm_core.data.sources.tar import TarReader, list_tar
from ddpm_core.errors import InputError

_SHARD = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz)$", re.IGNORECASE)


def is_shard(name: str) -> bool:
    """Whether a file's name is that of a tar, packed or not."""
    return bool(_SHARD.search(name))


def list_shards(base: str, names: Sequence[str]) -> FileSet:
    """The files in some tars of a folder, tar by tar in the order of their names.

    Raises:
        InputError: if one of them is damaged.
    """
    listed = [list_tar(storage.below(base, name)) for name in names]
    tables = [
        each.table.set_column(1, "part", pa.array(np.full(len(each), number, np.int64)))
        for number, each in enumerate(listed)
    ]
    versions = [part for each in listed if isinstance(each.reader, TarReader) for part in each.reader.parts]
    return FileSet(
        where=base,
        table=pa.concat_tables(tables).combine_chunks(),
        reader=TarReader(parts=tuple(versions)),
        left_out=tuple(
            LeftOut(name=f"{name}/{item.name}", reason=item.reason, lost=item.lost)
            for name, each in zip(names, listed, strict=True)
            for item in each.left_out
        ),
        parts=tuple(names),
    )


def is_dataset(base: str, names: Sequence[str]) -> bool:
    """Whether a folder is a dataset of this project: shards and their index."""
    return INDEX_NAME in names and any("/" not in name and is_shard(name) for name in names)


def open_dataset(base: str, names: Sequence[str], rule: LabelRule) -> ImageFiles:
    """The images of a dataset that this project made, with its classes and splits.

    Raises:
        InputError: if a shard of its index is missing or damaged.
    """
    index = read_index(base)
    missing = [shard.name for shard in index.shards if shard.name not in names]
    if missing:
        raise InputError(f"{base} lacks {missing[0]} of its {len(index.shards)} shards; fetch it again")
    images = open_images(list_shards(base, [shard.name for shard in index.shards]), LabelRule(file=rule.file))
    labels = replace(images.labels, class_names=index.class_names) if index.class_names else images.labels
    split_of = {shard.name: shard.split for shard in index.shards}
    parts = images.files.part_names
    splits = set_aside(split_of[parts[place]] for place in images.places.tolist())
    listing = replace(images.listing, splits=f"those of {INDEX_NAME}")
    return replace(images, labels=ordered(labels, rule), own_splits=splits, listing=listing)
