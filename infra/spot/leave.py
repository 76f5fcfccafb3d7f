"""Tells the Ray cluster that this machine's node is about to go, so that a training saves its last step and goes on elsewhere.

    python infra/spot/leave.py --seconds 120               # now: a preStop hook of Kubernetes, kubernetes/base/raycluster.yaml
    python infra/spot/leave.py --seconds 120 --commands    # of a head, where the commands run and no worker does
    python infra/spot/leave.py --on-ec2-notice             # once EC2 says so: of a systemd unit, spot-notice.service

Runs on each node that may be taken away, with the python and the token of its `ray start`. Ends with 0 once no worker of a training
(or no command) is left here, or the time is over; with 2 and one line if there is no node here, or the cluster refuses.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ray._private.services import find_gcs_addresses, find_node_ids

METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
_WORKER = b"ray::RayTrainWorker"
_COMMAND = re.compile(rb"[^\0]*python[^\0]*\0(?:[^\0]*/)?(?:pipelines/\w+\.py|bin/ddpm)\0")
_LOOK_S = 2.0
_TOKEN_S = 60


def seconds_left_of_ec2() -> int | None:
    """What EC2's metadata (IMDSv2) say of this spot instance: seconds until it is taken away; None: nothing yet."""
    wanted = urllib.request.Request(
        f"{METADATA}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
    )
    with urllib.request.urlopen(wanted, timeout=5) as answer:
        token = answer.read().decode()
    asked = urllib.request.Request(
        f"{METADATA}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            at = datetime.fromisoformat(json.load(answer)["time"])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return max(0, int((at - datetime.now(UTC)).total_seconds()))


def wait_for_ec2() -> int:
    """Look every few seconds; the seconds left once there is a notice."""
    away = False
    while True:
        try:
            left = seconds_left_of_ec2()
            away = False
        except OSError as error:
            left = None
            if not away:
                print(f"EC2's metadata at {METADATA} cannot be read, and are tried again: {error}", file=sys.stderr)
            away = True
        if left is not None:
            return left
        time.sleep(_LOOK_S)


def announce(seconds: int) -> None:
    """Have the cluster drain each of this machine's nodes.

    Raises:
        ValueError: in one line, if there is none, or the cluster refuses.
    """
    heads, nodes = find_gcs_addresses(), find_node_ids()
    if not heads or not nodes:
        raise ValueError("no node of a Ray cluster runs on this machine; expected one that `ray start` started")
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "this machine is about to be taken away"]
    for node in nodes:
        ray = [Path(sys.executable).with_name("ray"), "drain-node", "--address", next(iter(heads)), "--node-id", node]
        done = subprocess.run(
            [*ray, *why, "--deadline-remaining-seconds", str(seconds)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise ValueError(f"node {node} could not be announced to {next(iter(heads))}: {said[-1]}")
        print(f"node {node} goes in {seconds} s, the cluster was told", flush=True)


def wait_until_left(seconds: int) -> None:
    """Until no worker of a training is here: it has saved, and goes on elsewhere."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_WORKER in command for _, command in _commands()):
        time.sleep(0.5)


def end_commands(seconds: int) -> None:
    """SIGTERM to each of this project's commands here: it saves, and ends with 143, which whoever started it takes for a failure.

    A `ray job stop` would not do: a RayJob that was stopped is complete for KubeRay, and never started again.
    """
    deadline = time.monotonic() + seconds
    told = [pid for pid, command in _commands() if _COMMAND.match(command)]
    for pid in told:
        os.kill(pid, signal.SIGTERM)
        print(f"process {pid} was told to end", flush=True)
    while time.monotonic() < deadline and any(pid in told for pid, command in _commands() if command):
        time.sleep(0.5)


def _commands() -> Iterator[tuple[int, bytes]]:
    """Number and arguments of each process; one that has ended and was not waited for has none."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes()
        except OSError:  # it has ended
            continue


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--seconds", type=int, help="until the machine is gone")
    when.add_argument("--on-ec2-notice", action="store_true", help="wait for EC2's notice")
    parser.add_argument(
        "--commands", action="store_true", help="end this project's commands here; tell the cluster nothing"
    )
    given = parser.parse_args()
    seconds = wait_for_ec2() if given.on_ec2_notice else given.seconds
    if given.commands:
        end_commands(seconds)
        return 0
    try:
        announce(seconds)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wait_until_left(seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
