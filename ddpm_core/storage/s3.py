"""Objects in S3 or in a server that speaks it. Endpoint and credentials come from the environment alone.

A conditional put makes the commit: it holds under a race on AWS and on Ceph, where completing a multipart upload does
not; so whatever is created or swapped under a condition goes up in one put.
"""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as boto_errors
from botocore.config import Config

from ddpm_core.storage.local import TEMPORARY
from ddpm_core.storage.uri import StorageError, split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = object

ATTEMPTS = 5
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_LOST_RACE = {"412", "PreconditionFailed"}
_BUSY = {"409", "ConditionalRequestConflict", "OperationAborted"}
_UNREACHABLE = (boto_errors.HTTPClientError, boto_errors.ConnectionError)
_NO_CREDENTIALS = (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError)
_TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=32 << 20, max_concurrency=4)
_lock = threading.Lock()


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _client(attempts: int = ATTEMPTS) -> S3Client:
    """This process's client for the settings that now stand in the environment; threads may share it."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _lock:  # making one is not safe in threads, using one is
        return _make_client(os.getpid(), settings, attempts)


@lru_cache(maxsize=8)
def _make_client(process: int, settings: tuple[tuple[str, str], ...], attempts: int) -> S3Client:
    endpoint = _endpoint()
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"AWS_ENDPOINT_URL_S3 is {endpoint}; expected http://host:port or https://host:port")
    # Servers other than AWS seldom answer to bucket.host, and older ones refuse the checksum trailers that are new.
    other: dict[str, Any] = {
        "s3": {"addressing_style": "path"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
        **(other if endpoint else {}),
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    session = boto3.session.Session(region_name=region)
    return session.client("s3", endpoint_url=endpoint, config=config, region_name=session.region_name or "us-east-1")


def _code(error: boto_errors.ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """One line that says what to do, in place of botocore's errors; an absent object is a FileNotFoundError."""
    server = _endpoint() or "AWS"
    try:
        yield
    except boto_errors.ClientError as error:
        if _code(error) in _ABSENT:
            raise FileNotFoundError(f"no file at {uri}") from None
        if _code(error) == "NoSuchBucket":
            bucket = split_s3(uri)[0]
            raise StorageError(f"{uri}: there is no bucket {bucket} at {server}; create it or name another") from None
        if _code(error) in _REFUSED:
            raise StorageError(
                f"{uri}: {server} refused the credentials ({_code(error)}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY of a user who may read and write there"
            ) from None
        raise StorageError(f"{uri}: {server} answered: {error}") from error
    except _NO_CREDENTIALS:
        raise StorageError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except _UNREACHABLE as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{uri}: cannot reach {server} ({reason}); set AWS_ENDPOINT_URL_S3 to the server") from None
    except boto_errors.BotoCoreError as error:
        raise StorageError(f"{uri}: {' '.join(str(error).split())}") from error


def read_bytes(uri: str) -> bytes:
    bucket, key = split_s3(uri)
    with _errors(uri):
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()


def read_range(uri: str, offset: int, size: int, etag: str | None = None) -> bytes:
    """The bytes [offset, offset + size), fewer at the end; with an etag, of that version of the object or an error."""
    if size <= 0:
        return b""
    bucket, key = split_s3(uri)
    condition: dict[str, Any] = {"IfMatch": etag} if etag else {}
    with _errors(uri):
        try:
            span = f"bytes={offset}-{offset + size - 1}"
            return _client().get_object(Bucket=bucket, Key=key, Range=span, **condition)["Body"].read()
        except boto_errors.ClientError as error:
            if _code(error) in {"416", "InvalidRange"}:
                return b""
            if _code(error) in _LOST_RACE:
                raise StorageError(f"{uri} was replaced while it was being read; read it again") from None
            raise


def describe(uri: str) -> tuple[int, str] | None:
    """(size, etag) of one object; None if there is none."""
    bucket, key = split_s3(uri)
    if not key:
        return None
    try:
        with _errors(uri):
            head = _client().head_object(Bucket=bucket, Key=key)
    except FileNotFoundError:
        return None
    return head["ContentLength"], head["ETag"]


def list_files(uri: str) -> list[tuple[str, int, str]]:
    """(uri, size, etag) of every object below the prefix, sorted; folder markers are left out."""
    bucket, key = split_s3(uri)
    found = []
    with _errors(uri):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/" if key else "")
        for page in pages:
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    found.append((f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"]))
    return sorted(found)


def write_bytes(uri: str, data: bytes) -> None:
    bucket, key = split_s3(uri)
    with _errors(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=data)


def create_bytes(uri: str, data: bytes) -> bool:
    return _put_if(uri, data, {"IfNoneMatch": "*"})


def replace_bytes(uri: str, data: bytes, expected: bytes) -> bool:
    bucket, key = split_s3(uri)
    try:
        with _errors(uri):
            current = _client().get_object(Bucket=bucket, Key=key)
            if current["Body"].read() != expected:
                return False
        return _put_if(uri, data, {"IfMatch": current["ETag"].strip('"')})  # Ceph compares without the quotes
    except FileNotFoundError:
        return False


def _put_if(uri: str, data: bytes, condition: dict[str, Any]) -> bool:
    """Put under a condition; False if it did not hold."""
    bucket, key = split_s3(uri)
    for attempt in range(ATTEMPTS):
        with _errors(uri):
            try:
                _client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
                return True
            except boto_errors.ClientError as error:
                if _code(error) in _BUSY and attempt + 1 < ATTEMPTS:
                    continue  # another conditional put was under way; it may yet have failed
                if _code(error) not in _LOST_RACE:
                    raise
                if not error.response["ResponseMetadata"].get("RetryAttempts"):
                    return False
        # The put was retried below us: what stands in the way may be our own first try, whose answer was lost.
        return read_bytes(uri) == data
    raise AssertionError("the last attempt either returns or raises")


def upload(path: Path, uri: str) -> None:
    bucket, key = split_s3(uri)
    with open(path, "rb") as file, _errors(uri):
        _client().upload_fileobj(file, bucket, key, Config=_TRANSFER)


def download(uri: str, file: BinaryIO) -> None:
    bucket, key = split_s3(uri)
    with _errors(uri):
        _client().download_fileobj(bucket, key, file, Config=_TRANSFER)


def delete(uri: str) -> None:
    bucket, key = split_s3(uri)
    with _errors(uri):
        _client().delete_object(Bucket=bucket, Key=key)


def check_store(uri: str) -> None:
    """See ddpm_core.storage.check_store."""
    bucket, key = split_s3(uri)
    probe = "/".join(part for part in (key, f"{TEMPORARY}{uuid.uuid4().hex}") if part)
    try:
        with _errors(uri):
            client = _client(attempts=2)  # a wrong address should be told at once
            client.put_object(Bucket=bucket, Key=probe, Body=b"probe")
            client.delete_object(Bucket=bucket, Key=probe)
    except OSError as error:
        raise ValueError(f"the store cannot be written: {error}") from None
