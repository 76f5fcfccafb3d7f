"""kill -9, again and again, of one of three that do what a schedule asks for each minute: each tick has one record and one output.

    .venv/bin/python tests/distributed/schedule_kills.py --kills 10

A model of a few steps is trained first, in a store on this machine. At the end images are held against those that their tick's
command makes in another store. Exit code 1 if anything differs.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clusters import images, must

from pipelines.scheduling.records import Schedules, Tick

ROOT = Path(__file__).parents[2]
SMALL = ["--train.steps", "20", "--train.num-workers", "1", "--unet.base-channels", "8"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="schedule-kills-") as folder:
        os.environ.update(XDG_STATE_HOME=f"{folder}/state", XDG_CACHE_HOME=f"{folder}/cache", PYTHONUNBUFFERED="1")
        store = f"{folder}/store"
        said("train", "digits", *SMALL, "--store", store)
        command = [
            "--",
            "python",
            "pipelines/sample.py",
            "digits",
            "--model",
            "models:/ddpm-digits/1",
            "--num-images",
            "64",
        ]
        said("schedule", "add", "each-minute", "--cron", "* * * * *", "--store", store, *command)
        killed(store, given.kills, random.Random(given.seed))
        ticks = Schedules(store).history("each-minute", 9999)
        print(f"{given.kills} kills, {len(ticks)} ticks, by {len({tick.by for tick in ticks})} processes")
        must({tick.status for tick in ticks} == {"succeeded"}, "each tick that was begun has succeeded")
        must(len({tick.due for tick in ticks}) == len(ticks), "and has one record")
        sets = list(Path(store).glob("samples/*/set-*.json"))
        must(len(sets) == len(ticks), "there are as many sample sets")
        alone(ticks, store, f"{folder}/alone")
    return 0


def killed(store: str, kills: int, chance: random.Random) -> None:
    runs = [start(store) for _ in range(3)]
    try:
        for _ in range(kills):
            time.sleep(chance.uniform(5, 40))
            place = chance.randrange(3)
            runs[place].kill()
            runs[place].wait()
            runs[place] = start(store)
        schedules = Schedules(store)
        while schedules.standing("each-minute", schedules.read("each-minute"))[0].current is not None or not all(
            map(hears, runs)
        ):
            time.sleep(0.5)
    finally:
        for run in runs:
            run.send_signal(signal.SIGTERM)
        codes = [run.wait() for run in runs]
    must(codes == [0, 0, 0], "the last three end by SIGTERM with 0")
    said("schedule", "tick", "--store", store)  # what was let go of


def start(store: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "pipelines/schedule.py", "run", "--store", store], cwd=ROOT)


def hears(run: subprocess.Popen[bytes]) -> bool:
    """Whether it is up: it listens to SIGTERM, which ends one that still imports as it ends any program."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{run.pid}/status").read_text(), flags=re.M)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def alone(ticks: list[Tick], store: str, other: str) -> None:
    """Some of the same commands in another store, where nothing disturbs them."""
    checkpoint = max(Path(store).glob("runs/*/checkpoints/step-*"))  # the last one is what was registered
    there = {"models:/ddpm-digits/1": str(checkpoint), store: other}
    for tick in ticks[:2]:
        made = json.loads(said("sample", *(there.get(word, word) for word in tick.command[2:])).splitlines()[-1])
        same = images(made["samples"]).items() <= images(tick.made["samples"]).items()
        must(same, f"{tick.due} has the images that its command makes elsewhere, byte for byte")


def said(script: str, *args: str) -> str:
    done: Any = subprocess.run(
        [sys.executable, f"pipelines/{script}.py", *args], cwd=ROOT, text=True, capture_output=True, check=False
    )
    must(done.returncode == 0, f"{script}.py {' '.join(args[:2])} ends with 0" if done.returncode == 0 else done.stderr)
    return str(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
