"""`ui.py sync` is killed again and again while it fills an empty MLflow; in the end all stands there once.

    .venv/bin/python tests/distributed/sync_kills.py --kills 10

A store with the records of five runs, 60,000 points, 15 pictures and 5 files in all, and a real server on loopback. Exit code 1 if
anything stands there twice or not at all, or a further sync changes anything.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_core.data.images import encode_png
from pipelines.tracking.record import Records
from pipelines.tracking.store import new_client
from pipelines.tracking.ui import free_port, server_command, server_environment, wait_until_up

ROOT = Path(__file__).parents[2]
RUNS, STEPS, PICTURES = 5, 6_000, 3
NAMES = ("loss", "grad_norm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pick = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="sync-") as name:
        folder = Path(name)
        for experiment in ("first", "killed"):
            record(folder / experiment, experiment)
        port = free_port(None)
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        command = [*server_command(port), "--artifacts-destination", str(folder / "artifacts")]
        environment = server_environment(f"sqlite:///{folder}/mlflow.db")
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            assert wait_until_up(server, port)
            whole = sync(folder / "first")  # alike
            for _ in range(args.kills):
                took = sync(folder / "killed", pick.uniform(0.2, 0.6) * whole)
                print(
                    f"killed after {took:.1f} of {whole:.1f} s" if took > 0 else "had all done before it was killed",
                    flush=True,
                )
            sync(folder / "killed")
            before = found("killed")
            sync(folder / "killed")
            wrong = [*problems(before), *(["another sync changed something"] if found("killed") != before else [])]
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    print("\n".join(wrong) or "each run, point, picture and file stands there once")
    return 1 if wrong else 0


def record(store: Path, experiment: str) -> None:
    """A store with nothing but records, and what they name."""
    records = Records(str(store), experiment, "")
    (store / "pictures").mkdir(parents=True)
    (store / "page.html").write_text("page")
    for number in range(RUNS):
        run = records.new([[f"run {number}", f"key {number}"], ["all", "all"]])
        run.append([["status", "RUNNING", 1_000], ["param", "seed", str(number)]])
        run.append(["metric", name, step / 7, step, 1_000 + step] for step in range(STEPS) for name in NAMES)
        for step in range(PICTURES):
            picture = store / "pictures" / f"{number}-{step}.png"
            picture.write_bytes(encode_png(np.full((8, 8, 1), step, dtype=np.uint8)))
            run.append([["picture", records.place(str(picture)), "samples", step]])
        run.append([["file", "page.html", "page.html"], ["status", "FINISHED", 9_000]])
        run.flush()


def found(experiment: str) -> dict[str, Any]:
    """What MLflow has, by run."""
    client = new_client(os.environ["MLFLOW_TRACKING_URI"])
    there: dict[str, Any] = {}
    for run in client.search_runs([client.get_experiment_by_name(experiment).experiment_id]):
        points = {name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)] for name in NAMES}
        files = [each.path for each in client.list_artifacts(run.info.run_id)]
        pictures = sorted(each.path for each in client.list_artifacts(run.info.run_id, "images"))
        there.setdefault(run.info.run_name, []).append((run.info.status, run.data.params, points, files, pictures))
    return there


def problems(there: dict[str, Any]) -> list[str]:
    wrong = [f"{len(found)} runs called {name}" for name, found in there.items() if len(found) != 1]
    wrong += [] if len(there) == RUNS + 1 else [f"runs: {', '.join(there)}"]
    for number in range(RUNS):
        ((status, params, points, files, pictures),) = there[f"run {number}"]
        expected = [(step, step / 7) for step in range(STEPS)]
        wrong += [f"run {number}: {name}" for name in NAMES if sorted(points[name]) != expected]
        if (status, params, files, len(pictures)) != (
            "FINISHED",
            {"seed": str(number)},
            ["images", "page.html"],
            2 * PICTURES,
        ):
            wrong.append(f"run {number}: {status}, {params}, {files}, {len(pictures)} pictures")
    return wrong


def sync(store: Path, kill_after_s: float | None = None) -> float:
    """Seconds that it took, or after which it was killed; 0 if it had ended before that."""
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "pipelines/ui.py"), "sync", "--store", str(store)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        process.wait(kill_after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return time.monotonic() - began
    assert process.returncode == 0, store
    return 0.0 if kill_after_s else time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
