"""Sweeps on a cluster of two nodes: two at once, and a training beside them.

    .venv/bin/python tests/distributed/sweep_nodes.py

The nodes are those of ray.cluster_utils.Cluster, all on this machine; the store lies on a local S3 server. Settings, figures and
ranking must be equal to the last digit to those of the same sweep on one machine. Exit code 1 if anything differs.
"""

import argparse
import json
import sys
import time
from typing import Any

from clusters import OF_TRAINING, Bench, bench, cluster, ended, must

from ddpm_core import storage

SWEEP = [
    *("digits", "--train.steps", "180", "--train.checkpoint-every", "20", "--sweep.num-trials", "6"),
    *("--sweep.num-images", "64", "--sweep.repeats", "2", "--sample.sampler.num-steps", "10"),
]
OTHER = ["--space.schedule.name", "linear", "cosine", "--space.train.learning-rate", "loguniform:5e-4:2e-3"]
TIMED = {"sample_s", "train_s"}


def main() -> int:
    argparse.ArgumentParser(description=__doc__.split("\n", 1)[0]).parse_args()
    with bench() as where:
        print("one machine, to compare with", flush=True)
        calm = where.script("sweep", *SWEEP, "--name", "it", "--store", f"{where.bucket}/calm")
        must(calm.code == 0, f"a sweep of 6 trials and 4 repeats takes {calm.seconds:.0f} s", calm)
        wanted = table(f"{where.bucket}/calm", "it")
        print("two nodes of 2 CPUs: two sweeps at once, and a training", flush=True)
        with cluster(where, {"num_cpus": 2}, {"num_cpus": 2}):
            beside_each_other(where, wanted)
    print("all of it holds")
    return 0


def beside_each_other(where: Bench, wanted: list[Any]) -> None:
    store, began = ["--store", f"{where.bucket}/beside"], time.monotonic()
    commands = {
        "a training": where.start("train", "digits", *OF_TRAINING, "--train.num-workers", "1", "--name", "it", *store),
        "the sweep": where.start("sweep", *SWEEP, "--name", "it", *store),
        "another sweep": where.start("sweep", *SWEEP, *OTHER, "--name", "other", *store),
    }
    for what, process in commands.items():
        done = ended(process, began, 900)
        must(done.code == 0, f"{what} has ended with 0 after {done.seconds:.0f} s", done)
    must(table(f"{where.bucket}/beside", "it") == wanted, "the sweep's table is equal to the last digit")


def table(store: str, name: str) -> list[Any]:
    """Settings, figures and ranking of a sweep, without what was measured by the clock."""
    rows = json.loads(storage.read_bytes(f"{store}/sweeps/{name}/sweep.json"))["ranking"]
    return [_without_time({**row, "metrics": _without_time(row["metrics"])}) for row in rows]


def _without_time(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in TIMED}


if __name__ == "__main__":
    sys.exit(main())
