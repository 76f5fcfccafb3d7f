"""Files on their way to S3, large ones in parts; and the parts that a killed upload left."""

import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto_errors

from ddpm_core.storage import s3
from ddpm_core.storage.s3_client import error_code, with_retries
from ddpm_core.storage.uri import split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef
else:
    S3Client = object


def upload(path: Path, uri: str) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= s3.PART_BYTES:
            s3.write_bytes(uri, file.read())
        else:
            _put_parts(uri, file, size)


def _put_parts(uri: str, file: BufferedIOBase, size: int) -> None:
    """Put a file in parts, several at a time; on failure the parts are removed again."""
    bucket, key = split_s3(uri)
    name = uuid.uuid4().hex[:16]
    lock = threading.Lock()

    def begin(client: S3Client) -> str:
        return client.create_multipart_upload(Bucket=bucket, Key=key, Metadata={s3.WRITERS: name})["UploadId"]

    def put(offset: int) -> "CompletedPartTypeDef":
        with lock:
            file.seek(offset)
            part = file.read(s3.PART_BYTES)
        number, digest = offset // s3.PART_BYTES + 1, s3.md5(part)

        def put_part(client: S3Client) -> str:
            return client.upload_part(**where, PartNumber=number, Body=part, ContentMD5=digest)["ETag"]

        return {"PartNumber": number, "ETag": with_retries(uri, "write", put_part)}

    def complete(client: S3Client) -> None:
        try:
            client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
        except boto_errors.ClientError as error:
            if error_code(error) != "NoSuchUpload" or not s3.was_written_by(client, bucket, key, name):
                raise  # else an earlier try completed it, and its answer was lost

    where: dict[str, Any] = {"Bucket": bucket, "Key": key, "UploadId": with_retries(uri, "write", begin)}
    try:
        with ThreadPoolExecutor(s3.NUM_THREADS) as threads:
            parts = list(threads.map(put, range(0, size, s3.PART_BYTES)))
        with_retries(uri, "write", complete)
    except BaseException as error:
        try:
            _abort(where, s3.SOON_S)
        except OSError as left:
            error.add_note(f"parts of the upload were left: {left}")
        raise


def copy(uri: str, to: str) -> None:
    (bucket, key), (to_bucket, to_key) = split_s3(uri), split_s3(to)
    source = {"Bucket": bucket, "Key": key}  # copied by the server, a large one in parts
    with_retries(uri, "copy", lambda client: client.copy(source, to_bucket, to_key))  # type: ignore[arg-type]


def move(uri: str, to: str) -> None:
    copy(uri, to)
    s3.delete(uri)


def _abort(upload: dict[str, Any], deadline_s: float | None = None) -> None:
    def abort(client: S3Client) -> None:
        try:
            client.abort_multipart_upload(**upload)
        except boto_errors.ClientError as error:
            if error_code(error) != "NoSuchUpload":
                raise

    with_retries(f"s3://{upload['Bucket']}/{upload['Key']}", "remove the parts", abort, deadline_s)


def delete_unfinished(uri: str) -> None:
    """See ddpm_core.storage.delete_unfinished."""
    bucket, key = split_s3(uri)
    prefix = key.rstrip("/") + "/"

    def find(client: S3Client) -> list[dict[str, Any]]:
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        found = [each for page in pages for each in page.get("Uploads", [])]
        return [{"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]} for each in found]

    for upload in with_retries(uri, "list unfinished uploads", find):
        _abort(upload)
