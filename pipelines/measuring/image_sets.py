"""Images that can be measured: those of a dataset's split, and generated ones; read in parts by tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import DatasetIndex, Split
from ddpm_core.artifacts.sample_set import SampleSet, read_images
from ddpm_core.data.images import BadImage, decode_pngs, exact_pixels
from ddpm_core.data.reader import ImageReader
from ddpm_core.data.sharding.plan import permutation
from ddpm_core.data.sources import Source, check_source, open_source, source_identity, source_uri
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.data.sources.idx import JoinedSource
from ddpm_core.errors import InputError
from ddpm_core.types import ImageSize, Tensor, UInt8
from pipelines.cluster.session import shard_cache

_FOREIGN_PART = 512


class ImageSet(Protocol):
    """Images in a fixed order that has nothing to do with what they show."""

    @property
    def num_images(self) -> int: ...

    @property
    def parts(self) -> Sequence[range]:
        """The places of the images, in runs that a task reads at once."""
        ...

    def read(self, places: range, batch_size: int) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """The images at the places of a part, or at its first few."""
        ...


@dataclass(frozen=True)
class SplitImages:
    """The images of a dataset's split; they were permuted when they were sharded."""

    index: DatasetIndex
    split: Split

    @property
    def num_images(self) -> int:
        return self.index.num_samples(self.split)

    @property
    def parts(self) -> Sequence[range]:
        """A shard each."""
        ends = accumulate(self.index.shard_sizes(self.split).tolist(), initial=0)
        return [range(first, end) for first, end in pairwise(ends)]

    def read(self, places: range, batch_size: int) -> Iterator[UInt8[Tensor, "b c h w"]]:
        reader = ImageReader(self.index, self.split, shard_cache(), keep_bytes=0)
        for first in range(places.start, places.stop, batch_size):
            yield reader.images(*reader.places(range(first, min(first + batch_size, places.stop))))


@dataclass(frozen=True)
class SampledImages:
    """The images of a sample set, in the order of their seeds."""

    samples: SampleSet

    @property
    def num_images(self) -> int:
        return self.samples.num_images

    @property
    def parts(self) -> Sequence[range]:
        """A block each, or what of it belongs to the set."""
        starts = [max(block - self.samples.first_seed, 0) for block in self.samples.blocks]
        return [range(start, end) for start, end in pairwise([*starts, self.num_images])]

    def read(self, places: range, batch_size: int) -> Iterator[UInt8[Tensor, "b c h w"]]:
        first, size = self.samples.first_seed, self.samples.block_size
        block = (first + places.start) // size * size
        found = [png for seed, png in read_images(self.samples, range(block, block + 1)) if seed - first in places]
        for start in range(0, len(found), batch_size):
            yield decode_pngs(found[start : start + batch_size])


@dataclass(frozen=True)
class ForeignImages:
    """Images that others made, in whatever raw images may lie; of the form of a dataset's, or refused."""

    source: str
    identity: str
    """Changes when they do."""
    num_images: int
    image_size: ImageSize
    channels: int

    @property
    def parts(self) -> Sequence[range]:
        ends = [*range(0, self.num_images, _FOREIGN_PART), self.num_images]
        return [range(first, end) for first, end in pairwise(ends)]

    def read(self, places: range, batch_size: int) -> Iterator[UInt8[Tensor, "b c h w"]]:
        source, order = _opened(self.source, self.identity)
        for first in range(places.start, places.stop, batch_size):
            numbers = order[first : min(first + batch_size, places.stop)].tolist()
            yield torch.stack([self._image(source, number) for number in numbers])

    def _image(self, source: Source, number: int) -> UInt8[Tensor, "c h w"]:
        try:
            pixels = exact_pixels(source.read(number).data, self.image_size, self.channels)
        except BadImage as error:
            raise InputError(f"{source.name(number)} in {self.source}: {error}") from None
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def foreign_images(uri: str, index: DatasetIndex) -> ForeignImages:
    """The images at a path or URI, to be measured against a dataset.

    An array's images keep their order; files are put in a fixed random one, since their names may sort them by class.

    Raises:
        InputError: in one line, if there are none, or the first one is of another size or colour than the dataset's.
    """
    uri = source_uri(uri)
    check_source(uri)
    identity = source_identity(uri)
    source, order = _opened(uri, identity)
    images = ForeignImages(uri, identity, source.num_images, index.image_size, index.channels)
    images._image(source, int(order[0]))
    return images


@lru_cache(maxsize=1)
def _opened(uri: str, identity: str) -> tuple[Source, NDArray[np.int64]]:
    """A worker process's source, opened once for all the parts that it reads, and the order of its images."""
    source = open_source(uri)
    in_order = isinstance(source, ArraySource | JoinedSource)
    return source, np.arange(source.num_images) if in_order else permutation(source.num_images, seed=0)
