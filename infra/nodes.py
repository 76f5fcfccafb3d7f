"""What the nodes of a cluster have, and whether it is the same.

python infra/nodes.py                # on the head: waits for every node that its file names, a line each
python infra/nodes.py versions       # of this machine
python infra/nodes.py same FILE      # as what is noted there, else one line and exit code 1
"""

import argparse
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONFIG = Path("~/ray_bootstrap_config.yaml").expanduser()
LOGS = Path("/tmp/ray/session_latest/logs")
_LOOK_S = 2.0
_SAY_S = 15.0


def versions() -> str:
    """Those that all nodes must share. What stands after a +, as in 2.13.0+cpu, may differ between a head and nodes with a GPU."""
    torch = version("torch").partition("+")[0]
    return f"Python {platform.python_version()}, Ray {version('ray')}, torch {torch}"


def difference(ours: str, heads: str) -> str | None:
    """In one line what differs; None if nothing does."""
    pairs = zip(ours.split(", "), heads.split(", "), strict=True)
    other = [f"{mine}, the head {theirs}" for mine, theirs in pairs if mine != theirs]
    if not other:
        return None
    # With the address by which it was reached, by which last_error finds it.
    reached = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    return (
        f"{' '.join([socket.gethostname(), *reached])} has {'; '.join(other)}; expected the same on every node: "
        "the same release of the system, or uv, which brings the head's Python; then remove .venv here"
    )


def expected(config: dict[str, Any]) -> list[str]:
    """The addresses that a file of the local provider names; of a cloud, whose nodes come and go, none."""
    provider = config["provider"]
    return [provider["head_ip"], *provider["worker_ips"]] if provider["type"] == "local" else []


def last_error(address: str, log: str) -> str:
    """What the set-up of a node said last in the head's log, if it was an error."""
    said = re.findall(rf"error: (.*\b{re.escape(address)}\b.*)", log)
    return said[-1].strip() if said else "not there yet"


def wait_for_nodes(wanted: list[str], seconds: float) -> int:
    """Print a line for each node; the exit code."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported, which reads it
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    deadline, say_at = time.monotonic() + seconds, time.monotonic() + _SAY_S
    while True:
        alive = {node["NodeManagerAddress"]: node for node in ray.nodes() if node["Alive"]}
        missing = [address for address in wanted if address not in alive]
        if not missing or time.monotonic() > deadline:
            break
        if time.monotonic() > say_at:
            print(f"waiting for {', '.join(missing)}", flush=True)
            say_at += _SAY_S
        time.sleep(_LOOK_S)
    asked = ray.remote(num_cpus=0)(versions)
    for address, node in sorted(alive.items()):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        has = ", ".join(f"{node['Resources'].get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        print(
            f"{address}  {node['NodeManagerHostname']}  {has}  {ray.get(asked.options(scheduling_strategy=there).remote())}"
        )
    log = "".join(path.read_text(errors="replace") for path in sorted(LOGS.glob("monitor*")))
    for address in missing:
        print(
            f"error: {address} is not in the cluster after {seconds:.0f} s: {last_error(address, log)}", file=sys.stderr
        )
    return 1 if missing else 0


def stop(config: dict[str, Any]) -> int:
    """The exit code. The head first, whose autoscaler would start the others again."""
    subprocess.run(["ray", "stop"], check=False)
    auth, failed = config["auth"], 0
    for address in expected(config)[1:]:
        key = ["-i", os.path.expanduser(auth["ssh_private_key"])] if "ssh_private_key" in auth else []
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "StrictHostKeyChecking=no"]
        there = ["ssh", *key, *options, "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        # Its own `ray`, whatever the PATH of a shell that nobody logs into.
        done = subprocess.run([*there, f"{auth['ssh_user']}@{address}", "~/ddpm/.venv/bin/ray stop"], check=False)
        if done.returncode:
            print(f"error: Ray on {address} could not be ended: ssh ended with {done.returncode}", file=sys.stderr)
            failed = 1
    return failed


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("wait", "versions", "same", "stop"), default="wait")
    parser.add_argument("file", nargs="?", type=Path, help="of same: where the head's versions are noted")
    parser.add_argument(
        "--timeout", type=float, default=600, metavar="SECONDS", help="to wait for nodes (default: 600)"
    )
    given = parser.parse_args()
    if given.what == "versions":
        print(versions())
        return 0
    if given.what == "same":
        differs = difference(versions(), given.file.read_text().strip())
        if differs:
            print(f"error: {differs}", file=sys.stderr)
        return 1 if differs else 0
    if given.what == "stop":
        return stop(json.loads(CONFIG.read_text()))
    return wait_for_nodes(expected(json.loads(CONFIG.read_text())), given.timeout)


if __name__ == "__main__":
    sys.exit(main())
