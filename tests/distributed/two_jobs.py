"""Two jobs of one run at a time, many times over, while either is killed or paused.

    .venv/bin/python tests/distributed/two_jobs.py --rounds 20 --seed 0
    .venv/bin/python tests/distributed/two_jobs.py --rounds 20 --seed 0 --store s3://BUCKET/two

Each round starts a job, and another of the same run a moment later (python -m ddpm_core.training; every other first job has
process numbers of its own, as on another machine), and after another moment does to one of them what its row says: nothing,
kill -9, SIGSTOP for longer or shorter than a holder is waited for. Then a third job goes on, to the end if neither got there. It
must hold that every checkpoint that counts is sound at every look, that a job which did not train names the one that did, and
that the weights are those of one job alone.

A holder is waited for 6 s here and not 60, unless --patience says otherwise. Prints a table; exit code 1 if anything failed.
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
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from small_run import ROOT, make_dataset, write_config

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import checkpoint_uri, is_sound
from ddpm_core.artifacts.checkpoint_store import CheckpointStore

STEPS = 240
EVENTS = (
    "nothing",
    "kill the first",
    "kill the second",
    "pause the first long",
    "pause the first",
    "pause the second long",
)
START = """
import sys
from ddpm_core.artifacts import run_record
run_record.PATIENCE_S, run_record.BEAT_S = {patience}, {patience} / 6
from ddpm_core.training.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Job:
    """One of the two."""

    process: subprocess.Popen[bytes]
    log: Path
    paused: bool = False

    def signal(self, number: int) -> None:
        """To all its processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def said(self) -> str:
        """What it printed."""
        return self.log.read_text()


def start(dataset: str, run: str, config: Path, log: Path, *, patience: float, apart: bool) -> Job:
    """A job, in a session of its own.

    Args:
        apart: with process numbers of its own: nobody else can tell that it is gone.
    """
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"] if apart else []
    command = [*unshare, sys.executable, "-c", START.format(patience=patience), dataset, run, str(config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(log, "wb") as out:
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    return Job(process, log)


def look(run: str, seen: Counter[str]) -> None:
    """Count the checkpoints that count, and those that are damaged; one that is being deleted meanwhile is looked at again."""
    for step in CheckpointStore(run).steps():
        uri = checkpoint_uri(run, step)
        if not is_sound(uri) and step in CheckpointStore(run).steps() and not is_sound(uri):
            seen["damaged"] += 1
        seen["looked at"] += 1


def play(event: str, first: Job, second: Job, run: str, pause_s: tuple[float, float], seen: Counter[str]) -> None:
    """Do what the event says, and look until both have ended."""
    target = second if "second" in event else first
    wake = 0.0
    if event.startswith("kill"):
        target.signal(signal.SIGKILL)
    elif event.startswith("pause"):
        target.signal(signal.SIGSTOP)
        wake = time.monotonic() + pause_s["long" in event]
    while first.process.poll() is None or second.process.poll() is None:
        if wake and time.monotonic() >= wake:
            target.signal(signal.SIGCONT)
            wake = 0.0
        look(run, seen)
        time.sleep(0.2)
    look(run, seen)


def sums(run: str) -> dict[str, str]:
    """Of the final weights, averages and moments."""
    state = json.loads(storage.read_bytes(storage.join(checkpoint_uri(run, STEPS), "state.json")))
    return {part: value for part, value in state["sha256"].items() if part != "history"}


def faults(first: Job, second: Job, event: str) -> list[str]:
    """What was not as it must be."""
    codes, found = [job.process.returncode for job in (first, second)], []
    for job, code in zip((first, second), codes, strict=True):
        named = "is held by process" in job.said() or "taken over by process" in job.said()
        if code == 1 and not named:
            found.append(f"exit code 1 without a name: {job.said()[-300:]}")
        if code not in (0, 1, -signal.SIGKILL, 128 + signal.SIGKILL):
            found.append(f"exit code {code}: {job.said()[-300:]}")
    if not event.startswith("kill") and codes.count(0) == 0:
        found.append("neither got to the end")
    return found


def main() -> int:
    """Play the rounds; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", help="default: a folder that is deleted again")
    parser.add_argument("--patience", type=float, default=6.0)
    args = parser.parse_args()
    rng, failed = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = args.store or str(folder / "store")
        dataset = make_dataset(folder)
        config = write_config(
            folder / "config.json", steps=STEPS, batch_size=16, checkpoint_every=10, keep_checkpoints=2
        )
        alone = start(dataset, f"{store}/alone", config, folder / "alone.log", patience=args.patience, apart=False)
        if alone.process.wait():
            raise RuntimeError(alone.said())
        wanted = sums(f"{store}/alone")
        print("| round | second after | then | event | exit codes | looked at, damaged | weights |")
        print("|---|---|---|---|---|---|---|")
        for number in range(args.rounds):
            run, event, apart = f"{store}/{number}", EVENTS[number % len(EVENTS)], number % 2 == 1
            offset, then, seen = rng.uniform(0, 6), rng.uniform(0, 6), Counter[str]()
            logs = [folder / f"{number}-{name}.log" for name in ("first", "second", "third")]
            first = start(dataset, run, config, logs[0], patience=args.patience, apart=apart)
            time.sleep(offset)
            second = start(dataset, run, config, logs[1], patience=args.patience, apart=False)
            time.sleep(then)
            play(event, first, second, run, (args.patience / 2, args.patience * 2.5), seen)
            wrong = faults(first, second, event)
            third = start(dataset, run, config, logs[2], patience=args.patience, apart=False)
            if third.process.wait():
                wrong.append(f"the third: {third.said()[-300:]}")
            look(run, seen)
            same = not wrong and sums(run) == wanted
            wrong += [] if same and not seen["damaged"] else ["weights or checkpoints"]
            failed += bool(wrong)
            codes = f"{first.process.returncode}, {second.process.returncode}"
            counts = f"{seen['looked at']}, {seen['damaged']}"
            print(
                f"| {number} | {offset:.1f} s | {then:.1f} s | {event}{', apart' if apart else ''} | {codes} | {counts} | "
                f"{'equal' if same else 'DIFFER'} |{' ' + '; '.join(wrong) if wrong else ''}",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
