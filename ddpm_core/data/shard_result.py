"""A shard as it was written, or taken over from an earlier dataset."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import ShardEntry
from ddpm_core.data.census import Rejected


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
