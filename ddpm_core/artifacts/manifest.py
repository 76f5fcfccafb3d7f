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
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.artifacts.parquet import opened_parquet
from ddpm_core.errors import InputError, MissingError
from ddpm_core.types import ImageSize, canonical_size

FORMAT_VERSION = 2
"""1 knew a single held-out split, drawn from all images; it is read as the validation split of a dataset without a test."""
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

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
"""What is trained on; what checkpoints are chosen by; what only the final evaluation sees."""


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
    image_size: ImageSize
    channels: int
    """1 grey, 2 grey with alpha, 3 colour, 4 colour with alpha."""
    class_names: tuple[str, ...]
    """Names of the labels 0, 1, ...; empty if the images have none."""
    shards: tuple[ShardEntry, ...]
    """A shard's number is its place here: the training shards first, then those of validation and of the test."""
    num_rejected: int
    """Images that could not be used; their names and reasons are in census.json."""
    own_splits: tuple[Split, ...]
    """Splits other than training's that the raw images came with, as an official test set; the rest was drawn."""
    format_version: int
    digest: str
    """Names the dataset: sha256 over everything here but uri and digest."""

    def shard_sizes(self, split: Split) -> NDArray[np.int64]:
        """Samples in each shard of the split, in the order of the index; [number of shards]."""
        return np.array([shard.num_samples for shard in self.shards if shard.split == split], dtype=np.int64)

    def num_samples(self, split: Split) -> int:
        """Samples in the split."""
        return int(self.shard_sizes(split).sum())

    @property
    def counts(self) -> dict[str, int]:
        """Samples in each split."""
        return {split: self.num_samples(split) for split in SPLITS}

    @property
    def final_split(self) -> Split:
        """What a final evaluation holds a model against besides training: the test, or validation where there is none."""
        return "test" if self.num_samples("test") else "validation"


def make_index(
    uri: str,
    *,
    image_size: ImageSize,
    channels: int,
    class_names: Sequence[str],
    shards: Sequence[ShardEntry],
    num_rejected: int,
    own_splits: Sequence[Split] = (),
) -> DatasetIndex:
    """A DatasetIndex with its digest."""
    described: dict[str, Any] = {
        "image_size": canonical_size(image_size),
        "channels": channels,
        "class_names": tuple(class_names),
        "shards": tuple(shards),
        "num_rejected": num_rejected,
        "own_splits": tuple(own_splits),
        "format_version": FORMAT_VERSION,
    }
    digest = _digest({**described, "shards": [asdict(shard) for shard in shards]})
    return DatasetIndex(uri=uri, digest=digest, **described)


def _digest(described: dict[str, Any]) -> str:
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


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
    text = json.dumps(described, sort_keys=True)
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
    version = described.get("format_version")
    if not isinstance(version, int):
        raise InputError(f"{index_uri(uri)} is no dataset's index: its metadata has no format_version; shard it again")
    if version > FORMAT_VERSION:
        raise InputError(
            f"the dataset at {uri} has format_version {version}; this code reads up to {FORMAT_VERSION}: update it"
        )
    digest = described.pop("digest")
    found = _digest(described)
    if found != digest:
        raise InputError(f"{index_uri(uri)} is damaged: it says digest {digest}, its content has {found}")
    if version == 1:
        described["own_splits"] = ()
        for shard in described["shards"]:
            shard["split"] = "train" if shard["split"] == "train" else "validation"
    shards = tuple(ShardEntry(**shard) for shard in described.pop("shards"))
    described["image_size"] = canonical_size(described["image_size"])
    names, own_splits = (tuple(described.pop(field)) for field in ("class_names", "own_splits"))
    return DatasetIndex(uri=uri, digest=digest, shards=shards, class_names=names, own_splits=own_splits, **described)


def read_rows(dataset: DatasetIndex | str, shard_number: int) -> pa.Table:
    """The rows of one shard, as a table of ROW_SCHEMA; only its row group is fetched."""
    uri = dataset if isinstance(dataset, str) else dataset.uri
    with _open(uri) as file:
        if not 0 <= shard_number < file.num_row_groups:
            raise InputError(
                f"the dataset at {uri} has shards 0 to {file.num_row_groups - 1}; number {shard_number} was asked for"
            )
        return file.read_row_group(shard_number, use_threads=False).replace_schema_metadata(None)


@contextmanager
def _open(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        with opened_parquet(index_uri(uri)) as file:
            yield file
    except FileNotFoundError:
        raise MissingError(f"no dataset at {uri}: it has no {INDEX_NAME}; make it with pipelines/shard.py") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{index_uri(uri)} is damaged ({error}); remove it and shard again") from None
