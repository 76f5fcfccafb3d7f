"""In which order training reads a dataset: a permutation a worker can compute alone, for any position, at any time.

The stream of an epoch depends on (seed, epoch, dataset digest, lanes, window) and on nothing else: no worker count, no clock,
no cache. The shards are permuted and laid end to end; the N samples are dealt to L fixed *lanes*, contiguous ranges; inside a
lane the samples are shuffled over windows of a few shards. The global stream interleaves the lanes: position g is epoch g div N,
place p = g mod N, lane p mod L, offset p div L. A global batch is the next B positions. A worker serves some of the lanes.
"""

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.errors import InputError
from ddpm_core.random import Purpose, random_bits

_SHARDS, _WINDOW = 0, 1  # the `step` word: the two kinds of permutation never share a counter


class Location(NamedTuple):
    """Where samples lie: shard numbers and rows in them, both int64 [n]."""

    shard: NDArray[np.int64]
    row: NDArray[np.int64]


class Ahead(NamedTuple):
    """What a worker reads at a position of the stream, and soon after."""

    shards: tuple[int, ...]
    """Of the present window of each lane, then of the next one of each; no shard twice."""
    until: int
    """The first position of which this is no longer true, since a lane enters its next window there."""


class StreamOrder:
    """The order of one dataset's training samples, forever.

    Args:
        shard_sizes: samples a shard, int64 [S].
        seed: of the order.
        digest: names the dataset's content.
        lanes: L, the number of fixed lanes; never follows from the worker count.
        window: shards over which a lane shuffles.

    Raises:
        InputError: if the dataset has fewer samples than lanes, or an option is not positive.
    """

    def __init__(self, shard_sizes: NDArray[np.int64], *, seed: int, digest: str, lanes: int, window: int) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.num_samples = int(self.shard_sizes.sum())
        self.seed, self.digest, self.lanes, self.window = seed, digest, lanes, window
        if lanes < 1 or window < 1:
            raise InputError(f"lanes is {lanes} and window is {window}; expected both to be 1 or more")
        if self.num_samples < lanes:
            raise InputError(
                f"the dataset has {self.num_samples} training images for {lanes} lanes; lower --train.lanes"
            )
        self._layout = lru_cache(maxsize=2)(self._lay_out_shards)
        self._window_edges = lru_cache(maxsize=2 * lanes + 2)(self._cut_into_windows)
        self._window_order = lru_cache(maxsize=2 * lanes + 2)(self._shuffle_window)

    def locate(self, positions: NDArray[np.int64]) -> Location:
        """Where the samples at these positions of the stream lie."""
        shard, row = np.empty_like(positions), np.empty_like(positions)
        epochs, places = np.divmod(positions, self.num_samples)
        lanes, offsets = places % self.lanes, places // self.lanes
        for epoch in np.unique(epochs):
            for lane in np.unique(lanes[epochs == epoch]):
                chosen = (epochs == epoch) & (lanes == lane)
                shard[chosen], row[chosen] = self._locate_in_lane(int(epoch), int(lane), offsets[chosen])
        return Location(shard, row)

    def ahead(self, position: int, served: range) -> Ahead:
        """The shards that the served lanes read from this position on, in their present windows and in the next ones.

        No sample is shuffled for it.
        """
        present, following, until = [], [], []
        for lane in served:
            epoch, place = divmod(position, self.num_samples)
            offset = max(0, (place - lane) // self.lanes)  # of the lane's last sample up to here, or its epoch's first
            shards, (epoch, offset) = self._window_at(epoch, lane, offset)
            present.append(shards)
            until.append(epoch * self.num_samples + (offset * self.lanes + lane if offset else 0))
            following.append(self._window_at(epoch, lane, offset)[0])
        return Ahead(tuple(dict.fromkeys(np.concatenate(present + following).tolist())), min(until))

    def _window_at(self, epoch: int, lane: int, offset: int) -> tuple[NDArray[np.int64], tuple[int, int]]:
        """The shards of the lane's window that holds this offset, and (epoch, offset) where the next window begins."""
        start, stop = self._lane_range(lane)
        permuted, bounds = self._layout(epoch)
        if len(permuted) <= self.window:
            return permuted, (epoch + 1, 0)
        edges = self._window_edges(epoch, lane)
        number = int(np.searchsorted(edges, start + offset, side="right")) - 1
        a, b = edges[number], edges[number + 1]
        first, last = np.searchsorted(bounds, a, side="right") - 1, np.searchsorted(bounds, b, side="left")
        return permuted[first:last], (epoch + 1, 0) if b == stop else (epoch, int(b) - start)

    def _locate_in_lane(self, epoch: int, lane: int, offsets: NDArray[np.int64]) -> Location:
        permuted, bounds = self._layout(epoch)
        start, _ = self._lane_range(lane)
        if len(permuted) <= self.window:  # one window holds everything: permuted whole before it is dealt
            laid = self._window_order(epoch, 0, self.num_samples)[start + offsets]
        else:
            laid = np.empty_like(offsets)
            edges = self._window_edges(epoch, lane)
            window = np.searchsorted(edges, start + offsets, side="right") - 1
            for number in np.unique(window):
                a, b = int(edges[number]), int(edges[number + 1])
                chosen = window == number
                laid[chosen] = self._window_order(epoch, a, b)[start + offsets[chosen] - a]
        place = np.searchsorted(bounds, laid, side="right") - 1
        return Location(permuted[place], laid - bounds[place])

    def _cut_into_windows(self, epoch: int, lane: int) -> NDArray[np.int64]:
        """Where the lane's windows meet, its own two ends included: a cut after every `window` shards it has a part in."""
        _, bounds = self._layout(epoch)
        start, stop = self._lane_range(lane)
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, stop, side="left"))
        return np.concatenate([[start], bounds[first + self.window : last : self.window], [stop]]).astype(np.int64)

    def _lane_range(self, lane: int) -> tuple[int, int]:
        """The lane's range of the laid-out samples; ranges differ in length by at most one, longer ones first."""
        quotient, rest = divmod(self.num_samples, self.lanes)
        start = lane * quotient + min(lane, rest)
        return start, start + quotient + (lane < rest)

    def _lay_out_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in their order of this epoch, and the bounds between them, [S] and [S + 1]."""
        permuted = _permutation(self._key(epoch), _SHARDS, 0, len(self.shard_sizes))
        return permuted, np.concatenate([[0], np.cumsum(self.shard_sizes[permuted])]).astype(np.int64)

    def _shuffle_window(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """The laid-out samples start..stop-1, shuffled."""
        return start + _permutation(self._key(epoch), _WINDOW, start, stop)

    def _key(self, epoch: int) -> int:
        text = f"{self.seed}/{self.digest}/{epoch}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _permutation(key: int, kind: int, start: int, stop: int) -> NDArray[np.int64]:
    """A permutation of 0..stop-start-1: the argsort of a 64-bit word for each of start..stop-1."""
    drawn = random_bits(key, Purpose.PERMUTATION, torch.arange(start, stop), 2, step=kind).numpy().astype(np.uint64)
    return np.argsort(drawn[:, 0] << np.uint64(32) | drawn[:, 1], kind="stable").astype(np.int64)


def lanes_of_worker(lanes: int, worker: int, num_workers: int) -> range:
    """The contiguous lanes that a worker serves, as even as may be.

    Raises:
        InputError: if there are more workers than lanes.
    """
    if num_workers > lanes:
        raise InputError(
            f"{num_workers} workers for {lanes} lanes; expected at most one worker a lane: "
            "lower --train.num-workers or raise --train.lanes"
        )
    quotient, rest = divmod(lanes, num_workers)
    start = worker * quotient + min(worker, rest)
    return range(start, start + quotient + (worker < rest))


def worker_positions(step: int, batch_size: int, num_samples: int, lanes: int, served: range) -> NDArray[np.int64]:
    """The positions of global batch `step` that lie in the served lanes, ascending, int64."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    lane = positions % num_samples % lanes
    return positions[(lane >= served.start) & (lane < served.stop)]


def largest_share(batch_size: int, num_samples: int, lanes: int, served: range) -> int:
    """The most positions of any global batch that fall into the served lanes: what a worker's memory has to hold.

    Raises:
        InputError: if a global batch is larger than an epoch.
    """
    if not 1 <= batch_size <= num_samples:
        raise InputError(
            f"the global batch is {batch_size}; expected 1 to {num_samples}, the training images "
            "of an epoch: change --train.batch-size"
        )

    def count_before(place: int) -> int:
        """Places below `place` of one epoch that lie in the served lanes."""
        full, rest = divmod(place, lanes)
        return full * len(served) + min(max(rest - served.start, 0), len(served))

    epoch = count_before(num_samples)
    within = max(
        count_before(start + batch_size) - count_before(start)
        for start in range(min(lanes, num_samples - batch_size + 1))
    )
    straddling = max(
        epoch - count_before(num_samples - tail) + count_before(batch_size - tail) for tail in range(batch_size)
    )
    return max(within, straddling)
