"""What a folder or a bucket lists is found again under exactly that name, and what is no file is told."""

import itertools
import json
import os
import socket
import subprocess
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from ddpm_core import storage
from ddpm_core.storage import s3_client

ANYWHERE = [
    *(
        "plain.png",
        "a b.png",
        " b ",
        "a+b.png",
        "50%.png",
        "a%2Fb.png",
        "%2e%2e",
        "a?b=c&d.png",
        "#1.png",
        "a;b",
        "~",
        "~root",
    ),
    *("é.png", "e\u0301.png", "日本/語.png", "🐈.png", "a\nb.png", "a\tb", "a\rb", "\x01", "\x7f", "\u202e.png"),
    *("a\\b.png", "a'b", 'a"b', "a&amp;b<c>", "a:b", "s3:/x", "*", "[a]", "{b}", "...", "a..b", ".hidden", "-f"),
]
ON_S3 = [
    "/a.png",
    "//a.png",
    "a//b.png",
    "a///b",
    "//",
    "x/./y",
    "x/../y",
    "..",
    "../up",
    ".",
    "./here",
    "a/..b/c",
    "a/b ",
]
ON_DISK = ["caf\udce9.png", "\udcff/\udcfe", "é\udcc3"]


def _names(base: str) -> list[str]:
    return sorted(entry.name for entry in storage.walk(base))


def _found_again(base: str, name: str, data: bytes) -> None:
    uri = storage.below(base, name)
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == data
    assert storage.size_bytes(uri) == len(data)
    assert storage.read_range(uri, 1, 2) == data[1:3]
    with storage.open_read(uri) as file:
        assert file.read() == data
    assert len(storage.fingerprint(uri)) == 64
    assert list(storage.read_many([uri, (uri, 1, 2)])) == [data, data[1:3]]


@pytest.mark.parametrize("prefix", ["", "data/", "my%2Fdata/", "//data/", "a b?#+/"])
def test_what_a_bucket_lists_is_found_under_that_name(bucket: str, prefix: str) -> None:
    base = f"s3://{bucket}/{prefix}".removesuffix("/")
    some = {"plain.png", "/a.png", "a//b.png", "a%2Fb.png", "a b"}
    names = sorted(
        {*ANYWHERE, *ON_S3} - {"a\nb.png", "//"} if prefix == "data/" else some
    )  # a line break is beyond moto
    for name in names:
        s3_client.client().put_object(Bucket=bucket, Key=prefix + name, Body=name.encode() + b"...")
    assert _names(base) == names
    for name in names:
        _found_again(base, name, name.encode() + b"...")
    for name in names:
        moved = storage.below(base, f"moved/{name}")
        storage.move(storage.below(base, name), moved)
        assert storage.read_bytes(moved) == name.encode() + b"..."
        storage.delete(moved)
    assert _names(base) == []


def test_what_a_folder_lists_is_found_under_that_name(tmp_path: Path) -> None:
    base, names = str(tmp_path / "data #1?%2F"), sorted([*ANYWHERE, *ON_DISK])
    for name in names:
        path = Path(base) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name) + b"...")
    assert _names(base) == names
    assert [uri for uri, _ in storage.list_files(base)] == [f"{base}/{name}" for name in names]
    assert len(storage.fingerprint(base)) == 64
    for name in names:
        _found_again(base, name, os.fsencode(name) + b"...")
        storage.move(storage.below(base, name), storage.below(base, f"moved/{name}"))
        storage.delete(storage.below(base, f"moved/{name}"))
    assert _names(base) == []


def test_a_printable_name_is_one_line_of_utf8_and_no_other_name_has_it() -> None:
    names = [*ANYWHERE, *ON_S3, *ON_DISK, "\\udcff", "\\\\udcff", "\udcff", "\\n", "\n", "\\\n"]
    shown = [storage.printable(name) for name in names]
    assert len(set(shown)) == len(set(names))
    assert all(name.encode().decode().isprintable() for name in shown)
    assert json.loads(json.dumps(shown)) == pa.array(shown, pa.string()).to_pylist() == shown
    assert storage.printable("plain é 日本.png") == "plain é 日本.png"
    assert storage.printable("caf\udce9\n") == r"caf\udce9\n"


def test_what_is_no_file_is_told_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "real/deep/file").write_bytes(b"123")
    (tmp_path / "linked-file").symlink_to("real/deep/file")
    (tmp_path / "linked-folder").symlink_to("real")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "real/up").symlink_to("..")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        found = {entry.name: entry.problem or entry.size_bytes for entry in storage.walk(str(tmp_path))}
    assert found == {
        "real/deep/file": 3,
        "linked-file": 3,
        "linked-folder/deep/file": 3,
        "gone": "dangling link",
        "itself": "link that leads in a circle",
        "real/up": "link that leads in a circle",
        "linked-folder/up": "link that leads in a circle",
        "pipe": "not a regular file",
        "socket": "not a regular file",
    }
    assert [uri.removeprefix(f"{tmp_path}/") for uri, _ in storage.list_files(str(tmp_path))] == [
        *("linked-file", "linked-folder/deep/file", "real/deep/file")
    ]


def test_a_folder_that_cannot_be_read_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "file").write_bytes(b"1")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "shut":  # root may read whatever its mode is
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {entry.name: entry.problem for entry in storage.walk(str(tmp_path))}
    assert found == {"file": None, "shut": "unreadable folder: Permission denied"}
    before = storage.fingerprint(str(tmp_path))
    with pytest.raises(storage.StorageError, match="shut: unreadable folder: Permission denied"):
        storage.list_files(str(tmp_path))
    with pytest.raises(storage.StorageError, match="Permission denied"):
        list(storage.walk(str(tmp_path / "shut")))
    monkeypatch.setattr(os, "scandir", scandir)
    assert storage.fingerprint(str(tmp_path)) != before


def test_a_key_that_ends_with_a_slash_and_holds_something_is_told(bucket: str) -> None:
    for key, data in [("data/", b""), ("data/marker/", b""), ("data/full/", b"1"), ("data/file", b"12")]:
        s3_client.client().put_object(Bucket=bucket, Key=key, Body=data)
    found = {entry.name: entry.problem or entry.size_bytes for entry in storage.walk(f"s3://{bucket}/data")}
    assert found == {"full/": "its key ends with a slash, which names a folder", "file": 2}


def test_folders_deeper_than_the_stack_are_walked(tmp_path: Path) -> None:
    deep = "/".join("d" * 1100)
    here = os.open(tmp_path, os.O_RDONLY)
    for name in deep.split("/"):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    try:
        assert _names(str(tmp_path)) == [f"{deep}/file"]
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # deeper than pytest itself can remove


def test_a_listing_is_not_held_in_memory(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    page = [{"Key": f"{number:09d}", "Size": 1, "ETag": "e", "LastModified": now} for number in range(1000)]
    answer = {"Contents": page, "IsTruncated": True, "NextContinuationToken": "more"}
    monkeypatch.setattr(s3_client.client(), "list_objects_v2", lambda **_: answer)
    for number in range(2000):
        (tmp_path / str(number)).touch()
    for base in (f"s3://{bucket}", str(tmp_path)):
        tracemalloc.start()
        assert sum(1 for _ in itertools.islice(storage.walk(base), 20_000)) == (20_000 if "s3" in base else 2000)
        assert tracemalloc.get_traced_memory()[1] < 300_000
        tracemalloc.stop()


def test_many_are_read_in_order_and_an_absent_one_ends_nothing(bucket: str, tmp_path: Path) -> None:
    uris = [storage.join(f"s3://{bucket}" if number % 3 else str(tmp_path), str(number)) for number in range(50)]
    for number, uri in enumerate(uris):
        if number % 7:
            storage.write_bytes(uri, b"%03d" % number)
    found = list(storage.read_many(uris, at_once=4))
    assert [isinstance(each, FileNotFoundError) for each in found] == [number % 7 == 0 for number in range(50)]
    assert [each for each in found if isinstance(each, bytes)] == [b"%03d" % n for n in range(50) if n % 7]
    assert list(storage.read_many([(uris[1], 1, 2), (uris[3], 0, 1), uris[2]])) == [b"01", b"0", b"002"]


def test_no_more_than_the_window_is_read_ahead(bucket: str) -> None:
    storage.write_bytes(f"s3://{bucket}/file", b"x")
    asked = itertools.count()
    reading = storage.read_many((f"s3://{bucket}/file" for _ in asked), at_once=5)
    for taken in range(1, 20):
        assert next(reading) == b"x"
        assert next(asked) <= 5 + 2 * taken  # each look at the counter moves it, too
    reading.close()
