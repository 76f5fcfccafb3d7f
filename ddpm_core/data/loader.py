"""From positions of the stream to batches of uint8 images: a worker's share, read ahead in the background."""

import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ddpm_core.data.order import StreamOrder, lanes_of_worker, largest_share, worker_positions
from ddpm_core.data.reader import ImageReader
from ddpm_core.types import Float, Int, Tensor, UInt8

_FETCHERS = 4
"""Shards that are fetched at once: enough to hide S3's latency, few enough to leave the training its processors."""

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """A worker's share of a global batch; a share of none is one row of padding, as each worker takes part in each step."""

    images: UInt8[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    """Classes; -1 where an image has none."""
    positions: Int[Tensor, " b"]
    """Positions in the stream: the key of t, eps, flips and dropout. Padding repeats position 0."""
    weights: Float[Tensor, " b"]
    """1 for a sample, 0 for padding."""


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
        self._known = range(0)  # the positions of which the shards that are held are true
        self.served = lanes_of_worker(config.lanes, worker, num_workers)
        self.largest_share = largest_share(config.batch_size, reader.num_samples, config.lanes, self.served)

    def batch(self, step: int) -> Batch:
        """This worker's share of global batch `step`."""
        self._hold(step)
        positions = worker_positions(
            step, self.config.batch_size, self.order.num_samples, self.config.lanes, self.served
        )
        places = self.order.locate(positions)
        images, labels = self._reader.images(*places), self._reader.labels(*places)
        padding = int(not len(positions))
        weights = torch.cat([torch.ones(len(positions)), torch.zeros(padding)])
        padded = torch.cat([torch.from_numpy(positions), torch.zeros(padding, dtype=torch.int64)])
        return Batch(
            images=torch.cat([images, images.new_zeros((padding, *images.shape[1:]))]),
            labels=torch.cat([labels, labels.new_full((padding,), -1)]),
            positions=padded,
            weights=weights,
        )

    def read_ahead(self, first_step: int, last_step: int, depth: int = 4) -> Iterator[Batch]:
        """The batches of steps first..last-1, prepared by a background thread. An error there is raised here.

        Once a lane enters a window, the shards of its next one are fetched; those of its last one are closed.

        Args:
            depth: batches that wait at the most.
        """
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
        stopped = threading.Event()
        fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch-shards")

        def offer(item: Batch | BaseException) -> None:
            while not stopped.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=0.2)
                    return

        def prepare() -> None:
            self._known = range(0)
            try:
                for step in range(first_step, last_step):
                    if stopped.is_set():
                        return
                    for number in self._hold(step):
                        fetchers.submit(self._fetch, number)
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
            fetchers.shutdown(wait=False, cancel_futures=True)
            thread.join()
            fetchers.shutdown()

    def _hold(self, step: int) -> tuple[int, ...]:
        """Hold the shards that the lanes read from this step on, and in their next windows; those, if they are others now."""
        position = step * self.config.batch_size
        if position in self._known:
            return ()
        shards, until = self.order.ahead(position, self.served)
        self._known = range(position, until)
        self._reader.hold(shards)
        return shards

    def _fetch(self, number: int) -> None:
        try:
            self._reader.fetch(number)
        except (OSError, ValueError) as error:  # not lost: the batch that needs the shard opens it itself, or raises
            logger.warning(f"{error}; tried again when the training gets there")
