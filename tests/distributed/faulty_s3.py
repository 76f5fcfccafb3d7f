"""A whole training run over an S3 server that fails: the same weights, and what the faults cost. Needs an S3 server.

    AWS_ENDPOINT_URL_S3=http://127.0.0.1:7480 AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... \
        .venv/bin/python tests/distributed/faulty_s3.py --store s3://BUCKET/faulty --rate 0.1 0.3 --seed 0

`pipelines/train.py digits` shards, trains and registers once without faults and once for each rate, each time through
fault_proxy.py, in a Ray session, a home and a prefix of its own: nothing is there already. On a machine with other work the seconds
say little; --rounds takes turns. Prints the table; exit code 1 if the dataset, or the final weights, averages or moments, differ.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fault_proxy import KINDS, FaultProxy, seeded

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import read_history

ROOT = Path(__file__).parents[2]
BATCH_SIZE = 48
PROGRESS = re.compile(r"\w+: [\d,]+ of [\d,]+ ")


@dataclass(frozen=True)
class Ended:
    """What one run came to."""

    rate: float
    counts: Counter[str]
    """Requests by what befell them."""
    said: list[str]
    """Lines on stderr, but for the progress."""
    door_s: float
    training_s: float
    """Of these the steps, without the previews."""
    load: float
    """Processes that wanted a core, over the last minute."""
    sums: dict[str, str]
    """Digest of the dataset, and sha256 of each file of tensors."""


def environment(home: Path, endpoint: str) -> dict[str, str]:
    """Nothing of this user's: no home, no cache, no Ray session, no MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XDG_", "MLFLOW_"))}
    return {
        **kept,
        "HOME": str(home),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "AWS_ENDPOINT_URL_S3": endpoint,
    }


def training_s(checkpoint: str) -> float:
    """Seconds that the steps took, from the history."""
    history = read_history(checkpoint)
    pairs = zip([0, *(row["step"] for row in history)], history, strict=False)
    return sum((now["step"] - since) * BATCH_SIZE / now["images_per_s"] for since, now in pairs)


def digests(checkpoint: str) -> dict[str, str]:
    state = json.loads(storage.read_bytes(storage.join(checkpoint, "state.json")))
    tensors = {part: value for part, value in state["sha256"].items() if part != "history"}
    return {"dataset": state["dataset_digest"], **tensors}


def train(args: argparse.Namespace, rate: float, seed: int, store: str) -> Ended:
    """One run of the command, to the end.

    Raises:
        RuntimeError: with what it said, if it did not get there.
    """
    home = Path(tempfile.mkdtemp(prefix="faulty-"))
    numbers = ["--train.steps", args.steps, "--train.num-workers", args.workers, "--train.batch-size", BATCH_SIZE]
    often = ["--train.checkpoint-every", args.checkpoint_every, "--train.preview-every", 100]
    command = [sys.executable, ROOT / "pipelines/train.py", "digits", "--json", "--store", store, *numbers, *often]
    server = os.environ["AWS_ENDPOINT_URL_S3"]
    with FaultProxy(server, seeded(rate, seed), latency_s=args.latency_s) as proxy:
        began = time.monotonic()
        env = environment(home, proxy.url)
        done = subprocess.run(list(map(str, command)), env=env, cwd=home, capture_output=True, text=True, check=False)
        door_s, counts, load = time.monotonic() - began, proxy.counts.copy(), os.getloadavg()[0]
    if done.returncode:
        raise RuntimeError(f"at a rate of {rate} the command ended with {done.returncode}: {done.stdout}{done.stderr}")
    shutil.rmtree(home, ignore_errors=True)
    said = [line for line in done.stderr.splitlines() if line.strip() and not PROGRESS.match(line)]
    checkpoint = json.loads(done.stdout.splitlines()[-1])["checkpoint"]
    return Ended(rate, counts, said, door_s, training_s(checkpoint), load, digests(checkpoint))


def row(ours: Ended, sums: dict[str, str], clean_s: float) -> str:
    """The run's row of the table, beside those without faults."""
    failed = ours.counts.total() - ours.counts["passed"]
    kinds = ", ".join(f"{kind} {ours.counts[kind]}" for kind in KINDS if ours.counts[kind])
    cells = [
        f"{ours.rate:.0%}" if ours.rate else "none",
        f"{ours.counts.total()}",
        f"{failed}" + (f" ({kinds})" if kinds else ""),
        f"{len(ours.said)}",
        f"{ours.door_s:.1f}",
        f"{ours.door_s - clean_s:+.1f} s, {ours.door_s / clean_s - 1:+.0%}" if ours.rate else "",
        f"{ours.training_s:.1f}",
        f"{ours.load:.1f}",
        "the same bits" if ours.sums == sums else "OTHERS",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="s3://BUCKET/prefix; what is written below it is deleted again")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.1], help="share of the requests that fail")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--latency-s", type=float, default=2.0, help="how late a late answer is")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint-every", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="of all rates, each with faults of another seed")
    args = parser.parse_args()
    base = storage.join(args.store, f"{time.time_ns():x}")
    ended: list[Ended] = []
    try:
        for turn, rate in itertools.product(range(args.rounds), (0.0, *args.rate)):
            ended.append(train(args, rate, args.seed + turn, storage.join(base, f"run-{len(ended)}")))
            for line in ended[-1].said:
                print(f"at {rate:.0%}: {line}", file=sys.stderr, flush=True)
    finally:
        for uri, _ in storage.list_files(base):
            storage.delete(uri)
    sums, clean_s = ended[0].sums, median(each.door_s for each in ended if not each.rate)
    names = "faults | requests | of these failed | warnings | seconds for the command | slower by | for the steps | load | weights"
    print(f"| {names} |\n|" + "---|" * (names.count("|") + 1))
    print("\n".join(row(each, sums, clean_s) for each in ended))
    return int(any(each.sums != sums for each in ended))


if __name__ == "__main__":
    sys.exit(main())
