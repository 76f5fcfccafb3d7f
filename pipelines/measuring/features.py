"""Features of images, by parallel tasks: sums that are merged as they come, and the first few features themselves."""

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex, Split
from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.frechet import FeatureStats
from ddpm_core.evaluation.inception_score import ScoreSums
from ddpm_core.evaluation.reference import Reference, ReferenceFacts, open_reference, read_reference, reference_bytes
from ddpm_core.types import Tensor, UInt8
from pipelines.cluster.placement import Ask, for_a_cpu, for_sampling
from pipelines.cluster.tasks import merged
from pipelines.measuring.image_sets import ImageSet, SplitImages
from pipelines.progress import progress
from pipelines.recipes.config import SampleStage

RANDOM_CONV = Features()
"""What validation and sweeps rank by: cheap at every checkpoint, and nothing to fetch."""
_ONE_CPU = SampleStage()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is measured of a set's first images."""

    count: int
    cuts: tuple[int, ...] = ()
    """Places, ascending, in 1 to count - 1: sums are kept apart on either side of each."""
    num_kept: int = 0
    """Of so many images, the first ones, the features are kept."""

    @property
    def edges(self) -> tuple[int, ...]:
        """Where a segment begins, and the end."""
        return (0, *self.cuts, self.count)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """Of some images: the moments of their features, and of the classes that the network sees, if it sees any."""

    stats: FeatureStats
    scores: ScoreSums | None

    def merge(self, other: "Sums") -> "Sums":
        """Those of both sets together."""
        scores = self.scores.merge(other.scores) if self.scores and other.scores else None
        return Sums(stats=self.stats.merge(other.stats), scores=scores)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What was found of some images."""

    segments: dict[int, Sums]
    """By the segment's number, those between two edges of what is wanted."""
    kept: tuple[NDArray[np.float32], ...] = ()
    """Features [n, d] of the first images, in their order."""

    def merge(self, later: "Measured") -> "Measured":
        """With what was found of images that come later."""
        segments = {**self.segments, **later.segments}
        for number in self.segments.keys() & later.segments.keys():
            segments[number] = self.segments[number].merge(later.segments[number])
        return Measured(segments=segments, kept=self.kept + later.kept)

    def between(self, first: int, end: int) -> Sums:
        """The sums of these segments together."""
        return reduce(Sums.merge, (self.segments[number] for number in range(first, end)))

    @property
    def total(self) -> Sums:
        """Of all images."""
        return self.between(0, len(self.segments))

    @property
    def features(self) -> NDArray[np.float32]:
        """[n, d]: those that were kept."""
        return np.concatenate(self.kept)


def measure_features(
    what: str, images: ImageSet, wanted: Wanted, features: Features, batch_size: int, where: SampleStage
) -> Measured:
    """The sums of a set's first images, and their features as far as wanted; bit for bit the same, whoever did which part.

    Memory holds sums of a few parts at a time, whatever the number of images.

    Args:
        what: is measured, for the progress bar.
        where: heavy networks are computed where samples are, on CPUs or GPUs.
    """
    parts = [range(part.start, min(part.stop, wanted.count)) for part in images.parts if part.start < wanted.count]
    ask = _ask(features, where)
    with progress(what, len(parts), "part") as shown:
        return merged(
            _measure_part, parts, ask, Measured.merge, images, wanted, features, batch_size, where, on_done=shown.set
        )


def real_stats(
    index: DatasetIndex, split: Split, config: EvaluateConfig, store: str, features: Features = RANDOM_CONV
) -> FeatureStats:
    """The moments of all of a split's images; measured once and kept."""
    return real_features(index, split, index.num_samples(split), 0, config, store, features, _ONE_CPU)[0]


def real_features(
    index: DatasetIndex,
    split: Split,
    count: int,
    num_kept: int,
    config: EvaluateConfig,
    store: str,
    features: Features,
    where: SampleStage,
) -> tuple[FeatureStats, NDArray[np.float32]]:
    """The moments of a split's first `count` images, and the features of its first `num_kept`; measured once and kept."""
    moments = reference_uri(index, split, count, store, features)
    kept = storage.join(store, "references", f"{index.digest[:16]}-{split}-{num_kept}-{features.digest}.npy")
    if not storage.exists(moments) or (num_kept and not storage.exists(kept)):
        wanted = Wanted(count=count, num_kept=num_kept)
        images = SplitImages(index, split)
        found = measure_features(f"measure {split}", images, wanted, features, config.batch_size, where)
        if num_kept:
            storage.write_bytes(kept, _to_bytes(found.features))
        facts = ReferenceFacts(dataset_digest=index.digest, split=split, count=count, features=features.digest)
        storage.write_bytes(moments, reference_bytes(found.total.stats, facts))
    stats = read_reference(storage.read_bytes(moments), moments).stats
    rows = np.load(io.BytesIO(storage.read_bytes(kept)), allow_pickle=False) if num_kept else _none(stats)
    return stats, rows


def reference_uri(index: DatasetIndex, split: Split, count: int, store: str, features: Features) -> str:
    """Where the moments of a split's first `count` images lie: an .npz that pytorch-fid and clean-fid read, too."""
    return storage.join(store, "references", f"{index.digest[:16]}-{split}-{count}-{features.digest}.npz")


def imported_reference(path: str, index: DatasetIndex, features: Features) -> Reference:
    """The moments in a user's file.

    Raises:
        InputError: in one line, as `open_reference`, or if it says that it is of another dataset.
    """
    found = open_reference(path, features, features.dimensions(index.image_size, index.channels))
    if found.facts and found.facts.dataset_digest != index.digest:
        raise InputError(
            f"{path} was measured on the dataset {found.facts.dataset_digest[:16]}; expected {index.digest[:16]}, {index.uri}"
        )
    return found


def _none(stats: FeatureStats) -> NDArray[np.float32]:
    return np.empty((0, len(stats.mean)), np.float32)


def _to_bytes(array: NDArray[np.float32]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _ask(features: Features, where: SampleStage) -> Ask:
    return for_sampling(where) if features.is_heavy else for_a_cpu("evaluate")


def _measure_part(
    part: range, images: ImageSet, wanted: Wanted, features: Features, batch_size: int, where: SampleStage
) -> Measured:
    """In a task."""
    torch.set_num_threads(where.threads if features.is_heavy else 1)
    device = torch.device("cuda" if where.use_gpu and features.is_heavy else "cpu")
    found, place = Measured(segments={}), part.start
    for batch in images.read(part, batch_size):
        found = found.merge(_measure_batch(batch.to(device), place, wanted, features))
        place += len(batch)
    return found


def _measure_batch(batch: UInt8[Tensor, "b c h w"], first: int, wanted: Wanted, features: Features) -> Measured:
    seen = features.see(batch)
    segments = {}
    for number, low, high in _segments(wanted.edges, first, first + len(batch)):
        rows = slice(low - first, high - first)
        scores = None if seen.logits is None else ScoreSums.from_logits(seen.logits[rows])
        segments[number] = Sums(stats=FeatureStats.from_features(seen.features[rows]), scores=scores)
    num_kept = max(0, min(wanted.num_kept - first, len(batch)))
    kept = (seen.features[:num_kept].float().cpu().numpy(),) if num_kept else ()
    return Measured(segments=segments, kept=kept)


def _segments(edges: Sequence[int], first: int, end: int) -> list[tuple[int, int, int]]:
    """The segments that a run of places meets: each one's number, and where the run is in it."""
    inner = [edge for edge in edges if first < edge < end]
    return [(bisect_right(edges, low) - 1, low, high) for low, high in pairwise([first, *inner, end])]
