"""kill -9 at random moments of a run: of a worker, the coordinator, what stands for Ray's synchronizer, the driver, the raylet.

    .venv/bin/python tests/distributed/kills.py --kills 30 --workers 1 2 3 4 --seed 0

For each number of workers the small run of the digits is trained once without a break and once more while things are killed;
the same command is typed again whenever it ended. Then the final weights, averages and moments must have the same sha256, and
the log of samples (key_log/) must show each position of the stream once. Prints both tables; exit code 1 if anything differs.

Other Ray sessions of this machine would be killed too. In namespaces of its own the script sees none:
    unshare --pid --net --fork --mount-proc sh -c 'ip link set lo up; .venv/bin/python tests/distributed/kills.py ...'
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ddpm_core.artifacts.checkpoint import step_of
from ddpm_core.artifacts.checkpoint_store import CheckpointStore

ROOT = Path(__file__).parents[2]
PORT = 6399
TARGETS = ("worker", "coordinator", "synchronizer", "driver", "raylet")
TITLES = {
    "worker": "ray::RayTrainWorker",
    "coordinator": "ray::Coordinator",
    "synchronizer": "ray::NoMeeting",
    "raylet": "raylet/raylet",
}


class Cluster:
    """One Ray node on this machine with as many CPUs as asked for, and commands that run on it."""

    def __init__(self, folder: Path, cpus: int) -> None:
        self.folder, self.cpus = folder, cpus
        self.keys = folder / f"keys-{cpus}"
        self.keys.mkdir()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(folder / "home"),
            "RAY_ADDRESS": f"127.0.0.1:{PORT}",
            "RAY_TMPDIR": str(
                folder
            ),  # where `ray start` leaves its address, which other commands of this machine would find
            "PYTHONPATH": f"{ROOT / 'tests/distributed/key_log'}:{ROOT}",
            "KEY_LOG": str(self.keys),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        options = [
            f"--num-cpus={self.cpus}",
            f"--port={PORT}",
            "--include-dashboard=false",
            "--object-store-memory=200000000",
        ]
        command = [ROOT / ".venv/bin/ray", "start", "--head", "--node-ip-address=127.0.0.1", *options]
        subprocess.run(command, env=self.env, check=True, capture_output=True)

    def stop(self) -> None:
        subprocess.run([ROOT / ".venv/bin/ray", "stop", "--force"], env=self.env, check=False, capture_output=True)

    def train(self, name: str, num_workers: int, steps: int, log: Path) -> subprocess.Popen[bytes]:
        small = ["--unet.dropout", "0.1", "--train.preview-every", "100000", "--train.checkpoint-every", "20"]
        numbers = ["--train.steps", str(steps), "--train.num-workers", str(num_workers), "--train.batch-size", "48"]
        command = [sys.executable, ROOT / "pipelines/train.py", "digits", "--name", name, *numbers, *small]
        with open(log, "ab") as out:
            return subprocess.Popen(command, env=self.env, cwd=self.folder, stdout=out, stderr=out)

    def run_folder(self, name: str) -> Path:
        return self.folder / "home/.local/share/ddpm/runs" / name

    def newest(self, name: str) -> int:
        found = CheckpointStore(str(self.run_folder(name))).uris()
        return step_of(found[-1]) if found else 0

    def sums(self, name: str) -> dict[str, str]:
        state = json.loads((Path(CheckpointStore(str(self.run_folder(name))).uris()[-1]) / "state.json").read_text())
        return {part: value for part, value in state["sha256"].items() if part != "history"}

    def stands(self, target: str) -> list[int]:
        """The processes that are there to be killed."""
        return sorted(_processes(TITLES[target]))


def _processes(title: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", title], capture_output=True, text=True, check=False).stdout.split()
    return [int(pid) for pid in found if int(pid) != os.getpid()]


def count_positions(keys: Path, steps: int, batch_size: int) -> tuple[int, int]:
    """How many positions of the stream were lost, and how many trained on more than once, in the attempt that counts.

    A step that was begun anew counts as it was done last.
    """
    last: dict[tuple[int, str], tuple[float, list[int]]] = {}
    for file in keys.glob("*.jsonl"):
        for text in file.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # the process was killed while it wrote
                continue
            place = (line["step"], line["rank"])
            if place not in last or last[place][0] < line["at"]:
                last[place] = (line["at"], line["positions"])
    # Padding repeats position 0.
    seen = Counter(p for _, positions in last.values() for p in positions if p)
    expected = range(1, steps * batch_size)
    return sum(p not in seen for p in expected), sum(count > 1 for count in seen.values())


def wait_for(cluster: Cluster, target: str, driver: subprocess.Popen[bytes], delay: float) -> int | None:
    """The process to kill, so long after it first stood; None if the command ended before."""
    stood: float | None = None
    while driver.poll() is None:
        found = [driver.pid] if target == "driver" else cluster.stands(target)
        if found and stood is None:
            stood = time.monotonic()
        if found and stood is not None and time.monotonic() - stood >= delay:
            return found[-1]
        time.sleep(0.05)
    return None


def settle(cluster: Cluster, target: str, driver: subprocess.Popen[bytes]) -> None:
    """Wait until what the kill took with it is gone; but for its own death and the raylet's the driver goes on by itself."""
    if target in ("worker", "coordinator", "synchronizer"):
        return
    try:
        driver.wait(20)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
    if target == "raylet":
        cluster.stop()
        cluster.start()


def follow(cluster: Cluster, name: str, workers: int, steps: int, blows: list[tuple[str, float]]) -> list[str]:
    """Train to the end while things are killed; the rows of the table."""
    rows, log = [], cluster.folder / f"{name}.log"
    driver = cluster.train(name, workers, steps, log)
    for target, delay in blows:
        while (pid := wait_for(cluster, target, driver, delay)) is None and cluster.newest(name) < steps:
            print(f"  the command ended with {driver.returncode} and is typed again", flush=True)
            driver = cluster.train(name, workers, steps, log)
        if pid is None:
            break
        before = cluster.newest(name)
        os.kill(pid, signal.SIGKILL)
        settle(cluster, target, driver)
        rows.append(f"| {workers} | {target} | {delay:.1f} s | {before} |")
        print(rows[-1], flush=True)
        if driver.poll() is not None:
            driver = cluster.train(name, workers, steps, log)
    while driver.wait() or cluster.newest(name) < steps:
        print(f"  the command ended with {driver.returncode} and is typed again", flush=True)
        driver = cluster.train(name, workers, steps, log)
    return rows


def draw_blows(kills: int, longest: float, rng: random.Random) -> list[tuple[str, float]]:
    """Each target as often as another, in any order, each at a moment of its own."""
    targets = [TARGETS[i % len(TARGETS)] for i in range(kills)]
    rng.shuffle(targets)
    return [(target, rng.uniform(0, longest)) for target in targets]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=25.0, help="seconds that what is killed has stood, at most")
    args = parser.parse_args()
    blows = draw_blows(args.kills, args.longest, random.Random(args.seed))
    folder, failed, totals = Path(tempfile.mkdtemp(prefix="kills-")), False, []
    print("| workers | killed | after it had stood | newest checkpoint then |\n|---|---|---|---|", flush=True)
    for i, workers in enumerate(args.workers):
        cluster = Cluster(folder, workers)  # a CPU for each, and so one thread
        cluster.start()
        try:
            rows = follow(cluster, f"killed-{workers}", workers, args.steps, blows[i :: len(args.workers)])
            lost, repeated = count_positions(cluster.keys, args.steps, 48)
            whole = cluster.train(f"whole-{workers}", workers, args.steps, folder / "whole.log")
            assert whole.wait() == 0, (folder / "whole.log").read_text()
        finally:
            cluster.stop()
        same = cluster.sums(f"killed-{workers}") == cluster.sums(f"whole-{workers}")
        failed |= not same or lost > 0 or repeated > 0
        totals.append(f"| {workers} | {len(rows)} | {'the same' if same else 'OTHERS'} | {lost} | {repeated} |")
        print(totals[-1], flush=True)
    print("\n| workers | kills | weights, averages, moments | samples lost | repeated |\n|---|---|---|---|---|")
    print("\n".join(totals))
    if not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
