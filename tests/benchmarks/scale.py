"""How far the data plan reaches: a dataset of 10^9 images on 1,024 workers, without its images.

    python tests/benchmarks/scale.py
    python tests/benchmarks/scale.py --images 10000000 --workers 64

Each worker computes its own share of every batch, from the index alone. The index here names as many tars as such a dataset has,
and says as much of each as a real one. Timed is what one worker does; the shares of all workers are held against each other: of
each batch looked at, one across the end of an epoch among them, every position is dealt once, and to one place.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ddpm_core.artifacts.manifest import ROW_SCHEMA, DatasetIndex, ShardEntry, index_uri, make_index, read_index
from ddpm_core.artifacts.sample_set import SampleSet, missing_blocks
from ddpm_core.data.order import StreamOrder, lanes_of_worker, largest_share, worker_positions

T = TypeVar("T")


def rss_mib() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024


def timed(what: str, do: Callable[[], T]) -> T:
    before, began = rss_mib(), time.perf_counter()
    made = do()
    took, grown = time.perf_counter() - began, rss_mib() - before
    print(f"| {what} | {took:,.3f} | {grown:,.0f} |", flush=True)
    return made


def write_index_alone(index: DatasetIndex) -> None:
    """The index's file as `write_index` writes it, with a single row for each tar: as many row groups, and all that is read."""
    described = json.dumps({name: value for name, value in asdict(index).items() if name != "uri"}, sort_keys=True)
    row = pa.table(
        {
            name: pa.array([value], type=ROW_SCHEMA.field(name).type)
            for name, value in zip(ROW_SCHEMA.names, ("0", 0, 0, 1, 0, 0), strict=True)
        }
    )
    with pq.ParquetWriter(index_uri(index.uri), ROW_SCHEMA.with_metadata({b"ddpm": described.encode()})) as writer:
        for _ in index.shards:
            writer.write_table(row.cast(ROW_SCHEMA))


def check_deal(order: StreamOrder, step: int, batch: int, workers: int, look: range) -> None:
    """Every position of a batch is one worker's; those of the workers looked at lie at places that no other has."""
    size = largest_share(batch, order.num_samples, order.lanes, lanes_of_worker(order.lanes, 0, workers))
    shares = [
        worker_positions(step, batch, order.num_samples, order.lanes, lanes_of_worker(order.lanes, rank, workers))
        for rank in range(workers)
    ]
    assert max(map(len, shares)) <= size
    dealt = np.sort(np.concatenate(shares))
    assert np.array_equal(dealt, np.arange(step * batch, (step + 1) * batch))
    places = [order.locate(shares[rank]) for rank in look]
    at = np.concatenate([np.stack(place) for place in places], axis=1)
    of_epoch = np.concatenate([shares[rank] // order.num_samples for rank in look])
    assert len({*zip(of_epoch.tolist(), *at.tolist(), strict=True)}) == at.shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--workers", type=int, default=1024)
    parser.add_argument("--samples-per-shard", type=int, default=16_384)
    parser.add_argument("--images-per-worker", type=int, default=32, help="of a batch")
    args = parser.parse_args()
    full, rest = divmod(args.images, args.samples_per_shard)
    sizes = [args.samples_per_shard] * full + [rest] * bool(rest)
    batch, steps_an_epoch = (
        args.images_per_worker * args.workers,
        args.images // (args.images_per_worker * args.workers),
    )
    print(
        f"{args.images:,} images in {len(sizes):,} tars, {args.workers:,} workers and lanes, batches of {batch:,}\n\n"
        "| what one worker does | s | MiB more after it |\n|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        entries = [
            ShardEntry(name=f"train-{i:06d}.tar", split="train", num_samples=n, size_bytes=n * 3072, sha256=f"{i:064x}")
            for i, n in enumerate(sizes)
        ]
        index = make_index(folder, image_size=32, channels=3, class_names=(), shards=entries, num_rejected=0)
        write_index_alone(index)
        index = timed("read the index", lambda: read_index(folder))
    order = timed(
        "begin",
        lambda: StreamOrder(index.shard_sizes("train"), seed=0, digest=index.digest, lanes=args.workers, window=8),
    )
    served = lanes_of_worker(args.workers, args.workers // 2, args.workers)
    timed("its share's size", lambda: largest_share(batch, order.num_samples, args.workers, served))

    def share(step: int) -> None:
        order.locate(worker_positions(step, batch, order.num_samples, args.workers, served))

    timed("the first batch: the epoch's shards laid out, a window shuffled", lambda: share(0))
    timed("the next one", lambda: share(1))
    timed("which shards it reads, and next", lambda: order.ahead(0, served))
    timed("the last batch of the tenth epoch, and into the eleventh", lambda: share(10 * steps_an_epoch + 10))
    set_of_all = SampleSet(uri="/nowhere", identity={}, first_seed=0, num_images=args.images, block_size=512, facts={})
    blocks = timed("which blocks of samples are missing, of as many images", lambda: missing_blocks(set_of_all))
    assert len(blocks) == -(-args.images // 512)
    for step in (0, 12_345 % steps_an_epoch, steps_an_epoch):
        check_deal(order, step, batch, args.workers, range(0, args.workers, max(1, args.workers // 16)))
    print("\nevery position of the batches looked at is dealt once, and to one place")


if __name__ == "__main__":
    main()
