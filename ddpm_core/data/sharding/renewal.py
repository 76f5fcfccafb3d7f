"""A shard of an earlier dataset in the one that grows from it: taken over as it is where no image of it changed."""

import zlib

import numpy as np
import pyarrow as pa

from ddpm_core import storage
from ddpm_core.artifacts.manifest import NO_LABEL, ROW_SCHEMA, ShardEntry, read_rows
from ddpm_core.data.images import BadImage
from ddpm_core.data.sharding.origins import ORIGIN_SCHEMA, listed_as, read_origins
from ddpm_core.data.sharding.plan import ShardPlan, Standing
from ddpm_core.data.sharding.shard_result import ShardResult
from ddpm_core.data.sources import RawImage, Source
from ddpm_core.data.sources.image_files import read_each


def raw_crc32(raw: RawImage) -> int:
    """Of an image's bytes, or its pixels' where it came as an array."""
    return zlib.crc32(raw.data if isinstance(raw.data, bytes) else np.ascontiguousarray(raw.data).data)


def take_over(plan: ShardPlan, standing: Standing, source: Source, uri: str) -> ShardResult | None:
    """The shard as it was, brought to another dataset's folder without decoding an image of it.

    It is, if all of its images still stand and none of them changed. Where the listing does not tell that, they are read, and
    their bytes compared by their crc32: a folder that was downloaded again has other times, and a tar tells too little.

    Returns:
        What was taken over; None if it has to be written again.
    """
    if not standing.whole:
        return None
    origins = read_origins(standing.dataset, standing.group)
    if not standing.certain:
        if not _same_when_read(origins, plan, source):
            return None
        origins = _listed_anew(origins, plan, source)
    rows = ROW_SCHEMA.empty_table()
    if standing.entry is not None:
        copy_shard(standing, uri)
        rows = read_rows(standing.dataset, standing.number)
    entry = standing.entry or ShardEntry(name=plan.name, split=plan.split, num_samples=0, size_bytes=0, sha256="")
    return ShardResult(entry=entry, rows=rows, origins=origins, positions=plan.indices)


def copy_shard(standing: Standing, uri: str) -> None:
    """Bring a shard's file from the earlier dataset to another folder."""
    assert standing.entry is not None
    name = standing.entry.name
    storage.copy(storage.join(standing.dataset, name), storage.join(uri, name))


def count_changed(standing: Standing, now: pa.Table) -> int:
    """Of the images that still stand, how many have other pixels or another class than in the earlier dataset."""
    before = {key: rest for key, *rest in _seen(read_origins(standing.dataset, standing.group))}
    return sum(before[key] != rest for key, *rest in _seen(now))


def _seen(origins: pa.Table) -> "zip[tuple[int, bytes | None, int]]":
    return zip(*(origins[name].to_pylist() for name in ("key", "hash", "label")), strict=True)


def _same_when_read(origins: pa.Table, plan: ShardPlan, source: Source) -> bool:
    """Whether each image has the bytes and the class that it had; one that could not be read then must not be readable now."""
    then = zip(origins["crc32"].to_pylist(), origins["label"].to_pylist(), strict=True)
    for raw, (crc32, label) in zip(read_each(source, plan.indices.tolist()), then, strict=True):
        if isinstance(raw, BadImage):
            if crc32 is not None:
                return False
        elif (raw_crc32(raw), NO_LABEL if raw.label is None else raw.label) != (crc32, label):
            return False
    return True


def _listed_anew(origins: pa.Table, plan: ShardPlan, source: Source) -> pa.Table:
    """The origins with the sizes and versions of this listing, by which the next dataset need not read the images again."""
    listed = [listed_as(source, position) for position in plan.indices.tolist()]
    for name, values in (("size", [size for size, _ in listed]), ("version", [version for _, version in listed])):
        column = ORIGIN_SCHEMA.get_field_index(name)
        origins = origins.set_column(
            column, ORIGIN_SCHEMA.field(column), pa.array(values, ORIGIN_SCHEMA.field(column).type)
        )
    return origins
