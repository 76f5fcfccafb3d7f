"""What each image of a dataset was made from: sources.parquet, beside the index, by which another dataset can grow from it.

A row an image of the source, those that could not be used, too; a row group a shard of the plan. It is no part of the digest:
the same images in a folder and in a tar are one dataset.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ddpm_core import storage
from ddpm_core.artifacts.manifest import INDEX_NAME
from ddpm_core.artifacts.parquet import opened_parquet
from ddpm_core.data.config import DataConfig
from ddpm_core.data.fit import Fit
from ddpm_core.data.sources import ImageFiles, Source
from ddpm_core.errors import InputError

ORIGINS_NAME = "sources.parquet"
_FORMAT_VERSION = 1
ORIGIN_SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("shard", pa.string()),
        ("split", pa.string()),
        ("name", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("crc32", pa.uint32()),
        ("label", pa.int32()),
        ("hash", pa.binary(16)),
        ("reason", pa.string()),
        ("kind", pa.string()),
        ("remarks", pa.list_(pa.string())),
    ]
)
"""An image: its key as a number; name and split of its shard; its name in the source; its size there in bytes, and what changes
with its content where the source tells (as FileSet.version); crc32 of what was read, null if nothing could be; its class, -1 for
none; the hash of its pixels (of its centre's where a random crop was cut out), null if it could not be used; then why, and the
kind by which that is counted; what was done to it."""


@dataclass(frozen=True, kw_only=True)
class OriginsHead:
    """What holds for all images of a dataset, and is not in its index."""

    next_key: int
    """One more than any image ever had, here or in what it grew from."""
    next_shard: int
    """One more than the number in any shard's name, as the key."""
    fit: Fit
    seed: int
    max_image_pixels: int
    grows: str = ""
    """Digest of the dataset that it grew from."""
    format_version: int = _FORMAT_VERSION


def head_of(config: DataConfig, *, next_key: int, next_shard: int, grows: str) -> OriginsHead:
    """What a dataset of this config says at the head of its origins."""
    return OriginsHead(
        next_key=next_key,
        next_shard=next_shard,
        fit=config.fit,
        seed=config.seed,
        max_image_pixels=config.max_image_pixels,
        grows=grows,
    )


def listed_as(source: Source, position: int) -> tuple[int | None, str]:
    """Size and version of an image as its source lists them; (None, "") where that is no file."""
    if not isinstance(source, ImageFiles):
        return None, ""
    place = int(source.places[position])
    return source.files.size(place), source.files.version(place)


def write_origins(uri: str, head: OriginsHead, tables: Sequence[pa.Table]) -> None:
    """Write the origins of a dataset, a table of ORIGIN_SCHEMA a shard."""
    schema = ORIGIN_SCHEMA.with_metadata({b"ddpm": json.dumps(asdict(head), sort_keys=True).encode()})
    with (
        storage.writing(storage.join(uri, ORIGINS_NAME)) as path,
        pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False) as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(ORIGIN_SCHEMA), row_group_size=max(1, len(table)))


def read_head(uri: str) -> OriginsHead:
    """What holds for all images of the dataset at `uri`.

    Raises:
        InputError: if it does not say what it was made from, as datasets of code before, or is newer than this code.
    """
    with _open(uri) as file:
        plain: dict[str, Any] = json.loads(file.schema_arrow.metadata[b"ddpm"])
    if plain["format_version"] > _FORMAT_VERSION:
        raise InputError(
            f"{storage.join(uri, ORIGINS_NAME)} has format_version {plain['format_version']}; this code reads up to "
            f"{_FORMAT_VERSION}: update it"
        )
    return OriginsHead(**plain)


def read_origins(uri: str, group: int) -> pa.Table:
    """The origins of one shard, by its number among them; only its row group is fetched."""
    with _open(uri) as file:
        return file.read_row_group(group, use_threads=False).replace_schema_metadata(None)


def each_origins(uri: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of the origins of every shard, in their order."""
    with _open(uri) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=list(columns), use_threads=False)


@contextmanager
def _open(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        with opened_parquet(storage.join(uri, ORIGINS_NAME)) as file:
            yield file
    except FileNotFoundError:
        raise InputError(
            f"the dataset at {uri} has no {ORIGINS_NAME}, which says what its images were made from, so none can grow from it: "
            f"remove its {INDEX_NAME} and shard the same images again, which writes it, or shard without --data.grows"
        ) from None
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{storage.join(uri, ORIGINS_NAME)} is damaged ({error}); remove it and {INDEX_NAME} and shard the same images again"
        ) from None
