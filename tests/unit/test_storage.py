"""Local disk and S3 keep the same promises; every test of a promise runs on both."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from ddpm_core import storage
from ddpm_core.storage import local, s3, s3_client, s3_file


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"s3://{request.getfixturevalue('bucket')}/some/prefix"


def test_what_is_written_is_read(base: str) -> None:
    uri = storage.join(base, "a", "b.bin")
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.size_bytes(uri) == 10
    assert storage.read_range(uri, 3, 4) == b"3456"
    assert storage.read_range(uri, 8, 100) == b"89"
    assert storage.read_range(uri, 10, 5) == b""
    assert storage.read_range(uri, 2, 0) == b""
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"


def test_an_open_file_can_be_sought_through(base: str) -> None:
    uri = storage.join(base, "file")
    data = bytes(range(256)) * 4096
    storage.write_bytes(uri, data)
    with storage.open_read(uri) as file:
        assert file.read(4) == data[:4]
        assert file.seek(-10, os.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        file.seek(500_000)
        assert file.read(300_000) == data[500_000:800_000]


def test_the_rest_of_a_stream_is_read_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, spans = os.urandom(2_000_000), []
    storage.write_bytes(f"s3://{bucket}/file", data)

    def read_range(uri: str, offset: int, size: int, etag: str) -> bytes:
        spans.append((offset, size))
        return data[offset : offset + size]

    monkeypatch.setattr(s3_file, "read_range", read_range)
    with storage.open_read(f"s3://{bucket}/file") as file:
        file.seek(1_000_000)
        assert file.read() == data[1_000_000:]
        assert file.read() == b""
    assert [span for span in spans if span[1]] == [(1_000_000, 1_000_000)]


def test_an_absent_file_is_told_as_such(base: str) -> None:
    uri = storage.join(base, "none")
    assert not storage.exists(uri)
    for call in (storage.read_bytes, storage.size_bytes, storage.open_read, storage.fingerprint):
        with pytest.raises(FileNotFoundError, match="none"):
            call(uri)
    storage.delete(uri)
    assert storage.list_files(uri) == []
    assert not storage.replace_bytes(uri, b"new", b"")


def test_files_are_listed_at_any_depth_in_order(base: str) -> None:
    for name, size in [("b", 2), ("a/z", 1), ("a/c/d", 3), ("ab", 0)]:
        storage.write_bytes(storage.join(base, name), b"x" * size)
    found = [(uri.removeprefix(base + "/"), size) for uri, size in storage.list_files(base)]
    assert found == [("a/c/d", 3), ("a/z", 1), ("ab", 0), ("b", 2)]
    assert [uri.removeprefix(base) for uri, _ in storage.list_files(storage.join(base, "a"))] == ["/a/c/d", "/a/z"]
    storage.delete(storage.join(base, "a/z"))
    assert len(storage.list_files(base)) == 3


def test_a_listing_of_many_pages_is_whole(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = s3_client.client()
    pages = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **arguments: pages(MaxKeys=3, **arguments))
    names = [f"s3://{bucket}/{number}" for number in range(8)]
    for name in names:
        storage.write_bytes(name, b"x")
    assert storage.list_files(f"s3://{bucket}") == [(name, 1) for name in names]


def test_what_stands_is_not_created_again(base: str) -> None:
    uri = storage.join(base, "marker")
    assert storage.create_bytes(uri, b"first")
    assert not storage.create_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_a_swap_needs_the_content_that_was_expected(base: str) -> None:
    uri = storage.join(base, "lease")
    storage.write_bytes(uri, b"one")
    assert not storage.replace_bytes(uri, b"two", b"other")
    assert storage.read_bytes(uri) == b"one"
    assert storage.replace_bytes(uri, b"two", b"one")
    assert storage.read_bytes(uri) == b"two"


def _race(num_racers: int, enter: Callable[[int], bool]) -> list[int]:
    """Who of the racers, all let go at once, got True."""
    barrier = threading.Barrier(num_racers)
    winners: list[int] = []

    def run(number: int) -> None:
        barrier.wait()
        if enter(number):
            winners.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num_racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


def test_of_racing_creators_one_wins(base: str) -> None:
    for turn in range(5):
        uri = storage.join(base, f"marker-{turn}")
        winners = _race(4, lambda number, uri=uri: storage.create_bytes(uri, b"%d" % number))
        assert [b"%d" % winner for winner in winners] == [storage.read_bytes(uri)]


def test_of_racing_swaps_one_wins(base: str) -> None:
    for turn in range(5):
        uri = storage.join(base, f"lease-{turn}")
        storage.write_bytes(uri, b"free")
        winners = _race(4, lambda number, uri=uri: storage.replace_bytes(uri, b"%d" % number, b"free"))
        assert [b"%d" % winner for winner in winners] == [storage.read_bytes(uri)]


def test_files_go_up_and_down_whole(base: str, tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    (tmp_path / "up").write_bytes(data)
    storage.upload(tmp_path / "up", storage.join(base, "x/y"))
    storage.download(storage.join(base, "x/y"), tmp_path / "new/down")
    assert (tmp_path / "new/down").read_bytes() == data
    with pytest.raises(FileNotFoundError):
        storage.download(storage.join(base, "none"), tmp_path / "new/other")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["down"]


def test_a_file_written_aside_stands_at_the_end_of_the_block(base: str) -> None:
    uri = storage.join(base, "folder", "file")
    with storage.writing(uri) as path:
        path.write_bytes(b"whole")
        assert not storage.exists(uri)
    assert storage.read_bytes(uri) == b"whole"
    with contextlib.suppress(KeyError), storage.writing(uri) as path:
        path.write_bytes(b"half")
        raise KeyError
    assert storage.read_bytes(uri) == b"whole"
    assert not path.exists()
    assert [name for name, _ in storage.list_files(base)] == [uri]
    with pytest.raises(storage.StorageError, match="No space left"), storage.writing(uri) as path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_fingerprint_changes_with_the_files_and_with_nothing_else(base: str) -> None:
    storage.write_bytes(storage.join(base, "a"), b"1")
    storage.write_bytes(storage.join(base, "b/c"), b"2")
    first = storage.fingerprint(base)
    assert storage.fingerprint(base + "/") == first
    assert storage.fingerprint(storage.join(base, "a")) != first
    storage.write_bytes(storage.join(base, "b/c"), b"3")
    second = storage.fingerprint(base)
    storage.write_bytes(storage.join(base, "b/d"), b"")
    assert len({first, second, storage.fingerprint(base)}) == 3


def test_a_store_that_can_be_written_passes_and_is_left_clean(base: str) -> None:
    storage.check_store(base)
    assert storage.list_files(base) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(storage.StorageError, match=r"file: No space left on device"):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_links_that_cross_are_refused_before_they_multiply(tmp_path: Path) -> None:
    for name in "abcdefghij":
        (tmp_path / name).mkdir()
        for other in "abcdefghij":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    with pytest.raises(storage.StorageError, match="in more than 1000 ways; expected links that do not cross"):
        list(storage.walk(str(tmp_path)))


def test_links_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a/b"), b"")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert [uri for uri, _ in storage.list_files(str(tmp_path))] == [str(tmp_path / "a/b")]


@pytest.mark.parametrize(
    ("uri", "parts", "expected"),
    [
        ("s3://bucket", ("a", "b"), "s3://bucket/a/b"),
        ("s3://bucket/x/", ("/a/", "", "b"), "s3://bucket/x/a/b"),
        ("/x", ("a/b",), "/x/a/b"),
        ("/", ("a",), "/a"),
    ],
)
def test_join(uri: str, parts: tuple[str, ...], expected: str) -> None:
    assert storage.join(uri, *parts) == expected


def test_absolute_does_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert storage.absolute("a/../b/") == str(tmp_path / "b")
    assert storage.absolute("~/x") == "/home/ada/x"
    assert storage.absolute("file:///x/a%20b") == "/x/a b"
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert storage.absolute("s3://bucket/") == "s3://bucket"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://bucket/x", "gs://bucket/x is no store that is known here; expected a local path"),
        ("s3:/bucket", "s3:/bucket is no store"),
        ("s3:///x", "names no bucket"),
        ("", "an empty path"),
    ],
)
def test_what_is_no_uri_is_refused(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        storage.check_store(uri)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        storage.check_store(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be written: Not a directory"):
        storage.check_store(str(tmp_path / "file/below"))


def test_a_store_whose_path_is_no_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"caf\\udce9 has bytes in its path that are no UTF-8"):
        storage.check_store(f"{tmp_path}/caf\udce9")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux's /proc, where nobody may write")
def test_a_folder_that_cannot_be_written_is_no_store() -> None:
    with pytest.raises(ValueError, match="the store /proc/ddpm cannot be written"):
        storage.check_store("/proc/ddpm")


def test_a_full_disk_is_no_question_of_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ddpm_core.storage.local.write_bytes", full)
    with pytest.raises(
        ValueError, match="cannot be written: No space left on device; free some, or name another --store"
    ):
        storage.check_store(str(tmp_path))


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(ValueError, match="there is no bucket nowhere-at-all at http") as error:
        storage.check_store("s3://nowhere-at-all/x")
    assert "\n" not in str(error.value)
    with pytest.raises(storage.StorageError, match="there is no bucket"):
        storage.read_bytes("s3://nowhere-at-all/x")


def test_missing_credentials_are_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ValueError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        storage.check_store(f"s3://{bucket}/x")


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "401"])
def test_refused_credentials_are_told(bucket: str, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def refuse(**_: object) -> None:
        raise ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject")  # moto lets everyone in

    monkeypatch.setattr(s3_client.client(), "put_object", refuse)
    with pytest.raises(ValueError, match=rf"refused the credentials \({code}\)"):
        storage.check_store(f"s3://{bucket}/x")


def test_a_server_out_of_reach_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("DDPM_S3_DEADLINE_S", "0.5")
    with pytest.raises(
        ValueError, match=r"cannot write at http://127\.0\.0\.1:9: tried \d+ times in \d+\.\d s"
    ) as error:
        storage.check_store(f"s3://{bucket}/x")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9")
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL_S3 is localhost:9; expected http"):
        storage.check_store(f"s3://{bucket}/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9")
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL is localhost:9; expected http"):
        storage.check_store(f"s3://{bucket}/x")


def test_an_endpoint_set_to_nothing_is_none(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    """As a file of variables leaves it; boto3 itself would take it for an address."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "")
    assert s3_client.client().meta.endpoint_url == "https://s3.amazonaws.com"


def test_a_store_that_does_not_stand_is_refused_and_not_made(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "file").touch()
    for uri, said in {
        str(tmp_path / "none"): "there is no store at .*/none; expected one that a command made",
        str(tmp_path / "file"): "there is no store at .*/file, a file; expected",
        f"s3://{bucket}/none": "there is no store at s3://.*/none; expected",
        "s3://nobody-has-this-bucket/none": "there is no bucket nobody-has-this-bucket",
    }.items():
        with pytest.raises((ValueError, OSError), match=said):
            storage.check_there(uri)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    storage.write_bytes(f"s3://{bucket}/some/file", b"")
    storage.check_there(f"s3://{bucket}/some")
    storage.check_there(str(tmp_path))


def _answers(monkeypatch: pytest.MonkeyPatch, codes: list[str]) -> list[str]:
    """Let the server's next conditional puts be answered with these errors, and then as it likes."""
    client = s3_client.client()
    put = client.put_object
    seen: list[str] = []

    def answer(**arguments: object) -> object:
        seen.append("put")
        if not codes:
            return put(**arguments)
        raise ClientError({"Error": {"Code": codes.pop(0)}}, "PutObject")

    monkeypatch.setattr(client, "put_object", answer)
    return seen


def test_a_conflict_of_conditional_puts_is_tried_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _answers(monkeypatch, ["ConditionalRequestConflict", "ConditionalRequestConflict"])
    assert storage.create_bytes(f"s3://{bucket}/marker", b"mine")
    assert len(seen) == 3


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(bucket: str) -> None:
    uri = f"s3://{bucket}/file"
    storage.write_bytes(uri, b"1" * 1_000_000)
    with storage.open_read(uri) as file:
        file.read(1)
        storage.write_bytes(uri, b"2" * 1_000_000)
        with pytest.raises(storage.StorageError, match="replaced while it was being read"):
            file.read()


def test_a_file_follows_the_umask_whoever_wrote_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with storage.writing(str(tmp_path / "file")) as path:
            path.unlink()
            path.touch(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_is_moved_within_a_store(base: str) -> None:
    old, new = storage.join(base, "a/file"), storage.join(base, "b/c/file")
    storage.write_bytes(old, b"content")
    storage.write_bytes(new, b"before")
    storage.move(old, new)
    assert storage.read_bytes(new) == b"content"
    assert not storage.exists(old)
    with pytest.raises(FileNotFoundError):
        storage.move(old, new)
    assert storage.read_bytes(new) == b"content"


def test_a_file_is_copied_within_a_store(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server, or by a second name; nothing is read here. Replacing one leaves the other as it is."""
    old, new = storage.join(base, "a/file"), storage.join(base, "b/c/file")
    storage.write_bytes(old, b"content")
    storage.write_bytes(new, b"before")
    with monkeypatch.context() as patch:
        for name in ("read_bytes", "write_bytes", "download", "_put", "copy"):
            for module in (s3, local):
                patch.setattr(module, name, lambda *_: pytest.fail("it passed through this machine"), raising=False)
        storage.copy(old, new)
        storage.copy(old, new)
    storage.write_bytes(old, b"other")
    assert storage.read_bytes(new) == b"content"
    assert [uri for uri, _ in storage.list_files(base)] == [old, new]
    with pytest.raises(FileNotFoundError):
        storage.copy(storage.join(base, "none"), new)
    assert storage.read_bytes(new) == b"content"


def test_a_file_is_copied_from_one_store_to_another(bucket: str, tmp_path: Path) -> None:
    here, there, back = str(tmp_path / "a"), f"s3://{bucket}/b", str(tmp_path / "c/d")
    storage.write_bytes(here, b"content")
    storage.copy(here, there)
    storage.copy(there, back)
    assert storage.read_bytes(there) == storage.read_bytes(back) == b"content"


def test_what_killed_writers_left_is_deleted_below_a_folder_and_nothing_else(base: str) -> None:
    kept = [storage.join(base, name) for name in ("run/file", "run-2/file")]
    for uri in kept:
        storage.write_bytes(uri, b"whole")
    if storage.is_s3(base):
        client, (bucket, prefix) = s3_client.client(), base.removeprefix("s3://").split("/", 1)
        uploads = [
            client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{name}/half") for name in ("run", "run-2")
        ]
        storage.delete_unfinished(storage.join(base, "run"))
        left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
        assert [each["UploadId"] for each in left] == [uploads[1]["UploadId"]]
        client.abort_multipart_upload(Bucket=bucket, Key=left[0]["Key"], UploadId=left[0]["UploadId"])
    else:
        left = [Path(base, name, ".tmp-half") for name in ("run", "run-2")]
        for path in left:
            path.write_bytes(b"half")
        storage.delete_unfinished(storage.join(base, "run"))
        assert [path.exists() for path in left] == [False, True]
    storage.delete_unfinished(storage.join(base, "none"))
    assert [storage.read_bytes(uri) for uri in kept] == [b"whole", b"whole"]
