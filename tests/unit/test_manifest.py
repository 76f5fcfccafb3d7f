"""The index says what was put in, reads only what is asked for, and refuses what it does not know."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddpm_core.artifacts.manifest import (
    FORMAT_VERSION,
    ROW_SCHEMA,
    DatasetIndex,
    ShardEntry,
    make_index,
    read_index,
    read_rows,
    write_index,
)


def _rows(shard: int, count: int) -> pa.Table:
    columns = {
        "key": [f"{shard}-{place}" for place in range(count)],
        "shard": [shard] * count,
        "offset": [(1 << 40) + place for place in range(count)],
        "size": list(range(count)),
        "label": [-1] * count,
        "crc32": [(1 << 32) - 1] * count,
    }
    return pa.table(columns, schema=ROW_SCHEMA)


def _entry(number: int, count: int, split: str = "train") -> ShardEntry:
    return ShardEntry(name=f"shard-{number:06d}.tar", split=split, num_samples=count, size_bytes=9, sha256="0" * 64)


def _index(uri: str, **changes: object) -> DatasetIndex:
    shards = [_entry(0, 3), _entry(1, 2), _entry(2, 4, "validation"), _entry(3, 2, "test")]
    described = {
        "image_size": 8,
        "channels": 1,
        "class_names": ("cat", "dog"),
        "shards": shards,
        "num_rejected": 1,
        "own_splits": ("test",),
    }
    return make_index(uri, **{**described, **changes})


@pytest.fixture
def index(tmp_path: Path) -> DatasetIndex:
    made = _index(str(tmp_path))
    write_index(made, [_rows(number, shard.num_samples) for number, shard in enumerate(made.shards)])
    return made


def test_what_is_written_is_read(index: DatasetIndex) -> None:
    assert read_index(index.uri) == index
    assert read_rows(index, 1).equals(_rows(1, 2))
    assert read_rows(index.uri, 2).equals(_rows(2, 4))
    assert index.own_splits == ("test",)


def test_a_shard_is_one_row_group(index: DatasetIndex) -> None:
    metadata = pq.read_metadata(Path(index.uri) / "index.parquet")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [3, 2, 4, 2]


def test_counts_of_a_split(index: DatasetIndex) -> None:
    assert index.shard_sizes("train").tolist() == [3, 2]
    assert index.num_samples("train") == 5
    assert index.counts == {"train": 5, "validation": 4, "test": 2}
    assert index.final_split == "test"


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 9},
        {"channels": 3},
        {"class_names": ("cat",)},
        {"num_rejected": 0},
        {"own_splits": ()},
        {"shards": [_entry(0, 3)]},
    ],
)
def test_the_digest_covers_everything_but_the_place(change: dict[str, object]) -> None:
    assert _index("/a").digest == _index("/b").digest
    assert _index("/a", **change).digest != _index("/a").digest


def test_writing_twice_gives_the_same_bytes(index: DatasetIndex) -> None:
    file = Path(index.uri) / "index.parquet"
    before = file.read_bytes()
    write_index(index, [_rows(number, shard.num_samples) for number, shard in enumerate(index.shards)])
    assert file.read_bytes() == before


def test_without_an_index_there_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no dataset at {tmp_path}"):
        read_index(str(tmp_path))


def _rewrite(index: DatasetIndex, **changes: object) -> None:
    """Change the metadata of an index as it lies."""
    file = Path(index.uri) / "index.parquet"
    table = pq.read_table(file)
    described = {**json.loads(table.schema.metadata[b"ddpm"]), **changes}
    pq.write_table(table.replace_schema_metadata({b"ddpm": json.dumps(described).encode()}), file)


def test_a_dataset_of_the_first_format_is_read(index: DatasetIndex) -> None:
    """It had one held-out split for everything, and keeps its digest: runs that were trained on it go on."""
    (described,) = [json.loads(pq.read_schema(Path(index.uri) / "index.parquet").metadata[b"ddpm"])]
    for name in ("digest", "own_splits"):
        del described[name]
    shards = [
        {**shard, "split": "train" if number < 2 else "heldout"} for number, shard in enumerate(described["shards"])
    ]
    old = {**described, "shards": shards, "format_version": 1}
    digest = hashlib.sha256(json.dumps(old, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    table = pq.read_table(Path(index.uri) / "index.parquet")
    text = json.dumps({**old, "digest": digest}).encode()
    pq.write_table(table.replace_schema_metadata({b"ddpm": text}), Path(index.uri) / "index.parquet")
    found = read_index(index.uri)
    assert (found.digest, found.format_version, found.own_splits) == (digest, 1, ())
    assert found.counts == {"train": 5, "validation": 6, "test": 0}
    assert found.final_split == "validation"
    assert [shard.name for shard in found.shards] == [shard.name for shard in index.shards]


def test_a_newer_format_is_refused(index: DatasetIndex) -> None:
    _rewrite(index, format_version=FORMAT_VERSION + 1, invented_later=True)
    expected = f"format_version {FORMAT_VERSION + 1}; this code reads up to {FORMAT_VERSION}"
    with pytest.raises(ValueError, match=expected):
        read_index(index.uri)


def test_a_changed_index_is_refused(index: DatasetIndex) -> None:
    _rewrite(index, image_size=16)
    with pytest.raises(ValueError, match="damaged: it says digest"):
        read_index(index.uri)


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="is damaged"):
        read_index(str(tmp_path))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    with pytest.raises(ValueError, match="has no format_version"):
        read_index(str(tmp_path))


def test_a_shard_that_is_not_there(index: DatasetIndex) -> None:
    with pytest.raises(ValueError, match="shards 0 to 3; number 4"):
        read_rows(index, 4)


def test_rows_must_fit_the_shards(index: DatasetIndex) -> None:
    with pytest.raises(AssertionError):
        write_index(index, [_rows(0, 3)])
