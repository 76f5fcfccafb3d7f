"""Objects in S3 or in a server that speaks it. Endpoint and credentials come from the environment alone.

A conditional put makes the commit: it holds under a race on AWS and on Ceph, where completing a multipart upload does
not; so whatever is created or swapped under a condition goes up in one put.

Every request goes through `with_retries`, which tries again. So one may be carried out twice, or be carried out and its
answer lost: an object made under a condition or in parts names its writers, which tells one's own first try from
another's.
"""

import base64
import hashlib
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase, BytesIO
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto_errors

from ddpm_core.errors import InputError
from ddpm_core.storage.entries import ENDS_WITH_SLASH, Entry
from ddpm_core.storage.local import TEMPORARY
from ddpm_core.storage.s3_client import ABSENT, FORBIDDEN, default_deadline_s, error_code, with_retries
from ddpm_core.storage.uri import StorageError, split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef
else:
    S3Client = object

_LOST_RACE = {"412", "PreconditionFailed"}
_PAST_THE_END = {"416", "InvalidRange"}
SOON_S = 5.0
"""How long a store is tried that is only being checked, or where an upload has failed already."""
PART_BYTES = 32 << 20
NUM_THREADS = 4
WRITERS = "writers"
"""Name of the metadata that hold the last writers' random names, newest first."""
_NUM_WRITERS = 32


def read_bytes(uri: str) -> bytes:
    file = BytesIO()
    download(uri, file)
    return file.getvalue()


def download(uri: str, file: BufferedIOBase) -> None:
    """Copy an object into an empty file, in parts of one version, several at a time."""
    body, size, etag = _read_part(uri, 0, PART_BYTES)
    file.write(body)
    lock = threading.Lock()

    def fetch(offset: int) -> None:
        part = read_range(uri, offset, PART_BYTES, etag)
        with lock:
            file.seek(offset)
            file.write(part)

    if size > PART_BYTES:
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            list(threads.map(fetch, range(PART_BYTES, size, PART_BYTES)))


def read_range(uri: str, offset: int, size: int, etag: str | None = None) -> bytes:
    """The bytes [offset, offset + size), fewer at the end; with an etag, of that version of the object or an error."""
    return _read_part(uri, offset, size, etag)[0] if size > 0 else b""


def _read_part(uri: str, offset: int, size: int, etag: str | None = None) -> tuple[bytes, int, str]:
    """(the bytes [offset, offset + size), the size of the whole object, its etag); (b"", 0, "") from its end on."""
    bucket, key = split_s3(uri)
    condition: dict[str, Any] = {"IfMatch": etag} if etag else {}

    def get(client: S3Client) -> tuple[bytes, int, str]:
        try:
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + size - 1}", **condition)
        except boto_errors.ClientError as error:
            if error_code(error) in _PAST_THE_END and not etag:
                return b"", 0, ""
            if error_code(error) in _LOST_RACE:
                raise StorageError(f"{uri} was replaced while it was being read; read it again") from None
            raise
        body = answer["Body"].read()
        total = int(answer.get("ContentRange", "").rpartition("/")[2] or len(body))
        if len(body) != min(size, total - offset):
            raise boto_errors.IncompleteReadError(actual_bytes=len(body), expected_bytes=min(size, total - offset))
        return body, total, answer["ETag"]

    return with_retries(uri, "read", get)


def describe(uri: str) -> tuple[int, str] | None:
    """(size, etag) of one object; None if there is none."""
    bucket, key = split_s3(uri)
    if not key:
        return None

    def look_up(client: S3Client) -> tuple[int, str]:
        try:
            head = client.head_object(Bucket=bucket, Key=key)
        except boto_errors.ClientError as error:
            if error_code(error) in FORBIDDEN:  # the answer to a HEAD has no body that could say why
                client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
            raise
        return head["ContentLength"], head["ETag"]

    try:
        return with_retries(uri, "look up", look_up)
    except FileNotFoundError:
        return None


def walk(uri: str) -> Iterator[Entry]:
    """See ddpm_core.storage.walk; folder markers, which are empty objects whose key ends with a slash, are passed over."""
    bucket, key = split_s3(uri)
    prefix = f"{key}/" if key else ""
    place: dict[str, Any] = {}

    def get_page(client: S3Client) -> "ListObjectsV2OutputTypeDef":
        return client.list_objects_v2(Bucket=bucket, Prefix=prefix, **place)

    while True:
        page = with_retries(uri, "list", get_page)
        for item in page.get("Contents", []):
            name, size = item["Key"].removeprefix(prefix), item["Size"]
            if not name.endswith("/") and name:
                changed_s = item["LastModified"].timestamp()
                yield Entry(name=name, size_bytes=size, version=item["ETag"], changed_s=changed_s)
            elif size:
                yield Entry(name=name, size_bytes=None, version="", problem=ENDS_WITH_SLASH)
        if not page["IsTruncated"]:
            return
        place = {"ContinuationToken": page["NextContinuationToken"]}


def write_bytes(uri: str, data: bytes) -> None:
    _put(uri, data)


def create_bytes(uri: str, data: bytes) -> bool:
    return _put(uri, data, {"IfNoneMatch": "*"})


def replace_bytes(uri: str, data: bytes, expected: bytes) -> bool:
    bucket, key = split_s3(uri)

    def get(client: S3Client) -> tuple[bytes, str, str]:
        answer = client.get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), answer["ETag"], answer["Metadata"].get(WRITERS, "")

    try:
        content, etag, writers = with_retries(uri, "read", get)
        if content != expected:
            return False
        return _put(uri, data, {"IfMatch": etag.strip('"')}, writers)  # Ceph compares without the quotes
    except FileNotFoundError:
        return False


def _put(uri: str, data: bytes, condition: dict[str, Any] | None = None, writers: str = "") -> bool:
    """Put, under a condition or none; False if it did not hold.

    Args:
        writers: of the version that is replaced; they are carried on, so that a put whose answer was lost is known to
            have won even if it was replaced since (up to _NUM_WRITERS times, by contents that do not come again).
    """
    bucket, key = split_s3(uri)
    name = uuid.uuid4().hex[:16]
    metadata = {WRITERS: " ".join([name, *writers.split()][:_NUM_WRITERS])}

    def put(client: S3Client) -> bool:
        try:
            client.put_object(
                Bucket=bucket, Key=key, Body=data, ContentMD5=md5(data), Metadata=metadata, **condition or {}
            )
        except boto_errors.ClientError as error:
            if error_code(error) not in _LOST_RACE:
                raise
            return was_written_by(client, bucket, key, name)
        return True

    return with_retries(uri, "write", put)


def was_written_by(client: S3Client, bucket: str, key: str, name: str) -> bool:
    """Whether the version that stands, or one that it replaced, is by this writer."""
    try:
        return name in client.head_object(Bucket=bucket, Key=key)["Metadata"].get(WRITERS, "").split()
    except boto_errors.ClientError as error:
        if error_code(error) in ABSENT:
            return False
        raise


def md5(data: bytes) -> str:
    """For the server to compare with what arrived."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def delete(uri: str) -> None:
    bucket, key = split_s3(uri)
    with_retries(uri, "delete", lambda client: client.delete_object(Bucket=bucket, Key=key))


def check_store(uri: str) -> None:
    """See ddpm_core.storage.check_store."""
    bucket, key = split_s3(uri)
    probe = "/".join(part for part in (key, f"{TEMPORARY}{uuid.uuid4().hex}") if part)
    where: dict[str, Any] = {"Bucket": bucket, "Key": probe}

    def use(client: S3Client) -> None:
        client.delete_object(**where)  # first of all: who may not delete would leave the probe there
        client.list_objects_v2(Bucket=bucket, Prefix=probe, MaxKeys=1)
        client.put_object(**where, Body=b"probe")
        try:
            client.get_object(**where)["Body"].read()
        finally:
            client.delete_object(**where)

    try:
        with_retries(uri, "write", use, min(SOON_S, default_deadline_s()))
    except OSError as error:
        raise InputError(f"the store cannot be used: {error}") from None
