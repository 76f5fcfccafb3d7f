"""A pipeline is watched: Prometheus scrapes its cluster, and each query of the dashboard is asked while it works.

    .venv/bin/python tests/distributed/watching.py

A node of 2 CPUs with its own folders and ports, Debian's `prometheus` on infra/prometheus.yml (Ray's folder put in place of
/tmp/ray), and the whole pipeline on the digits; what stands behind -- goes to it. Each query of infra/grafana/ddpm.json must have
had data; after the end every gauge must be gone and every rate 0; no tag may hold a place; and the workers' files among Ray's logs
must say run, rank and step. Last, what a step's metrics cost. Exit code 1 if anything is wrong, and then all files stay.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch

from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from pipelines.metrics import METRICS
from pipelines.training.watching import watched

ROOT = Path(__file__).parents[2]
TRAIN = (
    "--train.steps 600 --train.num-workers 2 --train.log-every 10 --train.checkpoint-every 100 --train.validate-every 200 "
    "--train.validate-images 64"
)
REST = "--sample.num-images 1024 --sample.num-workers 1 --evaluate.num-images 512 --evaluate.bits-per-dim-images 32"
GONE_S = 45.0
"""Two of Ray's reports, a scrape, and some patience."""
LINE = re.compile(r'ts=\S+Z level=\w+ run="(.+)" rank=(\d+) step=(\d+) logger=\S+ msg=".*"$')


@dataclass
class Place:
    """A cluster, and the Prometheus that scrapes it."""

    folder: Path
    env: dict[str, str]
    prometheus: str
    wrong: list[str] = field(default_factory=list)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query gives now and that are numbers."""
        told = self.get(f"query?query={urllib.parse.quote(query)}")["result"]
        return [each for each in told if math.isfinite(float(each["value"][1]))]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.prometheus}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def started(command: list[Any], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the time of a block; at its end all that it has started by then is killed with it."""
    import psutil  # which Ray brings

    with open(log, "wb") as out:
        process = subprocess.Popen([str(each) for each in command], env=env, stdout=out, stderr=out, cwd=log.parent)
    try:
        yield process
    finally:
        family = []
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family = [*parent.children(recursive=True), parent]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


@contextmanager
def cluster() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="w-", dir="/tmp"))  # Ray's sockets bear no long path
    port = free_port()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XDG_", "MLFLOW_"))},
        "HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_TMPDIR": str(
            folder
        ),  # where `ray start` leaves its address, which other commands of this machine would find
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    (folder / "home").mkdir()
    ports = [
        f"--{name}={free_port()}"
        for name in ("dashboard-port", "dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port")
    ]
    here = ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--object-store-memory=200000000"]
    ray_ = ROOT / ".venv/bin/ray"
    config, listens = folder / "prometheus.yml", f"127.0.0.1:{free_port()}"
    config.write_text((ROOT / "infra/prometheus.yml").read_text().replace("[/tmp/ray/", f"[{folder}/ray/"))
    subprocess.run(["promtool", "check", "config", config], check=True)
    scraper = ["prometheus", f"--config.file={config}", f"--web.listen-address={listens}"]
    with (
        started([ray_, "start", "--head", "--block", *here, *ports], env, folder / "head.log"),
        started([*scraper, f"--storage.tsdb.path={folder}/data"], env, folder / "prometheus.log"),
    ):
        place = Place(folder, env, f"http://{listens}")
        wait_until_up(place)
        yield place
    if not place.wrong:
        shutil.rmtree(folder)


def wait_until_up(place: Place) -> None:
    for _ in range(240):
        with suppress(OSError):
            if any(target["health"] == "up" for target in place.get("targets")["activeTargets"]):
                return
        time.sleep(0.5)
    raise RuntimeError(f"Prometheus finds no node of the cluster: {place.folder}")


def queries() -> dict[str, str]:
    """The dashboard's, as Prometheus takes them: Grafana puts the chosen runs and an interval in their place."""
    dashboard = json.loads((ROOT / "infra/grafana/ddpm.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$run", ".*").replace("$__rate_interval", "1m")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }


def watch(place: Place, flags: list[str]) -> dict[str, tuple[int, str]]:
    """Of each query, the most series that it had while the pipeline worked, and one of them."""
    found: dict[str, tuple[int, str]] = dict.fromkeys(queries(), (0, ""))
    command = [sys.executable, ROOT / "pipelines/workflow.py", "digits", *TRAIN.split(), *REST.split(), *flags]
    with started(command, place.env, place.folder / "workflow.log") as driver:
        while driver.poll() is None:
            time.sleep(3)
            for name, query in queries().items():
                series = place.ask(query)
                if len(series) > found[name][0]:
                    found[name] = (len(series), f"{series[0]['metric']} {float(series[0]['value'][1]):.4g}")
        if driver.returncode:
            place.wrong.append(f"the pipeline ended with {driver.returncode}: see {place.folder}/workflow.log")
    return found


def check_queries(place: Place, found: dict[str, tuple[int, str]]) -> None:
    print("| panel and query | series at once | one of them |\n|---|---|---|")
    for name, (count, one) in found.items():
        print(f"| {name} | {count} | {one} |")
        if not count:
            place.wrong.append(f"{name} had no data")


def check_afterwards(place: Place) -> None:
    """A run that is over does not look alive, and what was told holds no place."""
    time.sleep(GONE_S)
    for metric in METRICS:
        for series in metric.series:
            of_it = place.get(f"series?match[]={series}")
            places = [
                label
                for each in of_it
                for label in each.items()
                if label[0] in metric.tags and "/" in label[1] and label[0] != "work"
            ]
            if places:
                place.wrong.append(f"{series} has a place in a tag: {places[0]}")
            if metric.kind == "Gauge" and place.ask(series):
                place.wrong.append(f"{series} stands {GONE_S:.0f} s after the end")
            if metric.kind != "Gauge" and any(float(each["value"][1]) for each in place.ask(f"rate({series}[30s])")):
                place.wrong.append(f"{series} still grows {GONE_S:.0f} s after the end")
    works = sorted({each["work"] for each in place.get("series?match[]=ray_ddpm_work_left")})
    print(f"\nwork that was seen: {', '.join(works)}")


def check_lines(place: Place) -> None:
    """Each worker's file says which run, rank and step its lines are of; the command's own output has none of them."""
    counts, steps = Counter[tuple[str, str]](), set[int]()
    for file in (place.folder / "ray").glob("session_2*/logs/worker-*"):
        for line in file.read_text(errors="replace").splitlines():
            if found := LINE.match(line):
                counts[found[1], found[2]] += 1
                steps.add(int(found[3]))
    print("\n| run | rank | lines |\n|---|---|---|")
    for (run, rank), number in sorted(counts.items()):
        print(f"| {run} | {rank} | {number} |")
    if {rank for _, rank in counts} != {"0", "1"} or len(steps) < 10:
        place.wrong.append("the workers' files do not say run, rank and step")
    if "rank=" in (place.folder / "workflow.log").read_text():
        place.wrong.append("the workers' lines are in the command's output")


def check_cost(place: Place, steps: int = 20_000) -> None:
    """What a step's metrics and words take of a worker's own thread, whatever else goes on beside it."""

    @ray.remote(num_cpus=0)
    def step_us() -> list[float]:
        quiet = Events(logged=lambda row: None, look=lambda state: None, warned=lambda line: None)
        rounds = []
        with watched(quiet, "runs/cost", Worker(rank=0, num_workers=1, device=torch.device("cpu"))) as events:
            for _ in range(5):
                began = time.thread_time()
                for step in range(steps):
                    events.doing(step, "computing")
                    events.doing(step, "reading")
                rounds.append((time.thread_time() - began) / steps * 1e6)
        return sorted(rounds)

    os.environ.update(place.env)
    ray.init(address=place.env["RAY_ADDRESS"], log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    rounds = ray.get(step_us.remote())
    ray.shutdown()
    print(
        f"\na step's metrics and words: {rounds[0]:.1f} to {rounds[-1]:.1f} us in {len(rounds)} rounds of {steps:,} steps"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flags", nargs="*", help="of pipelines/workflow.py, behind --")
    flags = parser.parse_args().flags
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else what was started here goes on
    with cluster() as place:
        check_queries(place, watch(place, flags))
        check_afterwards(place)
        check_lines(place)
        check_cost(place)
        for line in place.wrong:
            print(f"WRONG: {line}")
    return 1 if place.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
