"""Two nodes on one machine: one of them is killed in mid-training and brought back. Needs root, socat, and an S3 server.

    AWS_ENDPOINT_URL_S3=http://127.0.0.1:7480 AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... \
        .venv/bin/python tests/distributed/two_nodes.py --store s3://BUCKET/two-nodes

The second node is a network namespace with an address of its own; it reaches the server through a relay on the first one's. Each
has one CPU, the run asks for 2 workers and 1 at least. Prints what each event cost in steps and seconds, from the log of samples
that every worker keeps (key_log/).
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
NAMESPACE, INTERFACE = "ddpm-b", "ddpm0"
HEAD, OTHER, PORT, RELAY = "10.77.0.1", "10.77.0.2", 6399, 7499
INSIDE = ["ip", "netns", "exec", NAMESPACE]


@dataclass(frozen=True)
class Done:
    """A step that a worker began."""

    at: float
    step: int
    rank: int


def sh(*command: str | Path, check: bool = True, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def join_namespaces() -> None:
    sh("ip", "netns", "add", NAMESPACE)
    sh("ip", "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", NAMESPACE)
    sh("ip", "addr", "add", f"{HEAD}/24", "dev", INTERFACE)
    sh("ip", "link", "set", INTERFACE, "up")
    for command in (f"addr add {OTHER}/24 dev {INTERFACE}", f"link set {INTERFACE} up", "link set lo up"):
        sh(*INSIDE, "ip", *command.split())


def part_namespaces() -> None:
    kill_other()
    sh("ip", "netns", "del", NAMESPACE, check=False)
    sh("ip", "link", "del", INTERFACE, check=False)


def kill_other() -> None:
    """kill -9 of everything on the second node."""
    for pid in sh("ip", "netns", "pids", NAMESPACE, check=False).split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue


def start_head(env: dict[str, str]) -> None:
    options = [f"--node-ip-address={HEAD}", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false"]
    sh(ROOT / ".venv/bin/ray", "start", "--head", *options, env=env)


def start_other(env: dict[str, str]) -> None:
    options = [f"--address={HEAD}:{PORT}", f"--node-ip-address={OTHER}", "--num-cpus=1"]
    sh(*INSIDE, ROOT / ".venv/bin/ray", "start", *options, env=env)


def steps_so_far(keys: Path) -> list[Done]:
    """What all workers began, in order of time."""
    found = []
    for file in keys.glob("*.jsonl"):
        for text in file.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # being written, or cut off by the kill
                continue
            found.append(Done(line["at"], line["step"], int(line["rank"])))
    return sorted(found, key=lambda done: done.at)


def wait_for(what: str, keys: Path, driver: subprocess.Popen[bytes], reached: int, workers: int, after: float) -> None:
    """Wait until so many workers have begun a step from `reached` on, after a moment."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        ranks = {done.rank for done in steps_so_far(keys) if done.at > after and done.step >= reached}
        if len(ranks) >= workers:
            return
        if driver.poll() is not None:
            raise RuntimeError(f"the run ended before {what}")
        time.sleep(0.2)
    raise RuntimeError(f"waited 300 s in vain for {what}")


def cost(steps: list[Done], moment: float) -> tuple[int, int, float, int]:
    """The last step begun before a moment, the first of the group of workers after it, the seconds between, and its workers."""
    before = [done for done in steps if done.at <= moment]
    # After a pause, for the workers that were left may have begun one step more.
    gaps = [(b.at - a.at, a, b) for a, b in pairwise(steps) if b.at > moment]
    seconds, last, first = max(gaps, key=lambda gap: gap[0])
    return (
        max(last.step, before[-1].step),
        first.step,
        seconds,
        len({d.rank for d in steps if first.at <= d.at < first.at + 3}),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="two-nodes-"))
    keys, log = folder / "keys", folder / "train.log"
    keys.mkdir()
    server = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "HOME": str(folder),
        "RAY_TMPDIR": str(
            folder
        ),  # where `ray start` leaves its address, which other commands of this machine would find
        "PYTHONPATH": f"{ROOT / 'tests/distributed/key_log'}:{ROOT}",
        "KEY_LOG": str(keys),
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "AWS_ENDPOINT_URL_S3": f"http://{HEAD}:{RELAY}",
        "RAY_ADDRESS": f"{HEAD}:{PORT}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    part_namespaces()
    join_namespaces()
    relay = subprocess.Popen(
        ["socat", f"TCP-LISTEN:{RELAY},bind={HEAD},fork,reuseaddr", f"TCP:{server.hostname}:{server.port}"]
    )
    driver = None
    try:
        start_head(env)
        start_other(env)
        train = [ROOT / "pipelines/train.py", "digits", "--store", args.store, "--name", folder.name]
        numbers = ["--train.num-workers", "2", "--train.min-workers", "1", "--train.steps", str(args.steps)]
        rare = ["--train.checkpoint-every", "1000", "--train.preview-every", "100000"]
        with open(log, "wb") as out:
            driver = subprocess.Popen([sys.executable, *train, *numbers, *rare], env=env, stdout=out, stderr=out)
        wait_for("100 steps on two workers", keys, driver, 100, 2, 0)
        lost_at = time.time()
        kill_other()
        wait_for("a step on one worker", keys, driver, 100, 1, lost_at + 3)
        time.sleep(5)
        back_at = time.time()
        start_other(env)
        wait_for("two workers again", keys, driver, 100, 2, back_at + 1)
        time.sleep(5)
        steps = steps_so_far(keys)
        rows = {
            "node killed": (lost_at, [done for done in steps if done.at < back_at]),
            "node back": (back_at, steps),
        }
        print("| event | last step begun before | first step after | begun anew | seconds between | workers then |")
        print("|---|---|---|---|---|---|")
        for event, (moment, seen) in rows.items():
            last, first, seconds, workers = cost(seen, moment)
            print(f"| {event} | {last} | {first} | {max(0, last - first + 1)} | {seconds:.1f} | {workers} |")
        driver.send_signal(signal.SIGTERM)
        code = driver.wait(60)
        print(f"\nSIGTERM: exit {code}; " + " / ".join(log.read_text().splitlines()[-2:]))
    finally:
        if driver is not None and driver.poll() is None:
            driver.kill()
        if driver is None or driver.returncode != 143:
            print(log.read_text()[-3000:] if log.exists() else "nothing was started", file=sys.stderr)
        sh(ROOT / ".venv/bin/ray", "stop", "--force", check=False, env=env)
        relay.kill()
        part_namespaces()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
