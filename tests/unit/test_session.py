"""To which Ray a command attaches."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private.services import get_node_ip_address
from ray._raylet import AuthenticationMode, get_authentication_mode

from ddpm_core.errors import FailedError, InputError
from pipelines.cluster import address as cluster
from pipelines.cluster import session


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `ray start` leaves the address of its cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray/ray_current_cluster"


def test_without_a_started_cluster_one_is_started(started: Path) -> None:
    assert cluster.cluster_address() is None


def test_a_started_cluster_that_answers_is_taken(started: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started.write_text(address)
        assert cluster.cluster_address() == address


def test_one_that_is_gone_is_not_waited_for(started: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after a crash of the machine; Ray itself would try for ten minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    started.write_text(address)
    assert cluster.cluster_address() is None
    assert f"the Ray cluster started at {address} is gone" in caplog.text


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "http://10.0.0.1:8265",
            "is http://10.0.0.1:8265, the Jobs API's address; expected HOST:PORT .* ray job submit",
        ),
        ("ray://10.0.0.1:10001", "is ray://10.0.0.1:10001, Ray Client's address; expected HOST:PORT"),
        ("127.0.0.1:1", "is 127.0.0.1:1, and no Ray cluster answers there .*refused"),
        ("head", "is head, and no Ray cluster answers there"),
        ("auto", "is auto, and no cluster was started on this machine"),
    ],
)
def test_an_address_that_is_none_of_a_cluster_is_told_at_once(
    started: Path, monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=said):
        cluster.cluster_address()


def test_an_address_that_was_asked_for_goes_before_a_started_cluster(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        started.write_text("127.0.0.1:1")
        assert cluster.cluster_address() == address


def test_no_secret_travels_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    passed = session.worker_environment()
    assert "planted" not in passed.values()
    assert passed["NCCL_SOCKET_IFNAME"] == "eth1"


def test_workers_keep_their_memory_as_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with session._to_itself():
        ours = os.environ["GLIBC_TUNABLES"]
        assert "glibc.malloc.trim_threshold" in ours
    assert "GLIBC_TUNABLES" not in os.environ
    assert session.worker_environment()["GLIBC_TUNABLES"] == ours
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert session.worker_environment()["GLIBC_TUNABLES"] == "glibc.malloc.check=3"
    with session._to_itself():
        assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=3"


def test_a_ray_of_its_own_keeps_to_this_machine_and_has_a_token_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # of a cluster, which this is not
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the cluster's")
    tokens = set()
    for _ in range(2):
        with session._to_itself():
            assert get_authentication_mode() == AuthenticationMode.TOKEN
            assert get_node_ip_address() == "127.0.0.1"
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
        assert get_authentication_mode() == AuthenticationMode.DISABLED
        assert os.environ["RAY_AUTH_TOKEN"] == "the cluster's"
    assert len(tokens | {"the cluster's"}) == 3


@pytest.mark.parametrize(
    "error", [Exception("The node timed out\n during startup."), ValueError(""), TimeoutError("slow")]
)
def test_a_ray_that_does_not_come_up_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(**options: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(
        FailedError, match=r"^Ray cannot start on this machine, tried 3 times: \w[^\n]*; it may be too busy now$"
    ):
        session._start(None)
    with pytest.raises(InputError, match=r"^the Ray cluster at here:1 cannot be used: \w[^\n]*$"):
        session._start("here:1")


def test_a_machine_that_is_no_node_is_told_to_submit_a_job() -> None:
    cluster._check_node_here("head:6379", {"ab": "203.0.113.9", "cd": "127.0.0.1"})
    with pytest.raises(ValueError, match=r"^this machine is no node of the Ray cluster at head:6379; .*ray job submit"):
        cluster._check_node_here("head:6379", {"ab": "203.0.113.9"})


def test_a_task_that_has_ended_keeps_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its workers' settings keep, a process of its own shows: they must stand in the environment when it starts."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    program = """
import sys
from pathlib import Path
import torch
from pipelines.cluster.tasks import _work

def rss():
    return int(dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())["VmRSS"].split()[0]) // 1024

def fill(item):
    feature_maps = [torch.ones(2**20) for _ in range(100)]  # 4 MiB each
    held = rss()
    del feature_maps
    return held, rss()

results = _work(fill, [0])
next(results)
held, kept = next(results)
list(results)
print(held - kept, held - rss())
"""
    environment = {**os.environ, **session.worker_environment()}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    given_back_at_work, given_back_after = map(int, ended.stdout.split())
    assert given_back_at_work < 10  # 400 where the settings do nothing
    assert given_back_after > 300
