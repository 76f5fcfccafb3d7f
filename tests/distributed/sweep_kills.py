"""kill -9 and Ctrl-C at random moments of a sweep: of its driver and of its trials' processes; its table must come out the same.

    .venv/bin/python tests/distributed/sweep_kills.py --kills 10 --seed 0

A small sweep of the digits (random draws, synchronous rungs, fresh seeds) runs once undisturbed, and once more in another store
while things are killed; the same command is typed again whenever it ended. Settings, figures and ranking must be equal to the
last digit, no result may have been written twice, and nothing of Ray may be left. Prints what was killed and when; exit code 1
if anything differs. Other Ray sessions of this machine would be disturbed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TARGETS = ("driver", "trial", "Ctrl-C")
_ENDING_S = 10.0
"""A process of Ray may end so much later than the command."""
_SWEEP = [
    *("digits", "--name", "it", "--train.steps", "180", "--train.checkpoint-every", "20", "--sweep.num-trials", "8"),
    *("--sweep.num-images", "64", "--sweep.repeats", "2", "--sample.sampler.num-steps", "10"),
]


class Sweep:
    """The sweep in a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.store, self.log = folder / "store", folder / "log"
        folder.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env = {**environment, "OMP_NUM_THREADS": "1", "HOME": str(folder)}

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, ROOT / "pipelines/sweep.py", *_SWEEP, "--store", self.store]
        with open(self.log, "ab") as out:
            # A shell has what runs behind it ignore Ctrl-C.
            heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
            return subprocess.Popen(
                command, env=self.env, stdout=out, stderr=out, start_new_session=True, preexec_fn=heard
            )

    @property
    def folder(self) -> Path:
        return self.store / "sweeps" / "it"

    def results(self) -> dict[str, int]:
        """When each was written."""
        folder = self.folder / "results"
        return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")} if folder.exists() else {}

    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folder / "sweep.json").read_text())
        return told

    def table(self) -> list[tuple[Any, ...]]:
        """The ranking without what was measured by the clock."""
        rows = self.told()["ranking"]
        return [
            (row["number"], row["setting"], row["step"], row["course"], row["repeats"], _without_time(row["metrics"]))
            for row in rows
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=60.0, help="seconds between two kills, at most")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="ddpm-kills-") as folder:
        calm, disturbed = Sweep(Path(folder) / "calm"), Sweep(Path(folder) / "disturbed")
        began = time.monotonic()
        must(calm.start().wait() == 0, f"undisturbed: {len(calm.results())} results", calm)
        print(f"  in {time.monotonic() - began:.0f} s")
        _disturb(disturbed, args.kills, args.longest, chance)
        must(disturbed.told()["state"] == "finished", "it finished", disturbed)
        must(disturbed.table() == calm.table(), "settings, figures and ranking are equal to the last digit", disturbed)
        must(sorted(disturbed.results()) == sorted(calm.results()), "the same results are on record", disturbed)
        until = time.monotonic() + _ENDING_S
        while (left := _ray_processes()) and time.monotonic() < until:
            time.sleep(0.5)
        must(not left, f"nothing of Ray is left{f' but {left}' if left else ''}", disturbed)


def _disturb(sweep: Sweep, kills: int, longest: float, chance: random.Random) -> None:
    """Kill so many times, and let it come to its end."""
    done, seen = 0, dict[str, int]()
    while True:
        process, began = sweep.start(), time.monotonic()
        while process.poll() is None:
            if done == kills:
                must(process.wait() == 0, "the last attempt ends with 0", sweep)
                return
            time.sleep(chance.uniform(5.0, longest))
            target = chance.choice(TARGETS)
            if process.poll() is None and _kill(target, process):
                done += 1
                print(f"  {time.monotonic() - began:5.1f} s: {target}; {len(sweep.results())} results", flush=True)
                if target != "trial":
                    code = process.wait()
                    wanted = {"driver": -signal.SIGKILL, "Ctrl-C": 130}[target]
                    must(code == wanted, f"it ended with {code}", sweep)
                    if target == "Ctrl-C" and sweep.folder.joinpath("sweep.json").exists():
                        must(
                            sweep.told()["state"] in ("interrupted", "running"), f"state {sweep.told()['state']}", sweep
                        )
            again = {name: at for name, at in sweep.results().items() if seen.get(name, at) != at}
            must(not again, "no result was written again", sweep)
            seen = sweep.results()
        time.sleep(3.0)  # Ray's processes see that their driver is gone
        if done < kills and process.returncode == 0:
            print(f"  it ended after {done} kills")
            return


def _kill(target: str, driver: subprocess.Popen[bytes]) -> bool:
    """Whether there was something to kill."""
    if target == "Ctrl-C":
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        return True
    if target == "driver":
        driver.kill()
        return True
    trials = [pid for pid, title in _ray_processes() if "ray::_trainable" in title or "ray::ImplicitFunc" in title]
    for pid in trials[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(trials)


def _ray_processes() -> list[tuple[int, str]]:
    rows = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = [(int(row.split(None, 1)[0]), row.split(None, 1)[1]) for row in rows[1:]]
    return [(pid, title) for pid, title in found if title.startswith("ray::") or "raylet/raylet" in title]


def _without_time(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "sample_s"}


def must(holds: bool, what: str, sweep: Sweep) -> None:
    print(f"{'held' if holds else 'FAILED'}  {what}", flush=True)
    if not holds:
        print(sweep.log.read_text()[-4000:])
        sys.exit(1)


if __name__ == "__main__":
    main()
