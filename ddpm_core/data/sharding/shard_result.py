"""A shard as it was written, or taken over from an earlier dataset; kept beside it until the dataset is whole."""

import json
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.artifacts.manifest import ShardEntry
from ddpm_core.data.sharding.census import Rejected
from ddpm_core.data.sharding.plan import ShardPlan

RESULT_SUFFIX = ".done"


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """One shard as it was written, or taken over."""

    entry: ShardEntry
    rows: pa.Table
    """Of manifest.ROW_SCHEMA; the shard column is set at the commit."""
    origins: pa.Table
    """Of origins.ORIGIN_SCHEMA: an image of the plan each."""
    positions: NDArray[np.int64]
    """Places of those in the source."""
    num_changed: int = 0
    """Of those that stood in an earlier dataset, how many have other pixels or another class now."""

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Of each row's pixels, to find those that are the same; [n, 2]."""
        return np.frombuffer(b"".join(self.origins["hash"].drop_null().to_pylist()), np.uint64).reshape(-1, 2)

    @property
    def rejected(self) -> list[Rejected]:
        """The images that could not be used."""
        columns = (self.origins[name].to_pylist() for name in ("name", "reason", "kind"))
        return [
            Rejected(position=position, name=name, reason=reason, kind=kind)
            for position, name, reason, kind in zip(self.positions.tolist(), *columns, strict=True)
            if reason
        ]

    @property
    def remarks(self) -> Counter[str]:
        """What was done to how many images that their owner should know of."""
        return Counter(remark for remarks in self.origins["remarks"].to_pylist() for remark in remarks)


def keep_result(result: ShardResult, uri: str) -> None:
    """Write down beside a shard how it was written, so that a command that is killed goes on after it."""
    sink = pa.BufferOutputStream()
    said = {b"ddpm": json.dumps({"entry": asdict(result.entry), "num_changed": result.num_changed}).encode()}
    for table in (result.origins.replace_schema_metadata(said), result.rows):
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    storage.write_bytes(_place(result.entry.name, uri), sink.getvalue().to_pybytes())


def read_result(plan: ShardPlan, uri: str) -> ShardResult | None:
    """How a shard of this plan was written by a command that was killed later; None if it was not, or is not there."""
    try:
        data = pa.BufferReader(storage.read_bytes(_place(plan.name, uri)))
        origins = pa.ipc.open_stream(data).read_all()
        rows = pa.ipc.open_stream(data).read_all()
        said = json.loads(origins.schema.metadata[b"ddpm"])
        entry = ShardEntry(**said["entry"])
        if entry.num_samples and storage.size_bytes(storage.join(uri, entry.name)) != entry.size_bytes:
            return None
    except FileNotFoundError:
        return None
    return ShardResult(
        entry=entry,
        rows=rows,
        origins=origins.replace_schema_metadata(None),
        positions=plan.indices,
        num_changed=said["num_changed"],
    )


def _place(name: str, uri: str) -> str:
    return storage.join(uri, f"{name}{RESULT_SUFFIX}")
