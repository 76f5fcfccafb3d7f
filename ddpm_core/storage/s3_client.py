"""The client for S3, and the one place where requests are tried again.

A request may be carried out more than once, or be carried out and its answer lost; s3.py says what follows from that.
"""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from ddpm_core.errors import InputError, MissingError
from ddpm_core.storage.uri import StorageError, split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = object

T = TypeVar("T")

ABSENT = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {"401", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
FORBIDDEN = {"403", "Forbidden"}
"""What is left of a refusal where the answer has no body, as to a HEAD."""
_DENIED = {"AccessDenied", *FORBIDDEN}
_ACTIONS = {
    **dict.fromkeys(("GetObject", "HeadObject"), "s3:GetObject"),
    **dict.fromkeys(("ListObjectsV2", "HeadBucket"), "s3:ListBucket"),
    "DeleteObject": "s3:DeleteObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
}
"""What a user must be allowed for each request; for any other, s3:PutObject."""
_VERBS = {
    "s3:GetObject": "read objects in",
    "s3:ListBucket": "list",
    "s3:PutObject": "write objects into",
    "s3:DeleteObject": "delete objects in",
    "s3:ListBucketMultipartUploads": "list unfinished uploads in",
    "s3:AbortMultipartUpload": "remove unfinished uploads in",
}
_TOLD_ACTION = re.compile(r"not authorized to perform: ([a-z0-9-]+:[A-Za-z]+)")
"""AWS says in most of its refusals which action it is that lacks."""
_PASSING = {
    *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),  # the body was hurt on its way
    *("409", "ConditionalRequestConflict", "OperationAborted"),  # another put was under way; it may yet have failed
    *("429", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"),
}
_NEVER_PASSING = {501, 505}
_CUT_OFF = (
    *(boto_errors.HTTPClientError, boto_errors.ConnectionError, boto_errors.IncompleteReadError),
    *(ResponseParserError, HTTPError),
)
_NO_CREDENTIALS = (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError)
_DEADLINE = "DDPM_S3_DEADLINE_S"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_ENDPOINTS = "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"
_lock = threading.Lock()


def _endpoint_variable() -> str:
    """The one that names the server, for messages; the first of them where none does. An empty one counts as none."""
    return next((name for name in _ENDPOINTS if os.environ.get(name)), _ENDPOINTS[0])


def _endpoint() -> str | None:
    return os.environ.get(_endpoint_variable()) or None


def default_deadline_s() -> float:
    """DDPM_S3_DEADLINE_S: how long a request is tried again."""
    text = os.environ.get(_DEADLINE, "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{_DEADLINE} is {text}; expected a number of seconds above 0")
    return seconds


def client() -> S3Client:
    """This process's client for the settings that now stand in the environment; threads may share it."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _lock:  # making one is not safe in threads, using one is
        return _make_client(os.getpid(), settings, default_deadline_s())


@lru_cache(maxsize=8)
def _make_client(process: int, settings: tuple[tuple[str, str], ...], deadline_s: float) -> S3Client:
    endpoint = _endpoint()
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise InputError(f"{_endpoint_variable()} is {endpoint}; expected http://host:port or https://host:port")
    config = Config(  # type: ignore[call-arg]  # whose types do not know the last one
        retries={"mode": "standard", "total_max_attempts": 1},  # see persistently
        connect_timeout=min(10, deadline_s),
        read_timeout=min(60, deadline_s),
        max_pool_connections=32,
        # Older servers refuse the new checksums, which come as trailers; s3.py sends an MD5, which every server checks.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},  # servers other than AWS seldom answer to bucket.host
        # A variable that is set to nothing counts as none, where boto3 would take that for an address.
        ignore_configured_endpoint_urls=any(os.environ.get(name) == "" for name in _ENDPOINTS) or None,
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    session = boto3.session.Session(region_name=region)
    region = session.region_name or "us-east-1"
    client = session.client("s3", endpoint_url=endpoint, config=config, region_name=region)
    client.meta.events.register("before-parse.s3", _check_whole)
    return client


def _check_whole(response_dict: dict[str, Any], operation_model: Any, **_: Any) -> None:
    """Refuse an answer that was cut short: botocore takes one without any body for an empty listing."""
    body, expected = response_dict["body"], response_dict["headers"].get("Content-Length")
    if isinstance(body, bytes) and expected and operation_model.http["method"] != "HEAD" and len(body) != int(expected):
        raise boto_errors.IncompleteReadError(actual_bytes=len(body), expected_bytes=int(expected))


def error_code(error: boto_errors.ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _may_pass(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    if not isinstance(error, boto_errors.ClientError):
        return isinstance(error, _CUT_OFF)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return error_code(error) in _PASSING or (status >= 500 and status not in _NEVER_PASSING)


def with_retries(uri: str, what: str, request: Callable[[S3Client], T], deadline_s: float | None = None) -> T:
    """Make a request, and again while it fails in a way that may pass, until a deadline.

    Args:
        uri: the object, for the messages.
        what: the request in a word, for the messages.
        request: makes it and reads the answer to its end; may run again after the server carried it out.
        deadline_s: after how many seconds no further try begins; default DDPM_S3_DEADLINE_S.
    """
    deadline_s, tries = deadline_s or default_deadline_s(), 0
    with _errors(uri):
        server = client()
    start = time.monotonic()
    while True:
        tries += 1
        with _errors(uri):
            try:
                return request(server)
            except Exception as error:
                pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries - 1, 10)) * random.uniform(0.5, 1)
                spent = time.monotonic() - start
                if not _may_pass(error):
                    raise
                if spent + pause > deadline_s:
                    raise StorageError(
                        f"{uri}: cannot {what} at {_endpoint() or 'AWS'}: tried {tries} times in {spent:.1f} s, at last: "
                        f"{' '.join(str(error).split())}; check the server and {_endpoint_variable()} "
                        f"({_DEADLINE} is {default_deadline_s():g})"
                    ) from error
        time.sleep(pause)


def _denial(error: boto_errors.ClientError, bucket: str) -> str:
    """Which action it is that the credentials, known to the server, lack."""
    told = _TOLD_ACTION.search(error.response.get("Error", {}).get("Message") or "")  # Ceph sends none
    needed = _ACTIONS.get(error.operation_name, "s3:PutObject")
    action = told[1] if told else needed
    denied = f"may not {_VERBS.get(action, 'use keys of')} bucket {bucket} ({action})"
    if needed == "s3:GetObject" and action in (needed, "s3:ListBucket"):  # who may not list is not told what is missing
        denied = (
            f"may not read it (s3:GetObject), or nothing lies there and they may not list bucket {bucket} (s3:ListBucket), "
            "without which that cannot be told"
        )
    others = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of a user who may"
    return f"the credentials {denied}; allow it in their policy, or {others}"


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """One line that says what to do, in place of botocore's errors; an absent object is a FileNotFoundError."""
    server = _endpoint() or "AWS"
    try:
        yield
    except boto_errors.ClientError as error:
        if error_code(error) in ABSENT:
            raise MissingError(f"no file at {uri}") from None
        if error_code(error) == "NoSuchBucket":
            bucket = split_s3(uri)[0]
            raise StorageError(f"{uri}: there is no bucket {bucket} at {server}; create it or name another") from None
        if error_code(error) in _DENIED:
            raise StorageError(f"{uri}: {_denial(error, split_s3(uri)[0])}") from None
        if error_code(error) in _REFUSED:
            raise StorageError(
                f"{uri}: {server} refused the credentials ({error_code(error)}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY of a user who may read and write there"
            ) from None
        raise StorageError(f"{uri}: {server} answered: {error}") from error
    except _NO_CREDENTIALS:
        raise StorageError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except boto_errors.BotoCoreError as error:
        raise StorageError(f"{uri}: {' '.join(str(error).split())}") from error
