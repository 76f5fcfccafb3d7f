"""Reading: the same images from anywhere, damage told before it is used, and a shared cache of a bounded size."""

import errno
import gc
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex, ShardEntry, index_uri, make_index, read_index, read_rows
from ddpm_core.data import shard_cache
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import decode_png, encode_png
from ddpm_core.data.loader import StreamConfig, TrainingStream
from ddpm_core.data.reader import ImageReader
from ddpm_core.data.shard_cache import LIMIT_VARIABLE, limit_bytes, open_copy
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources.base import ArraySource

NUM_IMAGES, SHARD = 130, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 6, 6, 3), dtype=np.uint8)
STREAM = StreamConfig(batch_size=10, lanes=2, window=2, seed=3)


def make(uri: str, seed: int = 0, num_images: int = NUM_IMAGES) -> DatasetIndex:
    """Images whose label is their place in PIXELS."""
    source = ArraySource(
        images=PIXELS[:num_images],
        labels=np.arange(num_images),
        class_names=tuple(str(number) for number in range(num_images)),
        stem="image",
    )
    config = DataConfig(image_size=6, channels=3, samples_per_shard=SHARD, seed=seed)
    results = [write_shard(plan, source, config, uri) for plan in plan_dataset(num_images, config)]
    return commit_dataset(uri, results, config, source)


@pytest.fixture
def local(tmp_path: Path) -> DatasetIndex:
    return make(str(tmp_path / "dataset"))


@pytest.fixture
def remote(bucket: str) -> DatasetIndex:
    return make(f"s3://{bucket}/dataset")


@pytest.fixture(params=["local", "remote"])
def index(request: pytest.FixtureRequest) -> DatasetIndex:
    found: DatasetIndex = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def stream_of(index: DatasetIndex, cache: Path, keep_bytes: int = 0) -> TrainingStream:
    return TrainingStream(ImageReader(index, "train", cache, keep_bytes=keep_bytes), STREAM, worker=0, num_workers=1)


def copies(cache: Path) -> set[str]:
    """The sha256 of the copies that are there."""
    return {path.name for path in cache.iterdir() if len(path.name) == 64} if cache.is_dir() else set()


def first_image(index: DatasetIndex, cache: Path, shard: int = 0) -> np.ndarray:
    reader = ImageReader(index, "train", cache, keep_bytes=0)
    return reader.images(np.array([shard]), np.array([0])).numpy()


# What is read


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 32, 65])
def test_pixels_are_those_that_pillow_decodes(size: int, channels: int) -> None:
    rng = np.random.default_rng(size)
    noise = rng.integers(0, 256, (size, size, channels), dtype=np.uint8)
    ramp = np.broadcast_to(np.arange(size, dtype=np.uint8)[:, None, None] * 3, (size, size, channels)).copy()
    for pixels in (noise, ramp):
        data = encode_png(pixels)
        with Image.open(io.BytesIO(data)) as image:
            theirs = np.asarray(image).reshape(size, size, channels)
        into = np.full((size, size, channels), 7, dtype=np.uint8)
        for ours in (decode_png(data), decode_png(data, into), into):
            assert (ours.dtype, ours.shape) == (np.uint8, (size, size, channels))
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(ours, pixels)


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_a_stream_serves_each_image_with_its_label(index: DatasetIndex, cache: Path, keep_bytes: int) -> None:
    stream = stream_of(index, cache, keep_bytes)
    num_samples = index.num_samples("train")
    steps = 2 * num_samples // STREAM.batch_size
    seen = []
    for step, batch in enumerate(stream.read_ahead(0, steps)):
        for ours, alone in zip(batch, stream_of(index, cache).batch(step), strict=True):
            assert (ours == alone).all()
        labels = batch.labels.numpy()
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), PIXELS[labels])
        seen += labels.tolist()
    assert len(set(seen[:num_samples])) == num_samples


def test_a_worker_computes_its_share_and_no_more(local: DatasetIndex, cache: Path) -> None:
    """A share of none is one row that weighs nothing."""
    config, seen = StreamConfig(batch_size=3, lanes=8, window=2, seed=3), set[int]()
    streams = [
        TrainingStream(ImageReader(local, "train", cache), config, worker=worker, num_workers=4) for worker in range(4)
    ]
    for step in range(2 * local.num_samples("train") // config.batch_size):
        shares = [stream.batch(step) for stream in streams]
        sizes = [int(share.weights.sum()) for share in shares]
        assert sum(sizes) == config.batch_size
        assert [len(share.images) for share in shares] == [max(size, 1) for size in sizes]
        assert all(size <= stream.largest_share for size, stream in zip(sizes, streams, strict=True))
        seen |= set(sizes)
    assert seen >= {0, 1, 2}


def test_kept_images_are_read_once(local: DatasetIndex, cache: Path) -> None:
    stream = stream_of(local, cache, keep_bytes=1 << 20)
    steps = range(-(-local.num_samples("train") // STREAM.batch_size))
    first = [stream.batch(step) for step in steps]
    for path in Path(local.uri).glob("*"):
        path.unlink()
    gc.collect()
    for step in steps:
        for again, before in zip(stream.batch(step), first[step], strict=True):
            assert (again == before).all()


# Damage


def rewrite(index: DatasetIndex, number: int, change: Callable[[bytes], bytes]) -> str:
    """Change a shard as it lies; returns its URI."""
    uri = storage.join(index.uri, index.shards[number].name)
    storage.write_bytes(uri, change(storage.read_bytes(uri)))
    return uri


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_flipped_bit(index: DatasetIndex, cache: Path) -> None:
    row = read_rows(index, 0).to_pylist()[0]
    uri = rewrite(index, 0, flip(row["offset"] + row["size"] // 2))
    with pytest.raises(ValueError, match="the index says") as error:
        first_image(index, cache)
    message = one_line(error)
    assert uri in message
    expected = index.shards[0].sha256 if storage.is_s3(uri) else "row 0: crc32 is 0x"
    assert expected in message
    assert storage.is_s3(uri) or f"{row['crc32']:#010x}" in message
    assert not copies(cache)


def test_a_flipped_bit_in_a_copy(remote: DatasetIndex, cache: Path) -> None:
    first_image(remote, cache)
    row = read_rows(remote, 0).to_pylist()[0]
    copy = cache / remote.shards[0].sha256
    copy.write_bytes(flip(row["offset"] + 40)(copy.read_bytes()))
    with pytest.raises(ValueError, match=f"row 0: crc32 is 0x.*delete its copy {copy}") as error:
        first_image(remote, cache)
    one_line(error)
    copy.unlink()
    first_image(remote, cache)


@pytest.mark.parametrize("change", [lambda data: data[:-512], lambda data: data + bytes(512)], ids=["short", "long"])
def test_a_shard_of_another_size(index: DatasetIndex, cache: Path, change: Callable[[bytes], bytes]) -> None:
    """Cut short, or one that the index does not describe."""
    uri = rewrite(index, 1, change)
    size = index.shards[1].size_bytes
    found = len(change(bytes(size)))
    with pytest.raises(ValueError, match=f"{uri}: it has {found} bytes, the index says {size}") as error:
        first_image(index, cache, 1)
    one_line(error)
    assert not copies(cache)


def test_a_shard_cut_short_while_it_is_open(local: DatasetIndex, cache: Path) -> None:
    reader = ImageReader(local, "train", cache, keep_bytes=0)
    last = np.array([SHARD - 1])
    reader.images(np.array([0]), last)
    os.truncate(Path(local.uri) / local.shards[0].name, 1024)
    with pytest.raises(ValueError, match=f"row {SHARD - 1}: crc32 is 0x00000000, the index says"):
        reader.images(np.array([0]), last)


def test_a_missing_shard(index: DatasetIndex, cache: Path) -> None:
    uri = storage.join(index.uri, index.shards[2].name)
    storage.delete(uri)
    first_image(index, cache, 1)
    expected = f"{uri}: there is no such file, the index says {index.shards[2].size_bytes} bytes"
    with pytest.raises(FileNotFoundError, match=expected) as error:
        first_image(index, cache, 2)
    one_line(error)


def test_a_missing_shard_is_told_when_training_gets_there(
    local: DatasetIndex, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = stream_of(local, cache)
    following = stream.order.ahead(0, stream.served).shards[-1]
    (Path(local.uri) / local.shards[following].name).unlink()
    batches = stream.read_ahead(0, 100)
    next(batches)
    with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError, match="there is no such file"):
        list(batches)
    assert "tried again when the training gets there" in caplog.text


def test_an_index_replaced_under_a_process(index: DatasetIndex, cache: Path) -> None:
    """Of the same shards' names and sizes, even."""
    other = make(index.uri, seed=1)
    assert [shard.name for shard in other.shards] == [shard.name for shard in index.shards]
    expected = f"has digest {other.digest}, this process began with {index.digest}"
    with pytest.raises(ValueError, match=expected) as error:
        first_image(index, cache)
    one_line(error)


def edited(index: DatasetIndex, number: int, **changes: object) -> DatasetIndex:
    """An index that describes one shard otherwise, over the same rows."""
    entries = list(index.shards)
    entries[number] = ShardEntry(**{**vars(entries[number]), **changes})
    names = ("image_size", "channels", "class_names", "num_rejected")
    made = make_index(index.uri, shards=entries, **{name: getattr(index, name) for name in names})
    path = Path(index_uri(index.uri))
    table = pq.read_table(path)
    described = {**json.loads(table.schema.metadata[b"ddpm"]), "digest": made.digest}
    schema = table.schema.with_metadata({b"ddpm": json.dumps(described).encode()})
    groups = [read_rows(index, place) for place in range(len(entries))]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in groups:
            writer.write_table(rows.cast(schema))
    return made


@pytest.mark.parametrize("changes", [{"num_samples": SHARD - 1}, {"size_bytes": 2048}])
def test_rows_that_do_not_fit_the_shard(local: DatasetIndex, cache: Path, changes: dict[str, int]) -> None:
    index = edited(local, 0, **changes)
    with pytest.raises(ValueError, match=f"has {SHARD} rows for shard-000000.tar, up to byte .*; expected ") as error:
        first_image(index, cache)
    one_line(error)


def test_a_damaged_index(local: DatasetIndex, cache: Path) -> None:
    path = Path(index_uri(local.uri))
    column = pq.read_metadata(path).row_group(0).column(2)
    assert column.path_in_schema == "offset"
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    assert read_index(local.uri) == local  # the damage is in the rows alone
    with pytest.raises(ValueError, match=f"{path} is damaged") as error:
        first_image(local, cache)
    one_line(error)


# What is open


def test_only_shards_of_present_and_next_windows_are_open(local: DatasetIndex, cache: Path) -> None:
    stream = stream_of(local, cache)
    folder = str(Path(local.uri).resolve())

    def opened() -> set[str]:
        links = []
        for entry in os.scandir("/proc/self/fd"):
            try:
                links.append(os.readlink(entry.path))
            except FileNotFoundError:
                continue  # the listing's own
        return {Path(link).name for link in links if link.startswith(folder) and link.endswith(".tar")}

    all_seen = set()
    ahead = stream.order.ahead(0, stream.served)
    for step in range(2 * local.num_samples("train") // STREAM.batch_size):
        batch = stream.batch(step)
        if step * STREAM.batch_size >= ahead.until:
            ahead = stream.order.ahead(step * STREAM.batch_size, stream.served)
        read = stream.order.locate(
            batch.positions.numpy()
        ).shard  # which may lie beyond, where windows end within a batch
        wanted = {local.shards[number].name for number in [*ahead.shards, *read.tolist()]}
        assert len(wanted) < len(stream.order.shard_sizes)
        assert opened() <= wanted
        all_seen |= opened()
    assert len(all_seen) == len(stream.order.shard_sizes)
    del stream
    gc.collect()
    assert not opened()


def test_the_next_windows_are_fetched_before_the_stream_gets_there(remote: DatasetIndex, cache: Path) -> None:
    stream = stream_of(remote, cache)
    present = stream.order.ahead(0, stream.served)
    assert present.until > 2 * STREAM.batch_size
    batches = stream.read_ahead(0, 1000, depth=1)
    next(batches)  # one more is ready, and one waits for its place: all of the first windows
    wanted = {remote.shards[number].sha256 for number in present.shards}
    until = time.monotonic() + 20
    while not wanted <= copies(cache) and time.monotonic() < until:
        time.sleep(0.02)
    assert copies(cache) == wanted
    assert len(wanted) < len(stream.order.shard_sizes)
    batches.close()


# The cache


def put(bucket: str, number: int, size: int = 1000) -> dict[str, object]:
    """A file of random bytes, and how open_copy is asked for it."""
    data = np.random.default_rng(number).bytes(size)
    uri = f"s3://{bucket}/{number}"
    storage.write_bytes(uri, data)
    return {"uri": uri, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": size}


def fetch(asked: dict[str, object], cache: Path) -> None:
    """Have a copy and use it no longer."""
    os.close(open_copy(**asked, folder=cache))  # type: ignore[arg-type]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that this process downloads."""
    found: list[str] = []
    real = storage.download

    def download(uri: str, path: Path | str) -> None:
        found.append(uri)
        real(uri, path)

    monkeypatch.setattr(storage, "download", download)
    return found


def test_the_least_recently_opened_goes_first(
    bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "3500")
    files = [put(bucket, number) for number in range(5)]
    for number in (0, 1, 2, 0, 3):  # 0 was opened again, so that 1 is the oldest
        fetch(files[number], cache)
    assert copies(cache) == {files[number]["sha256"] for number in (0, 2, 3)}
    fetch(files[4], cache)
    assert copies(cache) == {files[number]["sha256"] for number in (0, 3, 4)}
    assert len(downloads) == 5
    assert not [path for path in cache.iterdir() if len(path.name) != 64]  # no lock, nothing half-way
    monkeypatch.setenv(LIMIT_VARIABLE, "1000")
    fetch(files[1], cache)
    assert copies(cache) == {files[1]["sha256"]}


def test_without_a_limit_of_ones_own_it_is_50_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    assert limit_bytes() == 50 * 10**9


@pytest.mark.parametrize("text", ["0", "-1", "50GB", "1e9", ""])
def test_a_limit_that_is_no_number_of_bytes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(ValueError, match=f"{LIMIT_VARIABLE} is '{text}'; expected a whole number of bytes"):
        limit_bytes()


HOLD = """
import os, sys
from pathlib import Path
from ddpm_core import storage
from ddpm_core.data.shard_cache import open_copy
real = storage.download
def download(uri, path):
    with open(sys.argv[5], "a") as file:
        file.write(uri + "\\n")
    real(uri, path)
storage.download = download
print("ready", flush=True)
sys.stdin.readline()
file = open_copy(sys.argv[1], sha256=sys.argv[2], size_bytes=int(sys.argv[3]), folder=Path(sys.argv[4]))
print("open", flush=True)
sys.stdin.readline()
print(len(os.pread(file, 10**6, 0)), flush=True)
"""


def another_process(asked: dict[str, object], cache: Path, log: Path) -> subprocess.Popen[str]:
    """Opens the copy on a first line, reads it on a second."""
    arguments = [str(asked[name]) for name in ("uri", "sha256", "size_bytes")]
    command = [sys.executable, "-c", HOLD, *arguments, str(cache), str(log)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_download_once_and_no_copy_in_use_is_deleted(
    bucket: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    downloads: list[str],
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "1500000")
    used, other, third = (put(bucket, number, 1_000_000) for number in range(3))
    processes = [another_process(used, cache, tmp_path / "log") for _ in range(3)]
    assert [hear(process) for process in processes] == ["ready"] * 3
    for process in processes:
        say(process)
    assert [hear(process) for process in processes] == ["open"] * 3
    assert (tmp_path / "log").read_text() == f"{used['uri']}\n"
    shard_cache._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        for asked in (other, third, other, third):
            fetch(asked, cache)
            assert copies(cache) == {used["sha256"], asked["sha256"]}
    assert caplog.text.count(f"exceed {LIMIT_VARIABLE} = 1,500,000") == 1
    fetch(used, cache)  # still there: nobody downloads it again
    assert str(used["uri"]) not in downloads
    for process in processes:
        process.send_signal(signal.SIGKILL)  # a lock ends with its process
        process.communicate()
    fetch(other, cache)
    assert copies(cache) == {other["sha256"]}


def test_who_downloads_a_copy_uses_it_from_then_on(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "1500")
    used, other = put(bucket, 0), put(bucket, 1)
    file = open_copy(**used, folder=cache)  # type: ignore[arg-type]
    fetch(other, cache)
    assert copies(cache) == {used["sha256"], other["sha256"]}
    os.close(file)
    fetch(put(bucket, 2), cache)
    assert used["sha256"] not in copies(cache)


def test_a_copy_deleted_by_hand_is_read_on_and_fetched_anew(bucket: str, cache: Path, downloads: list[str]) -> None:
    asked = put(bucket, 0)
    file = open_copy(**asked, folder=cache)  # type: ignore[arg-type]
    (cache / str(asked["sha256"])).unlink()
    fetch(asked, cache)
    assert os.pread(file, 2000, 0) == storage.read_bytes(str(asked["uri"]))
    assert len(downloads) == 2
    os.close(file)


def test_threads_download_once(bucket: str, cache: Path, downloads: list[str]) -> None:
    asked = put(bucket, 0, 3_000_000)
    together = threading.Barrier(6)

    def open_it() -> None:
        together.wait()
        fetch(asked, cache)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads == [asked["uri"]]


def test_what_a_killed_process_left_is_in_nobodys_way(bucket: str, cache: Path, downloads: list[str]) -> None:
    here, gone = put(bucket, 0), put(bucket, 1)
    for asked in (here, gone):  # as they lie after a kill -9 in the middle of a download
        aside = cache / f"{asked['sha256']}.arriving" / ".tmp-x"
        aside.mkdir(parents=True)
        (aside / "download").write_bytes(bytes(500))
        (cache / f"{asked['sha256']}.lock").touch()
    fetch(here, cache)
    assert {path.name for path in cache.iterdir()} == {here["sha256"]}


def test_a_torn_copy_is_fetched_anew(bucket: str, cache: Path, downloads: list[str]) -> None:
    asked = put(bucket, 0)
    fetch(asked, cache)
    os.truncate(cache / str(asked["sha256"]), 10)
    fetch(asked, cache)
    assert (cache / str(asked["sha256"])).read_bytes() == storage.read_bytes(str(asked["uri"]))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(uri: str, path: Path | str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage, "download", full)
    asked = put(bucket, 0)
    with pytest.raises(
        storage.StorageError, match=f"{asked['uri']}: the disk of the shard cache {cache} is full"
    ) as error:
        fetch(asked, cache)
    assert "the shard has 1,000" in one_line(error)
    assert not list(cache.iterdir())


def test_copies_make_way_on_a_full_disk(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit may lie above what the disk has."""
    files = [put(bucket, number) for number in range(3)]
    fetch(files[0], cache)
    fetch(files[1], cache)
    usage = shard_cache.shutil.disk_usage(cache)
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda folder: usage._replace(free=500))
    fetch(files[2], cache)
    assert copies(cache) == {files[1]["sha256"], files[2]["sha256"]}
