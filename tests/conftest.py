"""What tests of all rooms share: an S3 server of their own, and nothing of a Ray that this machine has or had."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest

_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session", autouse=True)
def no_other_ray() -> Iterator[None]:
    """A cluster that was started on this machine, or died on it, has left its address in Ray's folder."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_run_stays_held() -> Iterator[None]:
    """Its thread would work on beside the tests that follow, and fail them: Hypothesis refuses random numbers out of turn."""
    yield
    for thread in threading.enumerate():
        if thread.name == "holds the run":
            thread.join(10)
            assert not thread.is_alive(), "a run is still held"


@pytest.fixture
def use_s3(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """To be called with a server's URL; all settings of this machine are out of the way then."""

    def use(endpoint: str) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {**_SETTINGS, "AWS_ENDPOINT_URL_S3": endpoint}.items():
            monkeypatch.setenv(name, value)

    return use
