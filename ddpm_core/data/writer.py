"""Raw images -> Dataset: shards of a plan, that can be written in any order and anywhere, and one commit.

An image that has to be left out leaves its shard one shorter and moves no other, so every shard can be written without
knowing of the rest.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
from ddpm_core.data.census import CENSUS_NAME, Census, Rejected, check_rejected, write_census
from ddpm_core.data.config import DataConfig
from ddpm_core.data.contact_sheet import write_contact_sheet
from ddpm_core.data.images import BadImage, encode_png, fitted, remarks_of
from ddpm_core.data.pictures import open_picture
from ddpm_core.data.plan import ShardPlan
from ddpm_core.data.sources import ImageFiles, RawImage, Source
from ddpm_core.data.sources.base import class_counts
from ddpm_core.data.sources.sidecars import ahead
from ddpm_core.data.tar_writer import TarWriter
from ddpm_core.data.twins import find_twins
from ddpm_core.errors import InputError

_READERS = 16


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """One shard as it was written."""

    entry: ShardEntry
    rows: pa.Table
    """Of manifest.ROW_SCHEMA; the shard column is set at the commit."""
    hashes: NDArray[np.uint64]
    """Of each row's pixels, to find those that are the same; [n, 2]."""
    rejected: tuple[Rejected, ...]
    remarks: dict[str, int]
    """What was done to how many images that their owner should know of."""


def write_shard(plan: ShardPlan, source: Source, config: DataConfig, uri: str) -> ShardResult:
    """Write one shard to the dataset's folder; a second time writes the same bytes.

    Args:
        plan: its name and images.
        source: the raw images.
        config: how they are to become pixels.
        uri: the dataset's folder.

    Returns:
        What was written. If every image had to be left out the shard is empty, and no file is written.
    """
    with storage.temporary_folder() as folder:
        path = folder / plan.name
        with open(path, "wb") as file, TarWriter(file) as tar:
            written = _write_images(tar, plan, source, config)
        if written.keys:
            storage.upload(path, storage.join(uri, plan.name))
    entry = ShardEntry(
        name=plan.name,
        split=plan.split,
        num_samples=len(written.keys),
        size_bytes=tar.size_bytes,
        sha256=tar.sha256,
    )
    hashes = np.frombuffer(b"".join(written.hashes), np.uint64).reshape(-1, 2)
    return ShardResult(
        entry=entry, rows=written.rows(), hashes=hashes, rejected=tuple(written.rejected), remarks=dict(written.remarks)
    )


@dataclass
class _Written:
    """What went into a tar, and what did not."""

    keys: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)

    def rows(self) -> pa.Table:
        """Of manifest.ROW_SCHEMA, as if the shard were the dataset's first."""
        columns = (self.keys, [0] * len(self.keys), self.offsets, self.sizes, self.labels, self.checksums)
        return pa.table(dict(zip(ROW_SCHEMA.names, columns, strict=True)), schema=ROW_SCHEMA)


def _write_images(tar: TarWriter, plan: ShardPlan, source: Source, config: DataConfig) -> _Written:
    """Write the shard's images, each with its label beside it in WebDataset's form."""
    written = _Written()
    positions = plan.indices.tolist()
    for position, raw in zip(positions, _read_ahead(source, positions), strict=True):
        try:
            if isinstance(raw, BadImage):
                raise raw
            picture = open_picture(raw.data, config.max_image_pixels)
        except BadImage as error:
            name, reason = source.name(position), str(error)
            written.rejected.append(Rejected(position=position, name=name, reason=reason, kind=error.kind))
            continue
        written.remarks.update(remarks_of(picture, config.channels))
        pixels = fitted(
            picture, config.image_size, config.channels, fit=config.fit, seed=config.seed, position=position
        )
        key, png = f"{position:09d}", encode_png(pixels)
        if raw.label is not None:
            tar.add(f"{key}.cls", str(raw.label).encode())
        written.offsets.append(tar.add(f"{key}.png", png))
        written.keys.append(key)
        written.sizes.append(len(png))
        written.labels.append(NO_LABEL if raw.label is None else raw.label)
        written.checksums.append(zlib.crc32(png))
        written.hashes.append(hashlib.blake2b(png, digest_size=16).digest())
    return written


def _read_ahead(source: Source, positions: Sequence[int]) -> Iterator[RawImage | BadImage]:
    """The images in order; several at once where each waits for a server."""

    def read(position: int) -> RawImage | BadImage:
        try:
            return source.read(position)
        except BadImage as error:
            return error

    remote = isinstance(source, ImageFiles) and source.files.reader.remote
    return ahead(read, positions, _READERS if remote else 1)


def commit_dataset(uri: str, results: Sequence[ShardResult], config: DataConfig, source: Source) -> DatasetIndex:
    """Make the written shards a dataset: the census and the contact sheet, then the index, last.

    Args:
        uri: the dataset's folder.
        results: of write_shard, in the order of the plan.
        config: what they were written with.
        source: what they were written from.

    Raises:
        InputError: if too many images were left out, or a split is empty; then there is no dataset, but a census.
    """
    census = make_census(results, config, source)
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
    write_index(index, rows)
    return index


def make_census(results: Sequence[ShardResult], config: DataConfig, source: Source) -> Census:
    """What became of every image of a source."""
    labels = np.concatenate([result.rows["label"].to_numpy() for result in results]).astype(np.int64)
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for result in results:
        counts[result.entry.split] += result.entry.num_samples
    twins = find_twins(
        [(result.entry.split, result.rows["key"].to_pylist(), result.hashes) for result in results], source.name
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
        remarks=dict(sum((Counter(result.remarks) for result in results), Counter())),
        num_duplicates=twins.num_duplicates,
        num_across=twins.num_across,
        across=twins.across,
    )


def planned_census(source: Source, plans: Sequence[ShardPlan], config: DataConfig) -> Census:
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
