"""A user of an S3 server who lacks one permission is told which; moto enforces IAM policies once it is told to."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from ddpm_core import storage
from ddpm_core.storage import s3_client

ALL = ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject")
ADMIN = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    s3 = boto3.client("s3", endpoint_url=url, **ADMIN)
    s3.create_bucket(Bucket="guarded")  # moto's servers in a process share what they hold: no other test uses it
    s3.put_object(Bucket="guarded", Key="there", Body=b"1")
    yield url
    server.stop()


def _enforce(endpoint: str, after: str) -> None:
    """From now on, so many actions are let through before policies count."""
    told = Request(f"{endpoint}/moto-api/reset-auth", after.encode(), {"Content-Type": "text/plain"}, method="POST")
    urlopen(told).close()


@pytest.fixture
def user(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Makes the credentials in the environment those of a user who may do these actions with the bucket that is given."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    iam = boto3.client("iam", endpoint_url=endpoint, **ADMIN)

    def make(*actions: str) -> str:
        _enforce(endpoint, "inf")
        name = f"ada-{uuid.uuid4().hex}"
        iam.create_user(UserName=name)
        statement = {
            "Effect": "Allow",
            "Action": list(actions),
            "Resource": ["arn:aws:s3:::guarded", "arn:aws:s3:::guarded/*"],
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=name, PolicyName="some", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        settings = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        for variable, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL_S3": endpoint}.items():
            monkeypatch.setenv(variable, value)
        _enforce(endpoint, "0")
        return "s3://guarded"

    yield make
    _enforce(endpoint, "inf")


def _keys(endpoint: str) -> list[str]:
    _enforce(endpoint, "inf")
    listed = boto3.client("s3", endpoint_url=endpoint, **ADMIN).list_objects_v2(Bucket="guarded")
    return [each["Key"] for each in listed.get("Contents", [])]


def test_who_may_do_all_passes(user: Callable[..., str], endpoint: str) -> None:
    storage.check_store(f"{user(*ALL)}/store")
    assert _keys(endpoint) == ["there"]


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ("s3:ListBucket", r"the credentials may not list bucket guarded \(s3:ListBucket\); allow it"),
        ("s3:GetObject", r"the credentials may not read it \(s3:GetObject\), or nothing lies there"),
        ("s3:PutObject", r"the credentials may not write objects into bucket guarded \(s3:PutObject\); allow it"),
        ("s3:DeleteObject", r"the credentials may not delete objects in bucket guarded \(s3:DeleteObject\); allow it"),
    ],
)
def test_a_store_tells_the_action_that_lacks_and_no_probe_stays(
    user: Callable[..., str], endpoint: str, lacking: str, told: str
) -> None:
    store = user(*(action for action in ALL if action != lacking))
    with pytest.raises(ValueError, match=told) as error:
        storage.check_store(f"{store}/store")
    assert str(error.value).startswith("the store cannot be used: s3://guarded/store: ")
    assert "\n" not in str(error.value)
    assert _keys(endpoint) == ["there"]


@pytest.mark.parametrize("request_", [storage.exists, storage.read_bytes, storage.size_bytes, storage.open_read])
def test_reading_where_it_is_not_allowed_says_so(user: Callable[..., str], request_: Callable[[str], object]) -> None:
    uri = f"{user('s3:ListBucket')}/there"
    with pytest.raises(
        storage.StorageError, match=r"s3://guarded/there: the credentials may not read it \(s3:GetObject\)"
    ):
        request_(uri)


def test_listing_where_it_is_not_allowed_says_so(user: Callable[..., str]) -> None:
    uri = f"{user('s3:GetObject')}/there"
    assert storage.read_bytes(uri) == b"1"
    with pytest.raises(storage.StorageError, match=r"may not list bucket guarded \(s3:ListBucket\)"):
        storage.list_files("s3://guarded")
    with pytest.raises(
        storage.StorageError, match=r"may not list unfinished uploads in bucket guarded \(s3:ListBucketMul"
    ):
        storage.delete_unfinished("s3://guarded/run")


@pytest.mark.parametrize("request_", [storage.exists, storage.read_bytes, storage.list_files, storage.check_store])
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIANOBODY", "InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
    ],
)
def test_wrong_credentials_are_no_lack_of_permission(
    user: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    request_: Callable[[str], object],
    name: str,
    value: str,
    code: str,
) -> None:
    uri = f"{user(*ALL)}/there"
    monkeypatch.setenv(name, value)
    with pytest.raises((storage.StorageError, ValueError), match=rf"refused the credentials \({code}\)"):
        request_(uri)


def test_the_action_that_the_server_names_is_told(user: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{user(*ALL)}/there"
    said = {"Code": "AccessDenied", "Message": "User: ada is not authorized to perform: kms:Decrypt on resource: arn:x"}

    def refuse(**_: object) -> None:
        raise ClientError({"Error": said}, "GetObject")

    monkeypatch.setattr(s3_client.client(), "get_object", refuse)
    with pytest.raises(storage.StorageError, match=r"may not use keys of bucket guarded \(kms:Decrypt\)"):
        storage.read_bytes(uri)
