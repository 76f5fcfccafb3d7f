"""A role that lacks one action is told which, on a server that checks them, and leaves nothing behind."""

import json
import os
from collections.abc import Callable, Iterator

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from ddpm_core import storage

ACTIONS = ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield url
    requests.post(f"{url}/moto-api/reset-auth", data="inf", timeout=10)  # it holds for the whole process
    requests.post(f"{url}/moto-api/reset", timeout=10)
    server.stop()


def role_without(action: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket with one object, and from here on a role that may all but this."""
    keys = {
        "aws_access_key_id": "root",
        "aws_secret_access_key": "root",
        "endpoint_url": endpoint,
        "region_name": "us-east-1",
    }
    server, iam = boto3.client("s3", **keys), boto3.client("iam", **keys)  # type: ignore[call-overload]
    server.create_bucket(Bucket="raw")
    server.put_object(Bucket="raw", Key="a.png", Body=b"1")
    iam.create_user(UserName="ann")
    allowed = [each for each in ACTIONS if each != action]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": allowed, "Resource": "*"}]}
    iam.put_user_policy(UserName="ann", PolicyName="some", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="ann")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    requests.post(f"{endpoint}/moto-api/reset-auth", data="0", timeout=10)


@pytest.mark.parametrize(
    ("action", "act"),
    [
        ("s3:ListBucket", lambda: storage.list_files("s3://raw")),
        ("s3:GetObject", lambda: storage.read_bytes("s3://raw/a.png")),
        ("s3:GetObject", lambda: storage.exists("s3://raw/a.png")),
        ("s3:PutObject", lambda: storage.write_bytes("s3://raw/b.png", b"2")),
        ("s3:PutObject", lambda: storage.check_store("s3://raw")),
        ("s3:DeleteObject", lambda: storage.delete("s3://raw/a.png")),
        ("s3:DeleteObject", lambda: storage.check_store("s3://raw")),
    ],
)
def test_what_a_role_lacks_is_named(
    action: str, act: Callable[[], object], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    role_without(action, endpoint, monkeypatch)
    with pytest.raises((OSError, ValueError), match=rf"may not {action} in the bucket raw") as error:
        act()
    assert "\n" not in str(error.value)
    requests.post(f"{endpoint}/moto-api/reset-auth", data="inf", timeout=10)
    assert [name for name, _ in storage.list_files("s3://raw")] == ["s3://raw/a.png"]


def test_keys_that_nobody_knows_are_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    role_without("s3:ListBucket", endpoint, monkeypatch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")
    with pytest.raises(OSError, match="refused the credentials"):
        storage.read_bytes("s3://raw/a.png")
