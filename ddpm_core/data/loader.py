"""From shards on disk or S3 to batches of uint8 images, read ahead in the background."""

import hashlib
import mmap
import queue
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex, read_rows
from ddpm_core.data.images import decode_png
from ddpm_core.data.order import StreamOrder, lanes_of_worker, local_batch_size, worker_positions
from ddpm_core.types import Float, Int, Tensor, UInt8

_DAMAGED = "the shard was changed or damaged: delete the dataset and shard it again"


class Batch(NamedTuple):
    """A worker's share of a global batch, padded to its fixed local shape."""

    images: UInt8[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    """Classes; -1 where an image has none."""
    positions: Int[Tensor, " b"]
    """Positions in the stream: the key of t, eps, flips and dropout. Padding repeats position 0."""
    weights: Float[Tensor, " b"]
    """1 for a sample, 0 for padding."""


class Shard:
    """One memory-mapped tar and its rows of the index.

    Raises:
        ValueError: when a sample's bytes do not have the checksum that the index holds.
    """

    def __init__(self, index: DatasetIndex, number: int, cache: Path) -> None:
        self.name = index.shards[number].name
        rows = read_rows(index, number)
        self.offsets, self.sizes, self.checksums, self.labels = (
            rows[column].to_numpy() for column in ("offset", "size", "crc32", "label")
        )
        with open(_local_copy(index, number, cache), "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def image(self, row: int) -> UInt8[np.ndarray, "h w c"]:
        """The decoded image of one row."""
        offset, size = int(self.offsets[row]), int(self.sizes[row])
        data = self._bytes[offset : offset + size]
        found, expected = zlib.crc32(data), int(self.checksums[row])
        if found != expected:
            raise ValueError(
                f"{self.name}, row {row}: crc32 is {found:#010x}, the index says {expected:#010x}; {_DAMAGED}"
            )
        return decode_png(data)


def _local_copy(index: DatasetIndex, number: int, cache: Path) -> Path:
    """The shard's path: in place for a local dataset, else a copy kept under its sha256 and verified once."""
    entry = index.shards[number]
    uri = storage.join(index.uri, entry.name)
    if not storage.is_s3(uri):
        return Path(storage.absolute(uri))
    path = cache / entry.sha256
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        arriving = path.with_name(f"{path.name}.{threading.get_native_id()}.part")
        storage.download(uri, arriving)
        with open(arriving, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry.sha256:
            arriving.unlink()
            raise ValueError(f"{uri}: sha256 is {found}, the index says {entry.sha256}; {_DAMAGED}")
        arriving.replace(path)
    return path


class ImageReader:
    """Random access to the images of one split.

    Decoded images are kept when the whole split fits into `keep_bytes`, so that a small dataset is decoded once.
    """

    def __init__(self, index: DatasetIndex, split: str, cache: Path, keep_bytes: int = 256 << 20) -> None:
        self.index, self._cache = index, cache
        self.numbers = [number for number, shard in enumerate(index.shards) if shard.split == split]
        self.shard_sizes = np.array([index.shards[number].num_samples for number in self.numbers], dtype=np.int64)
        self.num_samples = int(self.shard_sizes.sum())
        self._shards: dict[int, Shard] = {}
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        shape = (self.num_samples, index.image_size, index.image_size, index.channels)
        keep = int(np.prod(shape)) <= keep_bytes
        self._kept = np.empty(shape, dtype=np.uint8) if keep else None
        self._is_kept = np.zeros(self.num_samples, dtype=bool)

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            self._shards[number] = Shard(self.index, self.numbers[number], self._cache)
        return self._shards[number]

    def _image(self, number: int, row: int) -> UInt8[np.ndarray, "h w c"]:
        if self._kept is None:
            return self._shard(number).image(row)
        place = self._starts[number] + row
        if not self._is_kept[place]:
            self._kept[place] = self._shard(number).image(row)
            self._is_kept[place] = True
        kept: NDArray[np.uint8] = self._kept[place]
        return kept

    def places(self, numbers: range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard numbers (of the split) and rows of the images from one place of the split to another."""
        place = np.arange(numbers.start, numbers.stop)
        shard = np.searchsorted(self._starts, place, side="right") - 1
        return shard, place - self._starts[shard]

    def images(self, shard: NDArray[np.int64], row: NDArray[np.int64]) -> UInt8[Tensor, "b c h w"]:
        """The images at these shard numbers (of the split) and rows."""
        read = np.stack([self._image(int(s), int(r)) for s, r in zip(shard, row, strict=True)])
        return torch.from_numpy(read).permute(0, 3, 1, 2).contiguous()

    def labels(self, shard: NDArray[np.int64], row: NDArray[np.int64]) -> Int[Tensor, " b"]:
        """The labels at these shard numbers (of the split) and rows; -1 for none."""
        read = [int(self._shard(int(s)).labels[int(r)]) for s, r in zip(shard, row, strict=True)]
        return torch.tensor(read, dtype=torch.int64)

    def in_order(self, batch_size: int, shards: range | None = None) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """The images of the given shards of the split as they are stored, in batches; the last one may be smaller."""
        for number in shards if shards is not None else range(len(self.numbers)):
            for start in range(0, int(self.shard_sizes[number]), batch_size):
                rows = np.arange(start, min(start + batch_size, int(self.shard_sizes[number])))
                yield self.images(np.full_like(rows, number), rows)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """What fixes the stream of global batches, besides the dataset itself."""

    batch_size: int
    lanes: int
    window: int
    seed: int


class TrainingStream:
    """A worker's share of the global batches, from any step on."""

    def __init__(self, reader: ImageReader, config: StreamConfig, *, worker: int, num_workers: int) -> None:
        self.config, self._reader = config, reader
        self.order = StreamOrder(
            reader.shard_sizes,
            seed=config.seed,
            digest=reader.index.digest,
            lanes=config.lanes,
            window=config.window,
        )
        self.served = lanes_of_worker(config.lanes, worker, num_workers)
        self.local_batch_size = local_batch_size(config.batch_size, reader.num_samples, config.lanes, self.served)

    def batch(self, step: int) -> Batch:
        """This worker's share of global batch `step`."""
        positions = worker_positions(
            step, self.config.batch_size, self.order.num_samples, self.config.lanes, self.served
        )
        places = self.order.locate(positions)
        images, labels = self._reader.images(*places), self._reader.labels(*places)
        padding = self.local_batch_size - len(positions)
        weights = torch.cat([torch.ones(len(positions)), torch.zeros(padding)])
        padded = torch.cat([torch.from_numpy(positions), torch.zeros(padding, dtype=torch.int64)])
        return Batch(
            images=torch.cat([images, images.new_zeros((padding, *images.shape[1:]))]),
            labels=torch.cat([labels, labels.new_full((padding,), -1)]),
            positions=padded,
            weights=weights,
        )

    def read_ahead(self, first_step: int, last_step: int, depth: int = 4) -> Iterator[Batch]:
        """The batches of steps first..last-1, prepared by a background thread. An error there is raised here."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
        stopped = threading.Event()

        def offer(item: Batch | BaseException) -> None:
            while not stopped.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=0.2)
                    return

        def prepare() -> None:
            try:
                for step in range(first_step, last_step):
                    if stopped.is_set():
                        return
                    offer(self.batch(step))
            except BaseException as error:  # handed to the consumer, who raises it
                offer(error)

        thread = threading.Thread(target=prepare, name="read-ahead", daemon=True)
        thread.start()
        try:
            for _ in range(first_step, last_step):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()
