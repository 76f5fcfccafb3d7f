"""infra/stack from nothing to nothing: who enters, the whole pipeline by `ray job submit`, each part killed, the same weights.

    sudo .venv/bin/python tests/distributed/stack_kills.py        (or make stack-test)

The digits are trained, sampled, evaluated and registered twice with the same settings: undisturbed; and with a node, the driver,
MLflow, PostgreSQL and the S3 server killed in turn and started again, the same command typed again where it ended. Weights, images
and figures must be the same. Then all services are killed at once and come back with their data, passwords are looked for in all
that was written, and the stack is taken down. Prints each phase with its seconds; ends with 1 where something does not hold.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError
from mlflow import MlflowClient
from ssh_cluster import must, phase, wait_until

from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.errors import InputError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "infra/stack"))

import stack  # noqa: E402
from machines import sh  # noqa: E402

SMALL = [
    *(
        "--train.steps",
        "2000",
        "--train.checkpoint-every",
        "100",
        "--train.batch-size",
        "32",
        "--unet.base-channels",
        "16",
    ),
    *("--train.num-workers", "2", "--train.min-workers", "1"),
    *("--sample.num-images", "96", "--evaluate.num-images", "96"),
]
AWAY_S = 15


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        stack.need_a_machine()
        if stack.FOLDER.exists():
            raise InputError(f"{stack.FOLDER} is there, a stack of somebody's: infra/stack/stack.py down, first")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with taken_down():
            whole()
    except (RuntimeError, subprocess.TimeoutExpired):
        return 1
    print("all of it holds")
    return 0


@contextlib.contextmanager
def taken_down() -> Iterator[None]:
    """Where it did not hold, logs are kept, and why is said first."""
    try:
        yield
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}\nlogs lie in {keep_logs()}", file=sys.stderr, flush=True)
        raise
    finally:
        with phase("stack.py down"):
            stack.down()
    left = sh("ip", "netns") + sh("ip", "-br", "link") + sh("mount")
    must("ddpm" not in left, "no namespace, link or mount is left")
    must(not stack.marked(stack.FOLDER) and not stack.FOLDER.exists(), "no process, no file")


def keep_logs() -> Path:
    """The services' and Ray's."""
    target = stack.FOLDER.with_name("ddpm-stack.logs")
    shutil.rmtree(target, ignore_errors=True)
    for log in (
        *stack.FOLDER.glob("*/*.log"),
        *stack.FOLDER.glob("*.log"),
        *stack.FOLDER.glob("*/tmp/ray/session_2*/logs"),
    ):
        to = target / log.relative_to(stack.FOLDER)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(log, to, ignore_dangling_symlinks=True) if log.is_dir() else shutil.copy(log, to)
    return target


def whole() -> None:
    began = time.monotonic()
    with phase("stack.py up, from nothing"):
        stack.up()
    must(time.monotonic() - began < 120, "in two minutes")
    os.environ.update(environment())
    print("who has no token, no password or no key", flush=True)
    closed_doors()
    with phase("the pipeline, undisturbed"):
        done = submit("calm")
        must(done.returncode == 0, "ends with 0", done)
    with phase("the pipeline, each part killed in turn"):
        disturbed()
    must(made("shaken") == made("calm"), "weights, averages, moments, images and figures are the same to the last bit")
    told = {name: tracked(name) for name in ("calm", "shaken")}
    must(told["calm"] == told["shaken"], f"MLflow tells the same of both: {told['calm']}")
    restarted()
    passwords_are_nowhere()


def environment() -> dict[str, str]:
    """What `stack.py env` prints."""
    said = subprocess.run(
        [sys.executable, ROOT / "infra/stack/stack.py", "env"], capture_output=True, text=True, check=True
    )
    return dict(line.removeprefix("export ").split("=", 1) for line in said.stdout.splitlines())


def job(verb: str, *args: str, timeout_s: float = 1200) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("ray"), "job", verb, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s)


def submit(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = ["python", "pipelines/workflow.py", "digits", "--store", f"s3://ddpm/{name}", "--name", name, *SMALL]
    return job("submit", *flags, "--working-dir", ".", "--", *command)


def status(submission: str) -> str:
    """As the Jobs API has it."""
    with urllib.request.urlopen(
        urllib.request.Request(
            f"{stack.DASHBOARD}/api/jobs/{submission}", headers={"Authorization": f"Bearer {stack.token()}"}
        ),
        timeout=30,
    ) as told:
        return str(json.load(told)["status"])


def disturbed() -> None:
    first, again = "shaken-1", "shaken-2"
    done = submit("shaken", "--no-wait", "--submission-id", first)
    must(done.returncode == 0, "is submitted", done)
    reach_the_next(first)
    with away(
        next(name for name, node in stack.NODES.items() if any("RayTrainWorker" in each for each in node.processes()))
    ):
        reach_the_next(first)
    with phase("    the driver is killed, and a node with it: the job has failed"):
        killed = [pid for pid in stack.HEAD.pids() if command_of(pid).startswith("python pipelines/workflow.py")]
        must(len(killed) == 1, f"one driver, {command_of(killed[0])[:60]}")
        os.kill(killed[0], signal.SIGKILL)
        stack.one("kill", "b")
        wait_until(lambda: status(first) == "FAILED", "the job's end", 180)
    done = submit("shaken", "--no-wait", "--submission-id", again)
    must(
        done.returncode == 0,
        "the same command is submitted again, before the cluster knows that the node is gone",
        done,
    )
    stack.one("start", "b")
    for part in ("mlflow", "postgres", "s3"):
        reach_the_next(again)
        with away(part):
            time.sleep(AWAY_S)
    wait_until(lambda: status(again) not in ("PENDING", "RUNNING"), "its end", 900)
    must(status(again) == "SUCCEEDED", "it ends with 0", job("logs", again))


@contextlib.contextmanager
def away(part: str) -> Iterator[None]:
    with phase(f"    {part} is killed after step {step()}, and started again"):
        stack.one("kill", part)
        yield
        stack.one("start", part)


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def step() -> int:
    """The last one of the disturbed run that was saved."""
    return max(CheckpointStore("s3://ddpm/shaken/runs/shaken").steps(), default=0)


def reach_the_next(submission: str) -> None:
    before = step()
    wait_until(lambda: step() > before or status(submission) in ("FAILED", "SUCCEEDED"), f"a step after {before}", 600)
    must(step() > before, f"a step after {before}", job("logs", submission))


def objects(prefix: str = "") -> dict[str, bytes]:
    """All that lies in the bucket, by key."""
    client, bucket = stack.S3_SERVER.client(), stack.S3_SERVER.bucket
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def made(name: str) -> dict[str, Any]:
    """What a pipeline has made: the digests of the last checkpoint and of the images, and the report's figures."""
    found = objects(f"{name}/")
    run = f"{name}/runs/{name}/checkpoints/"
    state = json.loads(found[max(key for key in found if key.startswith(run) and key.endswith("state.json"))])
    images = [body for key, body in sorted(found.items()) if "/samples/" in key and key.endswith(".tar")]
    report = next(json.loads(body) for key, body in found.items() if key.endswith("report.json"))
    return {
        "step": state["step"],
        "weights": {part: state["sha256"][part] for part in ("model", "ema", "optimizer")},
        "images": hashlib.sha256(b"".join(images)).hexdigest(),
        "figures": {each["name"]: each["value"] for each in report["figures"]},
    }


def tracked(name: str) -> list[tuple[str, str, int]]:
    """Name, status and points of the loss of each run that MLflow has of a pipeline, its own and below it those of its stages."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("ddpm-digits")
    runs = client.search_runs([experiment.experiment_id])
    own = next(each for each in runs if each.info.run_name == name)
    below = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == own.info.run_id]
    return sorted(
        (
            each.info.run_name.replace(name, "NAME"),
            each.info.status,
            len(client.get_metric_history(each.info.run_id, "loss")),
        )
        for each in (own, *below)
    )


def code(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as told:
            return int(told.status)
    except urllib.error.HTTPError as error:
        return error.code


def closed_doors() -> None:
    """Who has no token, no password, no key, or another's."""
    dashboard, mlflow = stack.DASHBOARD, f"{stack.TRACKING.url}/api/2.0/mlflow/experiments/search?max_results=1"
    basic = {"Authorization": "Basic " + base64.b64encode(b"ddpm:wrong").decode()}
    for path in ("api/jobs/", "nodes?view=summary", "api/v0/actors", "api/v0/tasks", "api/v0/runtime_envs"):
        must(code(f"{dashboard}/{path}") == 401, f"{dashboard}/{path} without a token: 401")
    wrong = {"Authorization": "Bearer " + "0" * 64}
    must(
        code(f"{dashboard}/api/jobs/", **wrong) in (401, 403),
        f"{dashboard}/api/jobs/ with another token: {code(f'{dashboard}/api/jobs/', **wrong)}",
    )
    must(code(mlflow) == 401, "MLflow's API without a password: 401")
    must(code(mlflow, **basic) == 401, "MLflow's API with another password: 401")
    must(code(f"{stack.S3_SERVER.url}/ddpm") == 403, "the bucket without a key: 403")
    must(refused() == 403, "the bucket with another secret: 403")
    psql = ["psql", "--no-password", f"postgresql://mlflow@{stack.DATABASE.address}/mlflow", "-c", "select 1"]
    done = subprocess.run(
        psql, env={"PATH": os.environ["PATH"], "PGPASSWORD": "wrong"}, capture_output=True, text=True, check=False
    )
    must("password authentication failed" in done.stderr, "PostgreSQL with another password: refused")
    ray = [Path(sys.executable).with_name("ray"), "status", f"--address={stack.HEAD.address}:6379"]
    done = subprocess.run(
        ray, env={**os.environ, "RAY_AUTH_TOKEN": "0" * 64}, capture_output=True, text=True, check=False, timeout=120
    )
    must(done.returncode != 0, "the head's tables with another token: refused", done)
    listening = {line.split()[3] for line in sh("ss", "-Hltn").splitlines() if stack.NETWORK.gateway in line}
    must(
        listening == {f"{stack.NETWORK.gateway}:{port}" for port in (5000, 7480)},
        f"this host listens at {sorted(listening)} alone",
    )


def refused() -> int:
    server = stack.S3_SERVER
    session = boto3.Session(server.keys()["AWS_ACCESS_KEY_ID"], "0" * 40, region_name="us-east-1")
    try:
        session.client("s3", endpoint_url=server.url).list_objects_v2(Bucket=server.bucket)
    except ClientError as error:
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return 200


def restarted() -> None:
    """All services lose their power at once."""
    before = objects(), tracked("calm"), registered()
    with phase("S3, PostgreSQL and MLflow are killed at once, and started"):
        for name in stack.SERVICES:
            stack.one("kill", name)
        stack.up()
    must(
        before == (objects(), tracked("calm"), registered()),
        f"{len(before[0]):,} objects, MLflow's runs and the versions {registered()} are as they were",
    )


def registered() -> list[tuple[str, str]]:
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    return [
        (f"{each.name}/{each.version}", each.tags.get("weights_sha256", "")[:8])
        for each in client.search_model_versions()
    ]


def passwords_are_nowhere() -> None:
    """But in the files that hold them, for one user alone, and in Ceph's own tables."""
    server, tracking, database = stack.S3_SERVER, stack.TRACKING, stack.DATABASE
    holders = [server.folder / "keys", *server.folder.glob("*.keyring"), database.folder / "password"]
    holders += [tracking.folder / "keys", tracking.folder / "flask", *tracking.folder.glob("*.ini")]
    holders += [stack.FOLDER / "ray_token", *stack.FOLDER.rglob("auth_token")]
    open_to = [path for path in holders if path.stat().st_mode & 0o077]
    must(not open_to, f"{len(holders)} files hold keys, each for its user alone {open_to or ''}")
    secrets = [
        stack.token(),
        server.keys()["AWS_SECRET_ACCESS_KEY"],
        database.password,
        tracking.keys()["MLFLOW_TRACKING_PASSWORD"],
        (tracking.folder / "flask").read_text(),
    ]
    must(min(map(len, secrets)) >= 40, "five secrets are looked for")
    passed_over = {*holders, *(path for part in ("osd.0", "mon.a") for path in (server.folder / part).rglob("*"))}
    files = [
        path for path in stack.FOLDER.rglob("*") if path not in passed_over and path.is_file() and not path.is_symlink()
    ]
    found = {str(path): path.read_bytes() for path in files} | objects()
    found |= {
        f"arguments of process {pid}": command_of(pid).encode()
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
    }
    leaks = [name for name, body in found.items() if any(secret.encode() in body for secret in secrets)]
    must(not leaks, f"none in {len(found):,} files, objects and processes' arguments {leaks or ''}")


if __name__ == "__main__":
    sys.exit(main())
