"""What reading costs: images/s of the training stream beside plain WebDataset on the same shards, and the start in a large dataset.

    nice .venv/bin/python tests/benchmarks/reading.py --rounds 5
    nice .venv/bin/python tests/benchmarks/reading.py --source cifar10_jpeg.tar.gz

All readers run on one and the same core, S3's server (moto) on the others, and take turns, so that a busy machine slows all
alike; medians over the rounds. Beside them the time that the processor spent, which a busy machine changes less. WebDataset
reads shard by shard without a shuffle and without loader workers; the stream reads in its training order and checks every
image's crc32. `cold` begins without a local copy.
"""

import argparse
import logging
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import torch
import webdataset
from moto.server import ThreadedMotoServer

from ddpm_core import storage
from ddpm_core.artifacts.manifest import (
    DatasetIndex,
    ShardEntry,
    index_uri,
    make_index,
    read_index,
    read_rows,
    write_index,
)
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import decode_png
from ddpm_core.data.loader import StreamConfig, TrainingStream
from ddpm_core.data.reader import ImageReader
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources import Source, open_source
from ddpm_core.data.sources.base import ArraySource

BATCH, LANES, WINDOW = 128, 8, 8
BUCKET = "shards"


def drawn(num_images: int) -> Source:
    """Colour images of 32 pixels, smooth with some grain, whose PNGs are about as large as CIFAR-10's (2.2 kB)."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(128, 50, (num_images, 3, 5, 5)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").permute(0, 2, 3, 1).numpy()
    grain = rng.normal(0, 6, (num_images, 32, 32, 1)) + rng.normal(0, 2, (num_images, 32, 32, 3))
    images = (smooth + grain).clip(0, 255).astype(np.uint8)
    labels = np.arange(num_images) % 10
    return ArraySource(images=images, labels=labels, class_names=tuple("0123456789"), stem="drawn")


def sharded(source: Source, uri: str, samples_per_shard: int) -> DatasetIndex:
    """A dataset of the source's images; all but a few are training images."""
    config = DataConfig(
        image_size=32, channels=3, samples_per_shard=samples_per_shard, test_fraction=0.0, validation_fraction=0.0
    )
    results = [write_shard(plan, source, config, uri) for plan in plan_dataset(source.num_images, config)]
    return commit_dataset(uri, results, config, source)


def stream_of(index: DatasetIndex, cache: Path, keep_bytes: int = 0) -> TrainingStream:
    reader = ImageReader(index, "train", cache, keep_bytes=keep_bytes)
    config = StreamConfig(batch_size=BATCH, lanes=LANES, window=WINDOW, seed=0)
    return TrainingStream(reader, config, worker=0, num_workers=1)


def read_epoch(stream: TrainingStream) -> int:
    """Read every full batch of an epoch, as training does; returns the number of images."""
    steps = stream.order.num_samples // BATCH
    return sum(len(batch.images) for batch in stream.read_ahead(0, steps))


def plain(urls: list[str], *, decode: bool = True, with_ours: bool = False) -> int:
    """WebDataset, sample after sample."""
    samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    if with_ours:
        samples = samples.map(lambda sample: (decode_png(sample["png"]), int(sample["cls"])))
    elif decode:
        samples = samples.decode("rgb8")
    return sum(1 for _ in samples)


def serve(told: Any, cores: set[int]) -> None:
    """An S3 server of its own process."""
    os.sched_setaffinity(0, cores)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    told.send("http://{}:{}".format(*server.get_host_and_port()))
    told.recv()


def peak_mib() -> float:
    """The most memory that this process has had at once."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def start_in(uri: str, share: float) -> tuple[float, float, float, float]:
    """In a fresh process: until the first batch stands, from `share` of an epoch on.

    Returns:
        Seconds by the clock, and of the processor; MiB before, and at the peak.
    """
    torch.set_num_threads(1)
    before = peak_mib()
    began, spent = time.perf_counter(), time.process_time()
    index = read_index(uri)
    stream = stream_of(index, Path(uri) / "cache")
    first = int(share * stream.order.num_samples) // BATCH
    batch = next(stream.read_ahead(first, first + 1))
    assert len(batch.images) == BATCH
    return time.perf_counter() - began, time.process_time() - spent, before, peak_mib()


def many_shards(index: DatasetIndex, folder: Path, num_shards: int) -> DatasetIndex:
    """A dataset whose shards are all one file, under so many names."""
    rows, one = read_rows(index, 0), index.shards[0]
    entries = []
    for number in range(num_shards):
        name = f"shard-{number:06d}.tar"
        (folder / name).symlink_to(Path(index.uri) / one.name)
        entries.append(ShardEntry(**{**vars(one), "name": name}))
    column = rows.schema.get_field_index("shard")
    numbered = (
        rows.set_column(column, "shard", pa.array(np.full(len(rows), number, dtype=np.int32)))
        for number in range(num_shards)
    )
    made = make_index(
        str(folder), image_size=32, channels=3, class_names=index.class_names, shards=entries, num_rejected=0
    )
    write_index(made, list(numbered))
    return made


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of reading all images."""

    name: str
    read: Callable[[], int]


def cases(folder: Path, source: Source, samples_per_shard: int, endpoint: str) -> list[Case]:
    """The ways that take turns; the first one is what the others are compared with."""
    local, remote = str(folder / "local"), f"s3://{BUCKET}/dataset"
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    index = sharded(source, local, samples_per_shard)
    for uri, _ in storage.list_files(local):
        storage.upload(uri, storage.join(remote, Path(uri).name))
    there = read_index(remote)
    names = [shard.name for shard in index.shards if shard.split == "train"]
    files = [f"{local}/{name}" for name in names]
    keys = [{"Bucket": BUCKET, "Key": f"dataset/{name}"} for name in names]
    urls = [f"pipe:curl -sf '{client.generate_presigned_url('get_object', Params=key)}'" for key in keys]
    size = statistics.mean(shard.size_bytes / shard.num_samples for shard in index.shards)
    print(f"{index.num_samples('train'):,} images in {len(names)} shards, {size:,.0f} bytes of tar an image")
    kept = stream_of(index, folder, keep_bytes=1 << 30)
    read_epoch(kept)
    copies = folder / "copies"
    read_epoch(stream_of(there, copies))
    caches = (folder / f"cache-{number}" for number in count())

    def cold() -> int:
        cache = next(caches)
        read = read_epoch(stream_of(there, cache))
        shutil.rmtree(cache)
        return read

    return [
        Case(name='WebDataset, decode("rgb8"), local', read=lambda: plain(files)),
        Case(name="WebDataset, our decoder, local", read=lambda: plain(files, with_ours=True)),
        Case(name="WebDataset, undecoded, local", read=lambda: plain(files, decode=False)),
        Case(name="stream, local", read=lambda: read_epoch(stream_of(index, folder))),
        Case(name="stream, images kept from an epoch before", read=lambda: read_epoch(kept)),
        Case(name='WebDataset, decode("rgb8"), S3 by curl', read=lambda: plain(urls)),
        Case(name="stream, S3, cold", read=cold),
        Case(name="stream, S3, copies there", read=lambda: read_epoch(stream_of(there, copies))),
    ]


def compare(ways: list[Case], num_rounds: int) -> None:
    """Let the ways take turns and print a row for each."""
    rounds: dict[str, list[tuple[float, float]]] = {case.name: [] for case in ways}
    for _ in range(num_rounds):
        for case in ways:
            began, spent = time.perf_counter(), sum(os.times()[:4])  # programs that a reader starts included
            read = case.read()
            took, spent = time.perf_counter() - began, sum(os.times()[:4]) - spent
            rounds[case.name].append((read / took, spent / read * 1e6))
    medians = {case: [statistics.median(kind) for kind in zip(*found, strict=True)] for case, found in rounds.items()}
    speed, cost = medians[ways[0].name]
    print(f"\n| reader, one core, {num_rounds} rounds | images/s | | processor, us an image | |")
    print("|---|---|---|---|---|")
    for case, (median, spent) in medians.items():
        print(f"| {case} | {median:,.0f} | x {median / speed:.1f} | {spent:.1f} | {cost / spent:.1f} times less |")


def start_large(folder: Path, num_shards: int, num_rounds: int) -> None:
    """Start in a dataset of so many shards of 10,000 images and print what it took."""
    (folder / "large").mkdir()
    large = many_shards(sharded(drawn(10_011), str(folder / "one"), 10_000), folder / "large", num_shards)
    size = storage.size_bytes(index_uri(large.uri)) / 1e6
    print(f"\n| first batch of {large.num_samples('train'):,} images | s | processor, s | memory, MiB |")
    print("|---|---|---|---|")
    for share, what in ((0.0, "start of an epoch"), (0.9, "resumed at 90% of an epoch")):
        found = []
        for _ in range(num_rounds):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found.append(pool.submit(start_in, large.uri, share).result())
        took, spent, before, peak = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {what} | {took:.2f} | {spent:.2f} | {peak:,.0f}, of which {peak - before:,.0f} for this |")
    print(f"\nindex.parquet has {size:.0f} MB, {num_shards:,} row groups.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="raw images; by default they are drawn")
    parser.add_argument("--num-images", type=int, default=20_000, help="to draw")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--num-shards", type=int, default=1400, help="of the large dataset")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fresh = multiprocessing.get_context("spawn")
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1")
    ours, theirs = fresh.Pipe()
    server = fresh.Process(target=serve, args=(theirs, os.sched_getaffinity(0) - {given.core}), daemon=True)
    server.start()
    os.environ["AWS_ENDPOINT_URL_S3"] = endpoint = ours.recv()
    with tempfile.TemporaryDirectory(prefix="reading-") as name:
        source = open_source(given.source) if given.source else drawn(given.num_images)
        ways = cases(Path(name), source, given.samples_per_shard, endpoint)
        os.sched_setaffinity(0, {given.core})
        compare(ways, given.rounds)
        ours.send("done")
        server.join()
        start_large(Path(name), given.num_shards, given.rounds)


if __name__ == "__main__":
    main()
