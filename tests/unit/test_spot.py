"""What EC2's metadata say of a spot instance, as infra/spot/leave.py reads them."""

import json
import runpy
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

NOTICES: list[bytes] = []


class Metadata(BaseHTTPRequestHandler):
    """IMDSv2: a token by PUT, without which nothing is told; no notice is a 404."""

    def do_PUT(self) -> None:
        self._answer(200, b"a token" if "X-aws-ec2-metadata-token-ttl-seconds" in self.headers else b"")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "a token":
            self._answer(401, b"")
        elif not NOTICES or self.path != "/latest/meta-data/spot/instance-action":
            self._answer(404, b"")
        else:
            self._answer(200, NOTICES[-1])

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int | None]]:
    NOTICES.clear()
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        script = runpy.run_path(str(Path(__file__).parents[2] / "infra/spot/leave.py"))
        yield script["seconds_left_of_ec2"]
        server.shutdown()


def test_without_a_notice_there_is_none(left: Callable[[], int | None]) -> None:
    assert left() is None


@pytest.mark.parametrize(("seconds", "expected"), [(90, range(85, 91)), (-5, range(1))])
def test_the_time_of_a_notice_is_seconds_from_now(
    left: Callable[[], int | None], seconds: int, expected: range
) -> None:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    NOTICES.append(json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode())
    assert left() in expected
