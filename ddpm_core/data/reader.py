"""The images of a dataset's split by shard and row: tars on disk or copied from S3, checked as they are read, decoded."""

import json
import math
import os
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex, index_uri
from ddpm_core.artifacts.parquet import parquet_file
from ddpm_core.data.images import decode_png
from ddpm_core.data.shard_cache import DAMAGED, open_copy
from ddpm_core.errors import InputError, MissingError
from ddpm_core.types import Int, Tensor, UInt8, height_and_width

_COLUMNS = ["offset", "size", "crc32", "label"]
_SPARE_SHARDS = 16
"""Shards that stay open beside those that a stream holds."""


class _Rows:
    """The rows of an index, a shard's at a time: the footer is read once, and the file stays the one that was opened."""

    def __init__(self, index: DatasetIndex) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._file: pq.ParquetFile | None = None

    def read(self, number: int) -> dict[str, NDArray[Any]]:
        """What a reader needs of a shard's rows: offset, size, crc32 and label, each [samples of the shard].

        Raises:
            InputError: if the index is damaged, or another than the one that was told.
        """
        uri = index_uri(self._index.uri)
        try:
            with self._lock:  # one file, which is at one place at a time
                if self._file is None:
                    self._file = self._opened(uri)
                rows = self._file.read_row_group(number, columns=_COLUMNS, use_threads=False)
        except (FileNotFoundError, storage.StorageError):
            raise
        except (pa.ArrowInvalid, OSError) as error:  # an OSError is how pyarrow tells of what cannot be decompressed
            reason = " ".join(str(error).split())
            raise InputError(
                f"{uri} is damaged ({reason}): delete it and shard the same images again, which makes it anew"
            ) from None
        # Not pyarrow's to_numpy, which imports pandas: most of the time that a start took.
        return {column: np.from_dlpack(rows[column].combine_chunks()) for column in _COLUMNS}

    def _opened(self, uri: str) -> pq.ParquetFile:
        stream = storage.open_read(uri)
        weakref.finalize(self, stream.close)
        file = parquet_file(stream)
        digest = json.loads((file.schema_arrow.metadata or {}).get(b"ddpm", b"{}")).get("digest")
        if digest != self._index.digest:
            raise InputError(
                f"{uri} has digest {digest}, this process began with {self._index.digest}: the dataset was replaced "
                "meanwhile; start again, a run that was trained on it under another --name"
            )
        return file


class Shard:
    """One open tar and its rows of the index.

    Bytes are read, not mapped: where a disk or another's hand takes them away under us, reading is an error and a map a crash.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is not the file that the index describes; in `image`, not the bytes.
    """

    def __init__(self, index: DatasetIndex, number: int, rows: dict[str, NDArray[Any]], cache: Path) -> None:
        entry = index.shards[number]
        self.name = storage.join(index.uri, entry.name)
        self._offsets, self._sizes, self._checksums, self.labels = (rows[column] for column in _COLUMNS)
        end = int((self._offsets + self._sizes).max(initial=0))
        if len(self.labels) != entry.num_samples or end > entry.size_bytes:
            raise InputError(
                f"{index_uri(index.uri)} has {len(self.labels)} rows for {entry.name}, up to byte {end}; expected "
                f"{entry.num_samples} rows in {entry.size_bytes} bytes: delete it and shard the same images again"
            )
        try:
            if storage.is_s3(self.name):
                self._file = open_copy(self.name, sha256=entry.sha256, size_bytes=entry.size_bytes, folder=cache)
                self._remedy = f"delete its copy {cache / entry.sha256}, which was damaged here"
            else:
                self._file = os.open(storage.absolute(self.name), os.O_RDONLY)
                self._remedy = DAMAGED
        except FileNotFoundError:
            raise MissingError(
                f"{self.name}: there is no such file, the index says {entry.size_bytes} bytes; {DAMAGED}"
            ) from None
        weakref.finalize(self, os.close, self._file)
        size = os.fstat(self._file).st_size
        if size != entry.size_bytes:
            raise InputError(f"{self.name}: it has {size} bytes, the index says {entry.size_bytes}; {self._remedy}")

    def image(self, row: int, out: UInt8[np.ndarray, "h w c"] | None = None) -> UInt8[np.ndarray, "h w c"]:
        """The decoded image of one row; in `out`, if that is given."""
        data = os.pread(self._file, self._sizes.item(row), self._offsets.item(row))
        found, expected = zlib.crc32(data), self._checksums.item(row)
        if found != expected:
            raise InputError(
                f"{self.name}, row {row}: crc32 is {found:#010x}, the index says {expected:#010x}; {self._remedy}"
            )
        return decode_png(data, out)


class ImageReader:
    """Random access to the images of one split; threads may share it.

    Decoded images are kept when the whole split fits into `keep_bytes`, so that a small dataset is decoded once. Else a
    shard is open while it is held (see `hold`), or among the last few that were used.
    """

    def __init__(self, index: DatasetIndex, split: str, cache: Path, keep_bytes: int = 256 << 20) -> None:
        self.index, self._cache = index, cache
        self.numbers = [number for number, shard in enumerate(index.shards) if shard.split == split]
        self.shard_sizes = np.array([index.shards[number].num_samples for number in self.numbers], dtype=np.int64)
        self.num_samples = int(self.shard_sizes.sum())
        self._rows = _Rows(index)
        self._open: OrderedDict[int, Future[Shard]] = OrderedDict()
        self._held: frozenset[int] = frozenset()
        self._lock = threading.Lock()  # of the two above
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        shape = index.channels, *height_and_width(index.image_size)
        kept = self.num_samples if self.num_samples * math.prod(shape) <= keep_bytes else 0
        self._images = np.empty((kept, *shape), dtype=np.uint8)
        self._labels = np.empty(kept, dtype=np.int64)
        self._is_kept = np.zeros(kept, dtype=bool)

    def hold(self, shards: Iterable[int]) -> None:
        """Keep these shards (numbers of the split) open once they are, until others are held; close the rest."""
        with self._lock:
            self._held = frozenset(shards)
            for number in [number for number in self._open if number not in self._held]:
                del self._open[number]

    def fetch(self, number: int) -> None:
        """Open a shard of the split before it is needed, unless all its images are kept already."""
        start, stop = self._starts[number : number + 2]
        if not len(self._is_kept) or not self._is_kept[start:stop].all():
            self._shard(number)

    def _shard(self, number: int) -> Shard:
        """The open shard. Of threads that want it at once the first one opens it, and the others wait."""
        with self._lock:
            opening, first = self._open.get(number), number not in self._open
            if opening is None:
                opening = self._open[number] = Future()
                spare = [other for other in self._open if other not in self._held]
                for other in spare[:-_SPARE_SHARDS]:
                    del self._open[other]  # closed once the last thread that reads it lets it go
            self._open.move_to_end(number)
        if first:
            try:
                place = self.numbers[number]
                opening.set_result(Shard(self.index, place, self._rows.read(place), self._cache))
            except BaseException as error:
                with self._lock:
                    if self._open.get(number) is opening:
                        del self._open[number]  # the next one who asks tries again
                opening.set_exception(error)
        return opening.result()

    def places(self, numbers: range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard numbers (of the split) and rows of the images from one place of the split to another."""
        place = np.arange(numbers.start, numbers.stop)
        shard = np.searchsorted(self._starts, place, side="right") - 1
        return shard, place - self._starts[shard]

    def images(self, shard: NDArray[np.int64], row: NDArray[np.int64]) -> UInt8[Tensor, "b c h w"]:
        """The images at these shard numbers (of the split) and rows."""
        if not len(self._is_kept):
            return torch.from_numpy(self._decoded(shard, row))
        place = self._starts[shard] + row
        new = ~self._is_kept[place]
        if new.any():
            self._images[place[new]] = self._decoded(shard[new], row[new])
            self._labels[place[new]] = self._read_labels(shard[new], row[new])
            self._is_kept[place[new]] = True
        return torch.from_numpy(self._images[place])

    def labels(self, shard: NDArray[np.int64], row: NDArray[np.int64]) -> Int[Tensor, " b"]:
        """The labels at these shard numbers (of the split) and rows; -1 for none."""
        place = self._starts[shard] + row
        if len(self._is_kept) and self._is_kept[place].all():
            return torch.from_numpy(self._labels[place])
        return torch.from_numpy(self._read_labels(shard, row))

    def _decoded(self, shard: NDArray[np.int64], row: NDArray[np.int64]) -> UInt8[np.ndarray, "b c h w"]:
        """One after another: two threads were no faster at 32 pixels, since each image is back after some 30 us."""
        read = np.empty((len(shard), *height_and_width(self.index.image_size), self.index.channels), dtype=np.uint8)
        for number in np.unique(shard).tolist():
            own = self._shard(number)
            chosen = np.flatnonzero(shard == number)
            for place, at in zip(chosen.tolist(), row[chosen].tolist(), strict=True):
                own.image(at, read[place])
        return np.ascontiguousarray(read.transpose(0, 3, 1, 2))

    def _read_labels(self, shard: NDArray[np.int64], row: NDArray[np.int64]) -> Int[np.ndarray, " b"]:
        read = np.empty(len(shard), dtype=np.int64)
        for number in np.unique(shard).tolist():
            chosen = shard == number
            read[chosen] = self._shard(number).labels[row[chosen]]
        return read

    def in_order(self, batch_size: int, shards: range | None = None) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """The images of the given shards of the split as they are stored, in batches; the last one may be smaller."""
        for number in shards if shards is not None else range(len(self.numbers)):
            for start in range(0, int(self.shard_sizes[number]), batch_size):
                rows = np.arange(start, min(start + batch_size, int(self.shard_sizes[number])))
                yield self.images(np.full_like(rows, number), rows)
