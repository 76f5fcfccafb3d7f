"""The Dataset: a folder of WebDataset tars and index.parquet, which says what is in them and is written last.

index.parquet holds a row a sample, one row group a shard, and in its schema metadata (under `ddpm`, as JSON) all that
describes the dataset as a whole. No index, no dataset.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.errors import InputError, MissingError

FORMAT_VERSION = 1
INDEX_NAME = "index.parquet"
NO_LABEL = -1
ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("label", pa.int32()),
        ("crc32", pa.uint32()),
    ]
)
"""A sample: its key in the tar; its shard's number in the index; offset and size in bytes of the PNG inside the tar;
class label, -1 for none; crc32 of the PNG's bytes."""

Split = Literal["train", "heldout"]


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar of the dataset."""

    name: str
    """File name below the dataset's URI."""
    split: Split
    num_samples: int
    size_bytes: int
    sha256: str
    """Of the whole file, hex."""


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """What a dataset is, without its rows."""

    uri: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    """Names of the labels 0, 1, ...; empty if the images have none."""
    shards: tuple[ShardEntry, ...]
    """A shard's number is its place here: the training shards first, then the held-out ones."""
    num_rejected: int
    """Images that could not be used; their names and reasons are in quarantine.json."""
    digest: str
    """Names the dataset: sha256 over everything here but uri and digest."""

    def shard_sizes(self, split: Split) -> NDArray[np.int64]:
        """Samples in each shard of the split, in the order of the index; [number of shards]."""
        return np.array([shard.num_samples for shard in self.shards if shard.split == split], dtype=np.int64)

    def num_samples(self, split: Split) -> int:
        """Samples in the split."""
        return int(self.shard_sizes(split).sum())


def make_index(
    uri: str,
    *,
    image_size: int,
    channels: int,
    class_names: Sequence[str],
    shards: Sequence[ShardEntry],
    num_rejected: int,
) -> DatasetIndex:
    """A DatasetIndex with its digest."""
    described: dict[str, Any] = {
        "image_size": image_size,
        "channels": channels,
        "class_names": tuple(class_names),
        "shards": tuple(shards),
        "num_rejected": num_rejected,
    }
    plain = {**described, "shards": [asdict(shard) for shard in shards], "format_version": FORMAT_VERSION}
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return DatasetIndex(uri=uri, digest=hashlib.sha256(canonical.encode()).hexdigest(), **described)


def index_uri(uri: str) -> str:
    """Where the index of the dataset at `uri` lies."""
    return storage.join(uri, INDEX_NAME)


def write_index(index: DatasetIndex, rows_per_shard: Sequence[pa.Table]) -> None:
    """Commit a dataset: from here on it exists.

    Args:
        index: what it is; its shards are already at index.uri.
        rows_per_shard: a table of ROW_SCHEMA for each of index.shards, in their order.
    """
    assert [len(rows) for rows in rows_per_shard] == [shard.num_samples for shard in index.shards]
    described = {name: value for name, value in asdict(index).items() if name != "uri"}
    text = json.dumps({"format_version": FORMAT_VERSION, **described}, sort_keys=True)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, ROW_SCHEMA.with_metadata({b"ddpm": text.encode()}), compression="zstd") as writer:
        for rows in rows_per_shard:
            writer.write_table(rows.cast(ROW_SCHEMA), row_group_size=max(1, len(rows)))
    storage.write_bytes(index_uri(index.uri), buffer.getvalue())


def read_index(uri: str) -> DatasetIndex:
    """What the dataset at `uri` is; no row is read.

    Raises:
        MissingError: if there is no (committed) dataset.
        InputError: if the index is damaged, or newer than this code.
    """
    with _open(uri) as file:
        described = json.loads((file.schema_arrow.metadata or {}).get(b"ddpm", b"{}"))
    version = described.pop("format_version", None)
    if not isinstance(version, int):
        raise InputError(f"{index_uri(uri)} is no dataset's index: its metadata has no format_version; shard it again")
    if version > FORMAT_VERSION:
        raise InputError(
            f"the dataset at {uri} has format_version {version}; this code reads up to {FORMAT_VERSION}: update it"
        )
    digest = described.pop("digest")
    shards = [ShardEntry(**shard) for shard in described.pop("shards")]
    index = make_index(uri, shards=shards, **described)
    if index.digest != digest:
        raise InputError(f"{index_uri(uri)} is damaged: it says digest {digest}, its content has {index.digest}")
    return index


def read_rows(dataset: DatasetIndex | str, shard_number: int) -> pa.Table:
    """The rows of one shard, as a table of ROW_SCHEMA; only its row group is fetched."""
    uri = dataset if isinstance(dataset, str) else dataset.uri
    with _open(uri) as file:
        if not 0 <= shard_number < file.num_row_groups:
            raise InputError(
                f"the dataset at {uri} has shards 0 to {file.num_row_groups - 1}; number {shard_number} was asked for"
            )
        return file.read_row_group(shard_number).replace_schema_metadata(None)


@contextmanager
def _open(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        with storage.open_read(index_uri(uri)) as stream, pq.ParquetFile(stream) as file:
            yield file
    except FileNotFoundError:
        raise MissingError(f"no dataset at {uri}: it has no {INDEX_NAME}; make it with pipelines/shard.py") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{index_uri(uri)} is damaged ({error}); remove it and shard again") from None
