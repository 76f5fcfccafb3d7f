"""Keys that a command and a cluster's nodes hold are found nowhere else; who has no token is refused."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[2]
PLANTED = {
    name: secrets.token_hex(16) for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD")
}
TOKEN = secrets.token_hex(32)
PAGES = (
    "api/jobs/",
    "api/v0/jobs",
    "api/v0/actors?detail=1",
    "api/v0/tasks?detail=1",
    "api/v0/workers?detail=1",
    "api/v0/runtime_envs?detail=1",
    "logical/actors",
    "nodes?view=details",
)


@dataclass(frozen=True)
class Place:
    """A cluster with a token, an S3 server, and the environment that reaches both."""

    folder: Path
    dashboard: str
    env: dict[str, str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))  # Ray's sockets bear no long path
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))},
        **PLANTED,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "HOME": str(folder / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's python is its head's
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, env[name])
        boto3.client("s3").create_bucket(Bucket="kept")
        gcs, dashboard = free_port(), free_port()
        start = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            "--num-cpus=2",
            f"--port={gcs}",
        ]
        ports = [
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
        ]
        with open(folder / "head.log", "wb") as log:
            head = subprocess.Popen(
                [*start, *ports, f"--temp-dir={folder}/ray"], env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield Place(folder, f"http://127.0.0.1:{dashboard}", {**env, "RAY_ADDRESS": f"127.0.0.1:{gcs}"})
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
            subprocess.run(["pkill", "-9", "-f", str(folder)], check=False)  # its raylet and what hangs on that
            server.stop()
            shutil.rmtree(folder, ignore_errors=True)


def script(place: Place, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines/shard.py"), "digits", "--store", "s3://kept/store"]
    environment = {name: value for name, value in {**place.env, **env}.items() if value}
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120, check=False)


def type_page(place: Place) -> subprocess.CompletedProcess[str]:
    """docs/cluster.md's commands, in one shell, once its cluster is there; its pipeline's first stage stands for all of it."""
    text = re.sub(
        r"^## (?:AWS|Kubernetes|A cluster of real parts).*?(?=^## )",
        "",
        (ROOT / "docs/cluster.md").read_text(),
        flags=re.M | re.S,
    )  # of clusters elsewhere
    typed = re.findall(r"^    (ray (?:job|status).*)$", text, flags=re.M)
    assert len(typed) == 5
    shorter = typed[0].replace("workflow.py", "shard.py").replace("s3://bucket/ddpm", "s3://kept/store")
    job = "JOB=$(ray job list | grep -o 'raysubmit_[A-Za-z0-9]*' | head -1)"
    rest = [command.replace("JOB", "$JOB") for command in typed[1:]]
    script = "\n".join(["set -e", f". {sys.prefix}/bin/activate", shorter, job, *rest])
    env = place.env | {"RAY_API_SERVER_ADDRESS": place.dashboard}
    return subprocess.run(
        ["bash", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def page(place: Place, path: str, token: str = TOKEN) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{place.dashboard}/{path}", headers=headers), timeout=30
        ) as told:
            return told.status, told.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def wait_for_pages(place: Place) -> None:
    for _ in range(480):  # of a busy machine, four minutes
        try:
            if page(place, "api/version")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError((place.folder / "head.log").read_text())


def test_planted_keys_are_found_nowhere_and_nobody_enters_without_the_token(place: Place) -> None:
    wait_for_pages(place)
    done = type_page(place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train" in done.stdout
    found = {"what the command says": (done.stdout + done.stderr).encode()}
    found |= {path: page(place, path)[1] for path in PAGES}
    found |= {
        str(path): path.read_bytes()
        for path in place.folder.rglob("*")
        if path.is_file() and path.stat().st_size < 1 << 28
    }
    client = boto3.client("s3")
    for entry in client.list_objects_v2(Bucket="kept")["Contents"]:
        found[f"s3://kept/{entry['Key']}"] = client.get_object(Bucket="kept", Key=entry["Key"])["Body"].read()
    assert any(name.endswith("mlflow.db") for name in found)
    assert sum("ray/session_" in name for name in found) > 10
    assert page(place, "api/v0/workers?detail=1")[0] == 200
    holders = {name: key for name, data in found.items() for key, value in PLANTED.items() if value.encode() in data}
    assert holders == {}

    for token in ("", "another"):
        assert page(place, "api/jobs/", token)[0] in (401, 403), token
    assert page(place, "api/jobs/", "")[0] == 401
    refused = script(place, RAY_AUTH_MODE="", RAY_AUTH_TOKEN="")
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.strip().splitlines() if "network_util" not in line]
    assert "asks for a token, and this process has none or another one" in line
