"""Sweeps on a cluster of two nodes: two at once, and a training beside them; and one that loses a node, and gets it back.

    .venv/bin/python tests/distributed/sweep_nodes.py [CASE ...]

Cases, both unless one is named: beside, killed. The nodes are those of ray.cluster_utils.Cluster, all on this machine; the store
lies on a local S3 server. Settings, figures and ranking must be equal to the last digit to those of the same sweep on one machine.
Exit code 1 if anything differs.
"""

import argparse
import json
import sys
import time
from typing import Any

from clusters import OF_TRAINING, Bench, bench, cluster, ended, must, uris, wait_until
from ray.cluster_utils import Cluster

from ddpm_core import storage

SWEEP = [
    *("digits", "--train.steps", "180", "--train.checkpoint-every", "20", "--sweep.num-trials", "6"),
    *("--sweep.num-images", "64", "--sweep.repeats", "2", "--sample.sampler.num-steps", "10"),
]
OTHER = ["--space.schedule.name", "linear", "cosine", "--space.train.learning-rate", "loguniform:5e-4:2e-3"]
TIMED = {"sample_s", "train_s"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="beside, killed")
    cases = parser.parse_args().cases or ["beside", "killed"]
    with bench() as where:
        print("one machine, to compare with", flush=True)
        calm = where.script("sweep", *SWEEP, "--name", "it", "--store", f"{where.bucket}/calm")
        must(calm.code == 0, f"a sweep of 6 trials and 4 repeats takes {calm.seconds:.0f} s", calm)
        wanted = table(f"{where.bucket}/calm", "it")
        if "beside" in cases:
            print("two nodes of 2 CPUs: two sweeps at once, and a training", flush=True)
            with cluster(where, {"num_cpus": 2}, {"num_cpus": 2}):
                beside_each_other(where, wanted)
        if "killed" in cases:
            print("two nodes of 1 CPU: one of them is killed, and comes back", flush=True)
            with cluster(where, {"num_cpus": 1}, {"num_cpus": 1}) as nodes:
                killed(where, nodes, wanted)
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


def killed(where: Bench, nodes: Cluster, wanted: list[Any]) -> None:
    store, began = f"{where.bucket}/killed", time.monotonic()
    sweep = where.start("sweep", *SWEEP, "--name", "it", "--store", store)

    def results() -> int:
        return sum("/results/" in uri for uri in uris(f"{store}/sweeps/it"))

    def after(number: int) -> int:
        """The results on record, once they are so many."""
        wait_until(lambda: results() >= number or sweep.poll() is not None, f"{number} results", 300)
        return results()

    found = after(2)
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    print(f"    after {time.monotonic() - began:.0f} s, {found} results on record, a node is killed", flush=True)
    alone = after(found + 3)
    must(
        sweep.poll() is None and alone >= found + 3,
        f"after {time.monotonic() - began:.0f} s there are {alone} by the other one",
    )
    nodes.add_node(num_cpus=1, num_gpus=0, object_store_memory=200 << 20)
    done = ended(sweep, began, 600)
    must(done.code == 0, f"the sweep, with a new node, has ended with 0 after {done.seconds:.0f} s", done)
    lost = [line for line in done.err.splitlines() if "process or node was lost" in line]
    must(len(lost) == 1, f"it said: {lost[0] if lost else None}", done)
    must(table(store, "it") == wanted, "its table is equal to the last digit")


def table(store: str, name: str) -> list[Any]:
    """Settings, figures and ranking of a sweep, without what was measured by the clock."""
    rows = json.loads(storage.read_bytes(f"{store}/sweeps/{name}/sweep.json"))["ranking"]
    return [_without_time({**row, "metrics": _without_time(row["metrics"])}) for row in rows]


def _without_time(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in TIMED}


if __name__ == "__main__":
    sys.exit(main())
