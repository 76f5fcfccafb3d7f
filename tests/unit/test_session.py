"""To which Ray a door attaches."""

import socket
from pathlib import Path

import pytest

from pipelines.cluster import session as cluster


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `ray start` leaves the address of its cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray/ray_current_cluster"


def test_without_a_started_cluster_ray_looks_by_itself(started: Path) -> None:
    assert cluster._address() is None


def test_a_started_cluster_that_answers_is_taken(started: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        started.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert cluster._address() is None


def test_one_that_is_gone_is_not_waited_for(started: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after a crash of the machine; Ray itself would try for ten minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    started.write_text(address)
    assert cluster._address() == "local"
    assert f"the Ray cluster started at {address} is gone" in caplog.text


def test_an_address_that_was_asked_for_is_ray_s_to_try(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    started.write_text("127.0.0.1:1")
    assert cluster._address() is None
