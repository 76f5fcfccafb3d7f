"""Raw images -> Dataset: shards of a plan, that can be written in any order and anywhere, and one commit.

An image that has to be left out leaves its shard one shorter and moves no other, so every shard can be written without
knowing of the rest.
"""

import hashlib
import json
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ddpm_core import storage
from ddpm_core.artifacts.manifest import (
    FORMAT_VERSION,
    NO_LABEL,
    ROW_SCHEMA,
    SPLITS,
    DatasetIndex,
    ShardEntry,
    Split,
    make_index,
    write_index,
)
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import BadImage, encode_png, to_pixels
from ddpm_core.data.plan import ShardPlan
from ddpm_core.data.sources import Source
from ddpm_core.errors import InputError

QUARANTINE_NAME = "quarantine.json"
_NAMED_IN_ERROR = 3


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """An image that was left out."""

    position: int
    """Its place in the source."""
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """One shard as it was written."""

    entry: ShardEntry
    rows: pa.Table
    """Of manifest.ROW_SCHEMA; the shard column is set at the commit."""
    rejected: tuple[Rejected, ...]


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
    with tempfile.TemporaryDirectory(prefix="ddpm-shard-") as folder:
        path = Path(folder) / plan.name
        labels, rejected = _write_tar(path, plan, source, config)
        rows = _read_back(path, labels)
        if labels:
            storage.upload(path, storage.join(uri, plan.name))
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        entry = ShardEntry(
            name=plan.name,
            split=plan.split,
            num_samples=len(labels),
            size_bytes=path.stat().st_size,
            sha256=sha256,
        )
    return ShardResult(entry=entry, rows=rows, rejected=rejected)


def _write_tar(
    path: Path, plan: ShardPlan, source: Source, config: DataConfig
) -> tuple[dict[str, int], tuple[Rejected, ...]]:
    """Write the shard's images; the label of each by its key, and what was left out."""
    labels: dict[str, int] = {}
    rejected = []
    import webdataset  # here, so that the library imports where it is missing

    with open(path, "wb") as file, webdataset.TarWriter(file, mtime=0, user="", group="", encoder=False) as writer:
        for position in plan.indices.tolist():
            try:
                raw = source.read(position)
                pixels = to_pixels(
                    raw.data,
                    config.image_size,
                    config.channels,
                    config.max_image_pixels,
                    fit=config.fit,
                    seed=config.seed,
                    position=position,
                )
            except BadImage as error:
                rejected.append(Rejected(position=position, name=source.name(position), reason=str(error)))
                continue
            key = f"{position:09d}"
            labels[key] = NO_LABEL if raw.label is None else raw.label
            label = {} if raw.label is None else {"cls": str(raw.label).encode()}
            writer.write({"__key__": key, "png": encode_png(pixels), **label})
    return labels, tuple(rejected)


def _read_back(path: Path, labels: dict[str, int]) -> pa.Table:
    """Where each PNG lies in the tar, as tarfile finds it, and its checksum."""
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        found = {name: member for member in tar if (name := member.name).endswith(".png")}
    members = [found[f"{key}.png"] for key in labels]
    ends = [(member.offset_data, member.offset_data + member.size) for member in members]
    columns = {
        "key": list(labels),
        "shard": [0] * len(labels),
        "offset": [start for start, _ in ends],
        "size": [end - start for start, end in ends],
        "label": list(labels.values()),
        "crc32": [zlib.crc32(data[start:end]) for start, end in ends],
    }
    return pa.table(columns, schema=ROW_SCHEMA)


def commit_dataset(
    uri: str,
    results: Sequence[ShardResult],
    config: DataConfig,
    class_names: Sequence[str],
    own_splits: Collection[Split] = (),
) -> DatasetIndex:
    """Make the written shards a dataset: the list of what was left out, then the index, last.

    Args:
        uri: the dataset's folder.
        results: of write_shard, in the order of the plan.
        config: what they were written with.
        class_names: of the source.
        own_splits: the splits that the source came with.

    Raises:
        InputError: if too many images were left out, or a split is empty; then there is no dataset.
    """
    rejected = sorted((item for result in results for item in result.rejected), key=lambda item: item.position)
    num_images = sum(result.entry.num_samples for result in results) + len(rejected)
    if rejected:
        _write_quarantine(uri, rejected, num_images)
    check_rejected(len(rejected), num_images, config, rejected, storage.join(uri, QUARANTINE_NAME))
    kept = [result for result in results if result.entry.num_samples]
    for split in dict.fromkeys(result.entry.split for result in results):
        if not any(result.entry.split == split for result in kept):
            raise InputError(f"no image of the {split} split could be used; see {storage.join(uri, QUARANTINE_NAME)}")
    index = make_index(
        uri,
        image_size=config.image_size,
        channels=config.channels,
        class_names=class_names,
        shards=[result.entry for result in kept],
        num_rejected=len(rejected),
        own_splits=[split for split in SPLITS if split in own_splits],
    )
    write_index(index, [_numbered(result.rows, number) for number, result in enumerate(kept)])
    return index


def check_rejected(
    num_rejected: int, num_images: int, config: DataConfig, first: Sequence[Rejected] = (), listed: str = ""
) -> None:
    """Refuse a dataset of which too much is missing.

    Raises:
        InputError: if more than config.max_rejected_fraction was left out; it names the first few and where all are.
    """
    if num_rejected <= config.max_rejected_fraction * num_images:
        return
    named = "; ".join(f"{item.name}: {item.reason}" for item in first[:_NAMED_IN_ERROR])
    details = f" ({named})" if named else ""
    where = f"; all are listed in {listed}" if listed else ""
    raise InputError(
        f"{num_rejected} of {num_images} images ({num_rejected / num_images:.2%}) cannot be used{details}; at most "
        f"{config.max_rejected_fraction:.2%} may be left out: mend them or raise --data.max-rejected-fraction{where}"
    )


def _write_quarantine(uri: str, rejected: Sequence[Rejected], num_images: int) -> None:
    content = {
        "format_version": FORMAT_VERSION,
        "num_images": num_images,
        "num_rejected": len(rejected),
        "rejected": [{"position": item.position, "name": item.name, "reason": item.reason} for item in rejected],
    }
    storage.write_bytes(storage.join(uri, QUARANTINE_NAME), json.dumps(content, indent=1).encode())


def _numbered(rows: pa.Table, number: int) -> pa.Table:
    """The rows, their shard being this number in the index."""
    shard = pa.array(np.full(len(rows), number, dtype=np.int32))
    return rows.set_column(ROW_SCHEMA.get_field_index("shard"), "shard", shard)
