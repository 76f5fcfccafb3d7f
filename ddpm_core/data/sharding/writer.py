"""Raw images -> Dataset: shards of a plan, that can be written in any order and anywhere, and one commit.

An image that has to be left out leaves its shard one shorter and moves no other, so every shard can be written without
knowing of the rest.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddpm_core import storage
from ddpm_core.artifacts.manifest import (
    NO_LABEL,
    ROW_SCHEMA,
    SPLITS,
    DatasetIndex,
    ShardEntry,
    make_index,
    write_index,
)
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import BadImage, encode_png, fitted, remarks_of
from ddpm_core.data.pictures import open_picture
from ddpm_core.data.sharding.census import CENSUS_NAME, Census, Grown, check_rejected, write_census
from ddpm_core.data.sharding.contact_sheet import write_contact_sheet
from ddpm_core.data.sharding.growth import Growth
from ddpm_core.data.sharding.origins import ORIGIN_SCHEMA, OriginsHead, head_of, listed_as, write_origins
from ddpm_core.data.sharding.plan import ShardPlan, shard_number
from ddpm_core.data.sharding.renewal import copy_shard, count_changed, raw_crc32, take_over
from ddpm_core.data.sharding.shard_result import ShardResult
from ddpm_core.data.sharding.tar_writer import TarWriter
from ddpm_core.data.sharding.twins import find_twins
from ddpm_core.data.sources import RawImage, Source
from ddpm_core.data.sources.base import class_counts
from ddpm_core.data.sources.image_files import read_each
from ddpm_core.errors import InputError

_BUFFER_BYTES = 1 << 20


def write_shard(plan: ShardPlan, source: Source, config: DataConfig, uri: str) -> ShardResult:
    """Write one shard to the dataset's folder, or take it over from the dataset that this one grows from.

    A second time writes the same bytes.

    Args:
        plan: its name and images.
        source: the raw images.
        config: how they are to become pixels.
        uri: the dataset's folder.

    Returns:
        What was written. If every image had to be left out the shard is empty, and no file is written.
    """
    standing = plan.standing
    if standing is not None and (taken := take_over(plan, standing, source, uri)) is not None:
        return taken
    with storage.temporary_folder() as folder:
        path = folder / plan.name
        with open(path, "wb", buffering=_BUFFER_BYTES) as file, TarWriter(file) as tar:
            written = _write_images(tar, plan, source, config)
        entry = ShardEntry(
            name=plan.name,
            split=plan.split,
            num_samples=len(written.keys),
            size_bytes=tar.size_bytes,
            sha256=tar.sha256,
        )
        if standing is not None and entry == standing.entry:
            copy_shard(standing, uri)  # what changed did not change a pixel: one file, not two
        elif written.keys:
            storage.upload(path, storage.join(uri, plan.name))
    origins = pa.Table.from_pylist(written.origins, schema=ORIGIN_SCHEMA)
    num_changed = 0 if standing is None else count_changed(standing, origins)
    return ShardResult(
        entry=entry, rows=written.rows(), origins=origins, positions=plan.indices, num_changed=num_changed
    )


@dataclass
class _Written:
    """What went into a tar, and what did not."""

    keys: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    origins: list[dict[str, Any]] = field(default_factory=list)
    """Rows of origins.ORIGIN_SCHEMA."""

    def rows(self) -> pa.Table:
        """Of manifest.ROW_SCHEMA, as if the shard were the dataset's first."""
        columns = (self.keys, [0] * len(self.keys), self.offsets, self.sizes, self.labels, self.checksums)
        return pa.table(dict(zip(ROW_SCHEMA.names, columns, strict=True)), schema=ROW_SCHEMA)


def _write_images(tar: TarWriter, plan: ShardPlan, source: Source, config: DataConfig) -> _Written:
    """Write the shard's images, each with its label beside it in WebDataset's form."""
    written = _Written()
    positions = plan.indices.tolist()
    for number, position, raw in zip(plan.keys.tolist(), positions, read_each(source, positions), strict=True):
        origin = _origin(plan, source, number, position, raw)
        written.origins.append(origin)
        try:
            if isinstance(raw, BadImage):
                raise raw
            picture = open_picture(raw.data, config.max_image_pixels)
        except BadImage as error:
            origin |= {"reason": str(error), "kind": error.kind}
            continue
        # By its key: where a random crop lies does not change when other images come or go.
        pixels = fitted(picture, config.image_size, config.channels, fit=config.fit, seed=config.seed, position=number)
        key, png = f"{number:09d}", encode_png(pixels)
        if raw.label is not None:
            tar.add(f"{key}.cls", str(raw.label).encode())
        written.offsets.append(tar.add(f"{key}.png", png))
        written.keys.append(key)
        written.sizes.append(len(png))
        written.labels.append(NO_LABEL if raw.label is None else raw.label)
        written.checksums.append(zlib.crc32(png))
        if config.fit == "random_crop":  # of which twins get different ones: they are told by their centres
            png = encode_png(fitted(picture, config.image_size, config.channels))
        origin["hash"] = hashlib.blake2b(png, digest_size=16).digest()
        origin["remarks"] = list(remarks_of(picture, config.channels))
    return written


def _origin(plan: ShardPlan, source: Source, key: int, position: int, raw: RawImage | BadImage) -> dict[str, Any]:
    """What is known of an image before it is decoded."""
    size, version = listed_as(source, position)
    known: dict[str, Any] = {"label": NO_LABEL, "crc32": None, "name": ""}
    if isinstance(raw, BadImage):
        known["name"] = source.name(position)
    else:
        known = {"name": raw.name, "crc32": raw_crc32(raw), "label": NO_LABEL if raw.label is None else raw.label}
        size = raw.num_bytes if size is None else size
    place = {"key": key, "shard": plan.name, "split": plan.split}
    return {**place, **known, "size": size, "version": version, "hash": None, "reason": "", "kind": "", "remarks": []}


def commit_dataset(
    uri: str, results: Sequence[ShardResult], config: DataConfig, source: Source, growth: Growth | None = None
) -> DatasetIndex:
    """Make the written shards a dataset: the census and the contact sheet, then the index, last.

    Args:
        uri: the dataset's folder.
        results: of write_shard, in the order of the plan.
        config: what they were written with.
        source: what they were written from.
        growth: what they grew from, if they did.

    Raises:
        InputError: if too many images were left out, or a split is empty; then there is no dataset, but a census.
    """
    census = make_census(results, config, source, growth)
    write_census(census, uri)
    check_census(census, config, storage.join(uri, CENSUS_NAME))
    kept = [result for result in results if result.entry.num_samples]
    for split in dict.fromkeys(result.entry.split for result in results):
        if not any(result.entry.split == split for result in kept):
            raise InputError(f"no image of the {split} split could be used; see {storage.join(uri, CENSUS_NAME)}")
    index = make_index(
        uri,
        image_size=config.image_size,
        channels=config.channels,
        class_names=source.class_names,
        shards=[result.entry for result in kept],
        num_rejected=census.num_rejected,
        own_splits=[split for split in SPLITS if split in source.own_splits],
    )
    rows = [_numbered(result.rows, number) for number, result in enumerate(kept)]
    write_contact_sheet(index, rows)
    write_origins(uri, _head(results, config, growth), [result.origins for result in results])
    write_index(index, rows)
    return index


def _head(results: Sequence[ShardResult], config: DataConfig, growth: Growth | None) -> OriginsHead:
    """What holds for all images; no key and no shard's name is given twice, not even after its image went."""
    earlier = None if growth is None else growth.earlier
    keys = [int(pc.max(result.origins["key"]).as_py()) for result in results]
    names = [shard_number(result.entry.name) for result in results]
    return head_of(
        config,
        next_key=max(max(keys) + 1, earlier.head.next_key if earlier else 0),
        next_shard=max(max(names) + 1, earlier.head.next_shard if earlier else 0),
        grows=earlier.index.digest if earlier else "",
    )


def make_census(
    results: Sequence[ShardResult], config: DataConfig, source: Source, growth: Growth | None = None
) -> Census:
    """What became of every image of a source."""
    labels = np.concatenate([result.rows["label"].to_numpy() for result in results]).astype(np.int64)
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for result in results:
        counts[result.entry.split] += result.entry.num_samples
    twins = find_twins(
        [(result.entry.split, result.rows["key"].to_pylist(), result.hashes) for result in results], _names(results)
    )
    return Census(
        source=config.source,
        listing=source.listing,
        num_images=source.num_images,
        class_names=source.class_names,
        class_counts=class_counts(labels, len(source.class_names)),
        splits=counts,
        rejected=tuple(
            sorted((item for result in results for item in result.rejected), key=lambda item: item.position)
        ),
        remarks=dict(sum((result.remarks for result in results), Counter())),
        num_duplicates=twins.num_duplicates,
        num_across=twins.num_across,
        across=twins.across,
        grown=None if growth is None else _grown(growth, results),
    )


def _names(results: Sequence[ShardResult]) -> Callable[[int], str]:
    """An image's name by its key."""
    keys = np.concatenate([result.origins["key"].to_numpy() for result in results])
    names = pa.chunked_array([chunk for result in results for chunk in result.origins["name"].chunks])
    return lambda key: str(names[int(np.flatnonzero(keys == key)[0])].as_py())


def _grown(growth: Growth, results: Sequence[ShardResult]) -> Grown:
    """What is found to have come and gone once all is read."""
    kept = set(growth.earlier.index.shards) & {result.entry for result in results}
    return replace(growth.grown, changed=sum(result.num_changed for result in results), kept=len(kept), planned=False)


def planned_census(
    source: Source, plans: Sequence[ShardPlan], config: DataConfig, growth: Growth | None = None
) -> Census:
    """What would become of a source, before an image is decoded."""
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for plan in plans:
        counts[plan.split] += len(plan.indices)
    return Census(
        source=config.source,
        listing=source.listing,
        num_images=source.num_images,
        class_names=source.class_names,
        class_counts=source.listing.class_counts,
        splits=counts,
        grown=None if growth is None else growth.grown,
    )


def check_census(census: Census, config: DataConfig, listed: str = "") -> None:
    """Refuse a dataset of which too much is missing, as `check_rejected`."""
    missing = [
        *((item.name, item.reason) for item in census.rejected),
        *((item.name, item.reason) for item in census.lost),
    ]
    check_rejected(
        census.num_rejected, census.num_images + len(census.lost), config.max_rejected_fraction, missing, listed
    )


def _numbered(rows: pa.Table, number: int) -> pa.Table:
    """The rows, their shard being this number in the index."""
    shard = pa.array(np.full(len(rows), number, dtype=np.int32))
    return rows.set_column(ROW_SCHEMA.get_field_index("shard"), "shard", shard)
