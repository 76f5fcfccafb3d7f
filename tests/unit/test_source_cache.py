"""The cache of sources keeps to its limit and to the disk, never deletes what a process uses, and says what it lacks."""

import errno
import fcntl
import gzip
import io
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import boto3
import numpy as np
import pytest

from ddpm_core.data.images import encode_png
from ddpm_core.data.shard_cache import open_copy
from ddpm_core.data.sources import cache as source_cache
from ddpm_core.data.sources import open_source, tar
from ddpm_core.data.sources.cache import LIMIT_VARIABLE, cached, fetched
from ddpm_core.data.sources.packing import unpacked
from ddpm_core.storage import StorageError


@pytest.fixture(autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(folder / name))
    return folder / "ddpm" / "sources"


def filled(num_bytes: int) -> Callable[[Path], None]:
    return lambda folder: (folder / "data").write_bytes(bytes(num_bytes)) and None


def forget() -> None:
    """As if another process had made what is there: its locks end with it."""
    for lock in source_cache._held.values():
        os.close(lock)
    source_cache._held.clear()


def age(folder: Path, seconds: int) -> None:
    os.utime(folder / ".in-use", (seconds, seconds))


def entries(root: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in root.iterdir())


def test_the_least_recently_used_are_deleted_beyond_the_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "350")
    for number, kind in enumerate("abc"):
        age(cached(kind, "x", filled(100)), number)
    forget()
    cached("a", "x", filled(100))  # now used last, as b is no more
    forget()
    cached("d", "x", filled(100))
    assert entries(root) == ["a", "c", "d"]


def test_what_a_process_uses_is_not_deleted_and_the_excess_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "150")
    age(cached("a", "x", filled(100)), 0)
    assert caplog.text == ""
    cached("b", "x", filled(100))
    cached("c", "x", filled(10))
    assert entries(root) == ["a", "b", "c"]
    assert [record.getMessage() for record in caplog.records] == [
        f"the sources in use alone exceed DDPM_SOURCE_CACHE_BYTES = 150 in {root}"
    ]


def test_the_lock_of_a_process_ends_with_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "150")
    folder = cached("a", "x", filled(100))
    forget()
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".in-use")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        cached("b", "x", filled(100))
        assert entries(root) == ["a", "b"]
        other.communicate(b"\n")
    cached("c", "x", filled(10))
    assert entries(root) == ["b", "c"]


def test_one_that_was_deleted_is_made_again(root: Path) -> None:
    folder = cached("a", "x", filled(1))
    shutil.rmtree(root)
    assert cached("a", "x", filled(2)) == folder
    assert (folder / "data").stat().st_size == 2


def test_who_waits_for_an_entry_that_is_being_deleted_makes_it_anew(root: Path) -> None:
    folder = cached("a", "x", filled(1))
    forget()
    lock = os.open(folder / ".in-use", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made: list[Path] = []
    waiting = threading.Thread(target=lambda: made.append(cached("a", "x", filled(2))))
    waiting.start()
    waiting.join(0.2)
    assert made == []
    shutil.rmtree(folder)
    os.close(lock)
    waiting.join()
    assert (made[0] / "data").stat().st_size == 2


def test_what_a_killed_process_left_is_removed(root: Path) -> None:
    for name in ("fetched-0123.arriving", ".tmp-0123"):
        (root / name).mkdir(parents=True)
    cached("a", "x", filled(1))
    assert entries(root) == ["a"]


def _make_slowly(root: str, made: "multiprocessing.Queue[int]") -> None:
    import platformdirs

    platformdirs.user_cache_dir = lambda name: root  # type: ignore[assignment, misc]

    def make(folder: Path) -> None:
        made.put(1)
        (folder / "data").write_bytes(b"1")

    cached("a", "x", make)


def test_processes_that_want_the_same_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    made = context.Queue()
    others = [context.Process(target=_make_slowly, args=(str(tmp_path), made)) for _ in range(4)]
    for each in others:
        each.start()
    for each in others:
        each.join()
    assert [each.exitcode for each in others] == [0] * 4
    assert made.get(timeout=5) == 1
    assert made.empty()


class Usage(NamedTuple):
    """As of shutil.disk_usage."""

    total: int
    used: int
    free: int


@pytest.fixture
def disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A disk of 100 MB, on which nothing else lies than the cache."""
    size = 100_000_000

    def usage(path: Path) -> Usage:
        used = sum(each.stat().st_size for each in root.rglob("*") if each.is_file())
        return Usage(size, used, size - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return size


def test_a_bomb_is_stopped_before_the_disk_is_full_and_leaves_nothing(tmp_path: Path, root: Path, disk: int) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(disk >> 20):
            file.write(bytes(1 << 20))
    with pytest.raises(StorageError, match=r"bomb\.gz unpacks to more than 94\.\d MB, and the disk") as error:
        unpacked(path)
    assert "\n" not in str(error.value)
    assert entries(root) == []


def test_old_entries_make_room_on_the_disk(tmp_path: Path, root: Path, disk: int) -> None:
    age(cached("a", "x", filled(60_000_000)), 0)
    forget()
    path = tmp_path / "large.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(50):
            file.write(bytes(1 << 20))
    assert unpacked(path).stat().st_size == 50 << 20
    assert entries(root) == ["unpacked"]


def _full(folder: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _read_only(folder: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system", str(folder / "data"))


@pytest.mark.parametrize(
    ("make", "told"),
    [(_full, r"the disk of the cache .* is full: .* set XDG_CACHE_HOME"), (_read_only, "cannot write")],
)
def test_a_disk_that_takes_nothing_is_told_in_a_line(root: Path, make: Callable[[Path], None], told: str) -> None:
    with pytest.raises(StorageError, match=told) as error:
        cached("a", "x", make)
    assert "\n" not in str(error.value)
    assert entries(root) == []


def _file_in_the_way(folder: Path) -> Path:
    (folder / "file").write_bytes(b"")
    return folder / "file" / "below"


@pytest.fixture(params=[lambda folder: Path("/proc/none"), _file_in_the_way], ids=["proc", "file"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that not even root can make."""
    folder: Path = request.param(tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(folder / name))
    return folder


def test_a_cache_that_cannot_be_made_is_told_in_a_line(tmp_path: Path, unwritable: Path) -> None:
    path = tmp_path / "packed.gz"
    path.write_bytes(gzip.compress(b"1"))
    with pytest.raises(
        StorageError, match=f"cannot write to the cache {unwritable}/ddpm/sources: .*set XDG_CACHE_HOME"
    ):
        unpacked(path)


def test_nor_can_a_cache_of_shards(unwritable: Path) -> None:
    folder = unwritable / "shards"
    with pytest.raises(StorageError, match=f"cannot write to the shard cache {folder}: .*set XDG_CACHE_HOME"):
        open_copy("s3://bucket/shard", sha256="0" * 64, size_bytes=1, folder=folder)


def _tar(path: Path, mode: str) -> Path:
    picture = encode_png(np.zeros((8, 8, 1), np.uint8))
    with tarfile.open(path, mode) as archive:
        for name in ("cat/1.png", "dog/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
    return path


def test_a_plain_tar_is_read_without_a_cache(tmp_path: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(_tar(tmp_path / "images.tar", "w")))
    assert source.class_names == ("cat", "dog")
    assert source.read(1).label == 1
    monkeypatch.setattr(tar, "_places", None)  # it is walked once
    open_source(str(tmp_path / "images.tar"))


def test_a_packed_tar_needs_the_cache(tmp_path: Path, unwritable: Path) -> None:
    with pytest.raises(StorageError, match="cannot write to the cache"):
        open_source(str(_tar(tmp_path / "images.tar.gz", "w:gz")))


@pytest.fixture
def uri(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of 3 MB on S3."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ENDPOINT_URL_S3": endpoint}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="large-sources")
    client.put_object(Bucket="large-sources", Key="large.tar", Body=bytes(3_000_000))
    return "s3://large-sources/large.tar"


@pytest.mark.parametrize(("large", "num_lines"), [(2_999_999, 1), (3_000_000, 0)])
def test_what_is_large_is_told_before_it_is_fetched(
    uri: str, large: int, num_lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source_cache, "_LARGE_BYTES", large)
    with caplog.at_level(logging.WARNING, source_cache.__name__):
        assert fetched(uri).stat().st_size == fetched(uri).stat().st_size == 3_000_000
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(" into the cache ")[0] for line in told] == [
        "fetching s3://large-sources/large.tar (3.0 MB)"
    ] * num_lines


def test_what_the_disk_cannot_hold_is_not_fetched(uri: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100_000_000, 97_000_000, 3_000_000))
    with pytest.raises(
        StorageError, match=r"s3://large-sources/large\.tar takes 3\.0 MB, and the disk .* has 3\.0 MB left, of which"
    ):
        fetched(uri)
    assert entries(root) == []


@pytest.mark.parametrize("value", ["0", "-1", "1e9", ""])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, value)
    with pytest.raises(ValueError, match=f"DDPM_SOURCE_CACHE_BYTES is '{value}'; expected a whole number of bytes"):
        cached("a", "x", filled(1))
