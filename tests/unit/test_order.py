"""The data order: exactly once, lanes as even as may be, nothing follows from the worker count."""

import hashlib

import numpy as np
import pytest
import torch

from ddpm_core.data.order import StreamOrder, lanes_of_worker, largest_share, worker_positions
from ddpm_core.random import Purpose, random_bits

SIZES = {
    "one window": np.array([5, 7, 3]),
    "several windows": np.array([10] * 11 + [4]),
    "uneven": np.array([1, 40, 2, 9, 17, 3, 3, 30, 8]),
}


def order(sizes, *, seed=0, digest="d", lanes=3, window=4):
    return StreamOrder(np.asarray(sizes), seed=seed, digest=digest, lanes=lanes, window=window)


def epoch_of(stream, epoch):
    n = stream.num_samples
    shard, row = stream.locate(np.arange(epoch * n, (epoch + 1) * n))
    return list(zip(shard.tolist(), row.tolist(), strict=True))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("lanes", [1, 2, 3, 7])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_sample_comes_exactly_once_an_epoch(sizes, lanes, epoch):
    everything = [(s, r) for s, size in enumerate(sizes) for r in range(size)]
    assert sorted(epoch_of(order(sizes, lanes=lanes), epoch)) == everything


def by_hand(sizes, *, epoch, seed, digest, lanes, window):
    """An epoch as the module's first lines tell it, sample by sample."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{digest}/{epoch}".encode()).digest()[:8], "little")

    def permuted(items, kind, start):
        drawn = random_bits(key, Purpose.PERMUTATION, torch.arange(start, start + len(items)), 2, step=kind).tolist()
        return [items[i] for i in sorted(range(len(items)), key=lambda i: tuple(drawn[i]))]

    shards = permuted(list(range(len(sizes))), 0, 0)
    laid = [(shard, row) for shard in shards for row in range(sizes[shard])]
    if len(shards) <= window:
        laid = permuted(laid, 1, 0)
    dealt, start = [], 0
    for lane in range(lanes):
        stop = start + len(laid) // lanes + (lane < len(laid) % lanes)
        own = laid[start:stop]
        if len(shards) > window:
            names = list(dict.fromkeys(shard for shard, _ in own))
            mixed = []
            for first in range(0, len(names), window):
                part = [sample for sample in own if sample[0] in names[first : first + window]]
                mixed += permuted(part, 1, start + len(mixed))
            own = mixed
        dealt.append(own)
        start = stop
    return [dealt[place % lanes][place // lanes] for place in range(len(laid))]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("lanes", [1, 3, 7])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_an_epoch_is_what_the_rules_say(sizes, lanes, window):
    options = {"seed": 5, "digest": "e", "lanes": lanes, "window": window}
    for epoch in (0, 2):
        assert epoch_of(order(sizes, **options), epoch) == by_hand(sizes.tolist(), epoch=epoch, **options)


@pytest.mark.parametrize("change", [{"seed": 1}, {"digest": "e"}, {"lanes": 4}, {"window": 3}])
def test_order_follows_from_seed_digest_lanes_and_window(change):
    sizes = SIZES["several windows"]
    assert epoch_of(order(sizes), 0) == epoch_of(order(sizes), 0)
    assert epoch_of(order(sizes), 0) != epoch_of(order(sizes, **change), 0)


def test_epochs_differ():
    stream = order(SIZES["several windows"])
    assert epoch_of(stream, 0) != epoch_of(stream, 1)


def test_any_position_alone_is_what_the_whole_epoch_says():
    stream, fresh = order(SIZES["uneven"]), order(SIZES["uneven"])
    whole = epoch_of(stream, 3)
    for position in [0, 5, 17, 44, 90, stream.num_samples - 1]:
        shard, row = fresh.locate(np.array([3 * stream.num_samples + position]))
        assert (int(shard[0]), int(row[0])) == whole[position]


def test_position_g_is_lane_g_mod_L():
    """Lane l serves a contiguous range of the laid-out shards: with unit windows a lane touches few shards at a time."""
    stream = order([10] * 12, lanes=3, window=1)
    shards, _ = stream.locate(np.arange(120))
    for lane in range(3):
        own = shards[lane::3]
        assert len(set(own.tolist())) == 4
        assert all(len(set(own[k : k + 10].tolist())) == 1 for k in range(0, 40, 10))


@pytest.mark.parametrize(("lanes", "workers"), [(8, 1), (8, 3), (8, 8), (5, 2), (7, 4)])
def test_workers_share_the_lanes_contiguously_and_evenly(lanes, workers):
    shares = [lanes_of_worker(lanes, worker, workers) for worker in range(workers)]
    assert [lane for share in shares for lane in share] == list(range(lanes))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_workers_than_lanes_is_refused():
    with pytest.raises(ValueError, match="5 workers for 4 lanes"):
        lanes_of_worker(4, 0, 5)


@pytest.mark.parametrize("num_samples", [100, 103, 128])
@pytest.mark.parametrize("batch_size", [7, 16, 32, 100])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_global_batches_are_dealt_whole_and_no_share_is_larger_than_said(num_samples, batch_size, workers):
    lanes = 8
    shares = [lanes_of_worker(lanes, worker, workers) for worker in range(workers)]
    most = [largest_share(batch_size, num_samples, lanes, share) for share in shares]
    largest = [0] * workers
    for step in range(3 * num_samples // batch_size + 20):
        dealt = [worker_positions(step, batch_size, num_samples, lanes, share) for share in shares]
        assert sorted(np.concatenate(dealt).tolist()) == list(range(step * batch_size, (step + 1) * batch_size))
        largest = [max(size, len(own)) for size, own in zip(largest, dealt, strict=True)]
        lane_counts = np.bincount(
            np.arange(step * batch_size, (step + 1) * batch_size) % num_samples % lanes, minlength=lanes
        )
        assert lane_counts.max() - lane_counts.min() <= 2
    assert all(size <= bound for size, bound in zip(largest, most, strict=True))
    assert workers > 1 or most == [batch_size]


def test_a_batch_larger_than_an_epoch_is_refused():
    with pytest.raises(ValueError, match="global batch is 101; expected 1 to 100"):
        largest_share(101, 100, 8, range(8))


def test_fewer_samples_than_lanes_is_refused():
    with pytest.raises(ValueError, match="2 training images for 3 lanes"):
        order([2])


def test_resuming_deep_in_a_large_dataset_is_arithmetic():
    """14 million samples, 90% into the ninth epoch: only the windows that the batch touches are shuffled."""
    stream = order([1000] * 14_000, lanes=8, window=8)
    position = 8 * stream.num_samples + int(0.9 * stream.num_samples)
    stream.locate(np.arange(position, position + 128))
    assert stream._window_order.cache_info().currsize <= 2 * 8
    assert stream._layout.cache_info().currsize == 1
    # ... and to say which shards come, none at all.
    fresh = order([1000] * 14_000, lanes=8, window=8)
    assert len(fresh.ahead(position, range(8)).shards) == 2 * 8 * 8
    assert fresh._window_order.cache_info().currsize == 0


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(("lanes", "window"), [(1, 2), (3, 1), (3, 4), (7, 2)])
@pytest.mark.parametrize("served", [range(1), range(3), range(2, 7)])
def test_the_shards_ahead_are_those_that_are_read(sizes, lanes, window, served):
    served = range(min(served.start, lanes - 1), min(served.stop, lanes))
    stream = order(sizes, lanes=lanes, window=window)
    n = stream.num_samples
    read = stream.locate(np.arange(4 * n)).shard
    own = np.isin(np.arange(4 * n) % n % lanes, np.array(served))
    position, turns = 0, 0
    while position < 2 * n:
        ahead = stream.ahead(position, served)
        assert ahead.until > position
        assert len(set(ahead.shards)) == len(ahead.shards)
        span = slice(position, ahead.until)
        assert set(read[span][own[span]].tolist()) <= set(ahead.shards)
        # The next windows are there too, before the stream enters them: what follows reads nothing that was not named.
        following = stream.ahead(ahead.until, served)
        span = slice(ahead.until, following.until)
        assert set(read[span][own[span]].tolist()) <= set(ahead.shards) | set(following.shards)
        entered = stream.locate(np.array([p for p in range(ahead.until, 4 * n) if own[p]][:1])).shard
        assert set(entered.tolist()) <= set(ahead.shards)
        # It names no more than the lanes' windows: two each, of which the first may begin and end within a shard.
        assert len(ahead.shards) <= min(len(sizes), 2 * window * len(served)) or len(sizes) <= window
        for between in ((position + ahead.until - 1) // 2, ahead.until - 1):
            assert stream.ahead(between, served) == ahead
        position, turns = ahead.until, turns + 1
    assert turns >= 2
