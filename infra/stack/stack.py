"""A cluster of real parts on this machine: S3, PostgreSQL, MLflow, and Ray on three nodes of their own.

    sudo .venv/bin/python infra/stack/stack.py up        # in two minutes; again: what is not up is started
    eval "$(sudo .venv/bin/python infra/stack/stack.py env)"
    ray job submit --working-dir . -- python pipelines/workflow.py digits --store s3://ddpm/store
    sudo .venv/bin/python infra/stack/stack.py down      # nothing of it is left

    status          what is up, and where
    kill PART       as if it lost its power: s3, postgres, mlflow, head, a, b
    start PART      and back again, with its data

The nodes are namespaces (machines.py); the head has no CPUs to give, a and b two each. All data and passwords lie in one folder,
/var/tmp/ddpm-stack. Nothing listens but on loopback and on a network that only this machine and the nodes see.
"""

import argparse
import json
import os
import secrets
import shlex
import shutil
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ceph import S3
from machines import Machine, Network, sh
from services import MARK, Service, marked, wait_until, write_secret
from tracking import POSTGRES, MLflow, PostgreSQL

from ddpm_core.errors import InputError

FOLDER = Path("/var/tmp/ddpm-stack")
NETWORK = Network("ddpm", "10.89.0")
NODES = {name: Machine(name, 11 + number, NETWORK, FOLDER / name) for number, name in enumerate(("head", "a", "b"))}
HEAD = NODES["head"]
DASHBOARD = f"http://{HEAD.address}:8265"
S3_SERVER = S3("s3", FOLDER / "s3", f"{NETWORK.gateway}:7480", 6789, "ddpm")
DATABASE = PostgreSQL("postgres", FOLDER / "postgres", 5433, "mlflow")
TRACKING = MLflow("mlflow", FOLDER / "mlflow", NETWORK.gateway, DATABASE, S3_SERVER)
SERVICES: dict[str, Service] = {each.name: each for each in (S3_SERVER, DATABASE, TRACKING)}
PACKAGES = {
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "ceph": "ceph-common",
    "radosgw": "radosgw",
    f"{POSTGRES}/postgres": "postgresql",
    "ip": "iproute2",
    "unshare": "util-linux",
}
NODE = """
ulimit -Sn 65536 2>/dev/null || ulimit -Sn $(ulimit -Hn)
exec "$RAY" start --block --node-ip-address="$ADDRESS" $OPTIONS
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("up", "down", "status", "env", "kill", "start"))
    parser.add_argument("part", nargs="?", choices=(*SERVICES, *NODES))
    args = parser.parse_args()
    if (args.what in ("kill", "start")) != (args.part is not None):
        parser.error(f"{args.what} takes {'one of the parts' if args.part is None else 'no part'}")
    try:
        need_a_machine()
        if args.what in ("env", "kill", "start") and not FOLDER.exists():
            raise InputError("no stack is here; infra/stack/stack.py up, first")
        {"up": up, "down": down, "status": status, "env": env}.get(args.what, lambda: one(args.what, args.part))()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def need_a_machine() -> None:
    if os.geteuid() != 0:
        raise InputError("the stack's nodes are namespaces, which root alone can make: run it with sudo")
    missing = sorted({package for program, package in PACKAGES.items() if not shutil.which(program)})
    if missing:
        raise InputError(f"not installed: apt-get install {' '.join(missing)}")


def up() -> None:
    """All of it, side by side where nothing waits for another."""
    began = time.monotonic()
    FOLDER.mkdir(mode=0o711, parents=True, exist_ok=True)
    if not NETWORK.is_up():
        NETWORK.up()

    def start(name: str) -> None:
        since = time.monotonic()
        if one("start", name):
            now = time.monotonic()
            print(f"{now - began:6.1f} s  {name} is up, after {now - since:.1f} s", flush=True)

    # MLflow's server wants its keys of S3; the head wants those, and MLflow's password; the other nodes want the head.
    with ThreadPoolExecutor() as pool:
        for together in (("s3", "postgres"), ("mlflow", "head"), ("a", "b")):
            list(pool.map(start, together))
    status()


def one(what: str, name: str) -> bool:
    """Kill a part, or start it, made before where it never was; whether it had to be started."""
    if name in NODES:
        return kill_node(NODES[name]) if what == "kill" else start_node(NODES[name])
    service = SERVICES[name]
    if what == "kill":
        service.kill()
    elif not marked(service.folder) or not service.answers():
        service.kill()  # what is left of it
        made = service.folder / "made"
        if made.exists():
            service.start()
        else:
            shutil.rmtree(service.folder, ignore_errors=True)  # a make that was cut short
            service.folder.mkdir(mode=0o711)
            service.make()
            made.touch()
        return True
    return False


def start_node(node: Machine) -> bool:
    if node.is_on():
        return False
    node.die()  # its namespace, where its last process ended by itself
    shutil.rmtree(node.folder / "tmp", ignore_errors=True)  # as a reboot does
    (node.folder / "root/.ray").mkdir(parents=True, exist_ok=True, mode=0o700)
    write_secret(node.folder / "root/.ray/auth_token", token())
    options = [f"--address={HEAD.address}:6379", "--num-cpus=2"]
    if node is HEAD:
        dashboard = [f"--dashboard-host={node.address}", "--dashboard-port=8265"]
        options = ["--head", "--port=6379", *dashboard, "--num-cpus=0"]
    environment = {
        **S3_SERVER.keys(),
        # The drivers of jobs run on the head, and they alone speak with MLflow.
        **(tracking_keys() if node is HEAD else {}),
        "ADDRESS": node.address,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "OPTIONS": " ".join([*options, "--num-gpus=0", "--object-store-memory=500000000"]),
        "PATH": f"{Path(sys.prefix).resolve()}/bin:{os.environ['PATH']}",
        "RAY": str(Path(sys.prefix).resolve() / "bin/ray"),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        MARK: str(node.folder),
    }
    python = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    machine = node.start(NODE, environment, node.folder.with_suffix(".log"), visible=python)
    wait_until(lambda: node.address in alive() or machine.poll() is not None, f"node {node.name}", 180)
    if machine.poll() is not None:
        raise RuntimeError(f"node {node.name} ended; {node.folder}.log ends with:\n{log_of(node)[-2000:]}")
    return True


def kill_node(node: Machine) -> bool:
    node.die()
    return False


def log_of(node: Machine) -> str:
    return node.folder.with_suffix(".log").read_text(errors="replace")


def tracking_keys() -> dict[str, str]:
    """MLflow's, of a server that may still be coming up."""
    wait_until((TRACKING.folder / "keys").exists, "MLflow's password", 30)
    return TRACKING.keys()


def token() -> str:
    """Ray's, the same for all nodes and for who submits."""
    file = FOLDER / "ray_token"
    if not file.exists():
        write_secret(file, secrets.token_hex(32))
    return file.read_text()


def alive() -> set[str]:
    """The addresses of the nodes that Ray's head counts as alive."""
    asked = urllib.request.Request(f"{DASHBOARD}/nodes?view=summary", headers={"Authorization": f"Bearer {token()}"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as told:
            summary = json.load(told)["data"]["summary"]
    except OSError:
        return set()
    return {each["ip"] for each in summary if each["raylet"].get("state") == "ALIVE"}


def status() -> None:
    there = alive() if FOLDER.exists() else set()
    rows = [
        ("s3", S3_SERVER.url, "Ceph's object gateway", S3_SERVER.answers()),
        ("postgres", DATABASE.address, "PostgreSQL, behind MLflow", DATABASE.answers()),
        ("mlflow", TRACKING.url, "MLflow, user ddpm", TRACKING.answers()),
        *(
            (name, node.address, f"Ray, {DASHBOARD}" if node is HEAD else "Ray, 2 CPUs", node.address in there)
            for name, node in NODES.items()
        ),
    ]
    for name, where, what, is_up in rows:
        print(f"{name:10}{'up' if is_up else 'down':6}{where:34}{what}")


def env() -> None:
    """What a shell needs to submit jobs, to look into the store and to open MLflow's pages."""
    found = {
        **S3_SERVER.keys(),
        **TRACKING.keys(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token(),
        "RAY_API_SERVER_ADDRESS": DASHBOARD,
    }
    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")


def down() -> None:
    """Every process, namespace, link and file."""
    for node in NODES.values():
        node.die()
    for service in SERVICES.values():
        service.kill()
    NETWORK.down()
    wait_until(lambda: not marked(FOLDER), "the last process", 30)
    sh("rm", "-rf", "--one-file-system", FOLDER)


if __name__ == "__main__":
    sys.exit(main())
