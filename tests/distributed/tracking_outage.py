"""The MLflow server is killed while whole commands work: training goes on, and in the end each point stands there once.

    .venv/bin/python tests/distributed/tracking_outage.py --away 15

Each case has an empty home and a real server on loopback of its own. The server gets kill -9 once training has logged some points;
it is back after so many seconds, or only when the command has ended, and then the same command is typed again. What stands there
is compared with the checkpoint's history and with a run that nobody disturbed, and each line that was said with what may be said.
Further flags go to the commands (--train.steps 800). Prints one table; exit code 1 if anything is wrong, and then all files stay.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from ddpm_core.artifacts.checkpoint import read_history
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from pipelines.tracking.store import new_client
from pipelines.tracking.ui import server_command, server_environment, wait_until_up

ROOT = Path(__file__).parents[2]
CASES = ("train, undisturbed", "train, away until the end", "train, back meanwhile", "workflow, away until the end")
TRAIN = "--train.steps 1000 --train.log-every 10 --train.batch-size 48 --train.num-workers 1 --train.preview-every 100"
FEW = "--sample.num-images 64 --sample.num-workers 1 --evaluate.num-images 64 --evaluate.bits-per-dim-images 16"
NAMES = ("loss", "grad_norm", "images_per_s")
HEAD = "| case | exit codes | seconds | points expected | once | twice | missing | model versions | same weights |"
PLAIN = (
    r"\w+: [\d,]+ of [\d,]+ .*|\w+ +[\d.]+ s   .*|(checkpoint|course|progress|report|grid|model|MLflow|next) +.*"
    r"|starting Ray on this machine.*|importing MLflow|sharded: .*|shard: .*|train: starting Ray Train .*"
    r"|.*: its processes are being started, .*|train: (how it goes, on a page|goes on from|flat|improving|too few steps).*"
)
# What is said of an outage, each once.
WENT = r"MLflow at \S+ fails \(.*\); the work goes on, and the store keeps what MLflow misses"
UNREGISTERED = r"registering ddpm-digits: .*; trained, but not registered: the same command again registers it"
WAITS = r"MLflow at \S+ misses some of it; the next command on this store and recipe, or `.*`, brings it there"
UNPROMOTED = r"error: registering ddpm-digits: .*; the report is made, the same command again promotes"


class Desk:
    """A user's home with a tracking server beside it, and the commands typed there."""

    def __init__(self, folder: Path, flags: list[str]) -> None:
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.folder, self.flags, self.uri = folder, flags, f"http://127.0.0.1:{self.port}"
        self.client = new_client(self.uri)
        self.codes: list[int] = []
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.had: dict[str, Any] = {}

    def start_server(self) -> None:
        command = server_command(self.port)
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        log, env = self.folder / "server.log", server_environment(f"sqlite:///{self.folder}/mlflow.db")
        with open(log, "ab") as out:
            self.server = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
        assert wait_until_up(self.server, self.port), log.read_text()

    def kill_server(self) -> None:
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def type(self, script: str) -> subprocess.Popen[bytes]:
        home, flags = self.folder / "home", shlex.split(f"{TRAIN} {FEW if script == 'workflow' else ''}") + self.flags
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XDG_"))}
        env |= {"HOME": str(home), "RAY_TMPDIR": str(self.folder)}
        env |= {"MLFLOW_TRACKING_URI": self.uri, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / f"pipelines/{script}.py"), "digits", *flags]
        self.began = time.monotonic()
        with open(self.folder / f"{len(self.codes)}.log", "wb") as out:
            return subprocess.Popen(command, env=env, cwd=self.folder, stdout=out, stderr=out)

    def end(self, driver: subprocess.Popen[bytes], code: int, *said: str) -> None:
        """Wait for a command; note another exit code, a line too many, and one that is missing or repeated."""
        lines_at = self.folder / f"{len(self.codes)}.log"
        self.codes.append(driver.wait())
        self.seconds.append(time.monotonic() - self.began)
        lines = lines_at.read_text().splitlines()
        counts = {each: sum(bool(re.fullmatch(each, line)) for line in lines) for each in said}
        self.wrong += [f"exit code {self.codes[-1]}"] if self.codes[-1] != code else []
        self.wrong += [f"said: {line}" for line in lines if not re.fullmatch("|".join((PLAIN, *said)), line)]
        self.wrong += [f"said {n} times: {each}" for each, n in counts.items() if n != 1]

    def wait_for_points(self, driver: subprocess.Popen[bytes]) -> None:
        """Three of them; a server that is slow to answer is asked again."""
        found = 0
        while found < 3:
            if driver.poll() is not None:
                raise RuntimeError(f"the command ended before the server was killed: {self.folder}")
            time.sleep(0.3)
            with suppress(MlflowException):
                found = len(self.points("loss"))

    def runs(self) -> list[Any]:
        found = self.client.get_experiment_by_name("ddpm-digits")
        return list(self.client.search_runs([found.experiment_id])) if found else []

    def points(self, name: str, run: str = "train digits") -> list[tuple[int, float]]:
        ids = [each.info.run_id for each in self.runs() if each.info.run_name == run]
        return [(p.step, p.value) for each in ids for p in self.client.get_metric_history(each, name)]

    def facts(self) -> dict[str, Any]:
        """Params, tags, datasets, pictures, which the server must have had whatever happened; the pipeline's run has no parent."""
        verdict = {"version", "promoted", "reason"}  # of a whole pipeline alone
        tags = {
            run: {name for name in run.data.tags if not name.startswith("mlflow.")} - verdict for run in self.runs()
        }
        named = {run.info.run_name if "mlflow.parentRunId" in run.data.tags else "line": run for run in tags}
        return {
            name: (run.data.params, tags[run], len(run.inputs.dataset_inputs), self.pictures(run.info.run_id))
            for name, run in named.items()
            if name in ("line", "shard digits", "train digits")
        }

    def pictures(self, run_id: str) -> int:
        return sum(each.path.endswith(".png") for each in self.client.list_artifacts(run_id, "images"))

    def count(self) -> list[int]:
        """Points of the history; how many stand once, with their value; how many any run has twice; how many it misses."""
        rows, there = read_history(self.checkpoint()), {name: self.points(name) for name in NAMES}
        expected = [(name, (int(row["step"]), row[name])) for row in rows for name in NAMES]
        once = sum(there[name].count(point) == 1 for name, point in expected)
        missing = sum(point not in there[name] for name, point in expected)
        every = {(run.info.run_name, name) for run in self.runs() for name in run.data.metrics}
        steps = [[step for step, _ in self.points(name, run)] for run, name in every]
        return [len(expected), once, sum(len(each) - len(set(each)) for each in steps), missing]

    def checkpoint(self) -> str:
        (run,) = (self.folder / "home/.local/share/ddpm/runs").iterdir()
        return CheckpointStore(str(run)).uris()[-1]

    def sums(self) -> dict[str, str]:
        state = json.loads((Path(self.checkpoint()) / "state.json").read_text())
        return {part: value for part, value in state["sha256"].items() if part != "history"}


def play(desk: Desk, script: str, how: str, away: float) -> None:
    """The commands of a case, and what happens to the server meanwhile."""
    driver = desk.type(script)
    if how == "undisturbed":
        return desk.end(driver, 0)
    desk.wait_for_points(driver)
    desk.kill_server()
    if how == "back meanwhile":
        time.sleep(away)
        desk.start_server()
        return desk.end(driver, 0, WENT)
    desk.end(driver, *((1, UNPROMOTED) if script == "workflow" else (0,)), WENT, UNREGISTERED, WAITS)
    desk.start_server()
    return desk.end(desk.type(script), 0)


def verdict(desk: Desk, first: Desk, whole: bool) -> str:
    """The case's cells in the table; what is wrong is noted."""
    counts, runs, desk.had = desk.count(), desk.runs(), desk.facts()
    versions = desk.client.search_model_versions("name = 'ddpm-digits'")
    aliases = {"candidate", "champion"} if whole else {"candidate"}
    checks = {
        "points": counts[1:] == [counts[0], 0, 0],
        "runs": [run.info.status for run in runs] == ["FINISHED"] * (6 if whole else 3),
        "params, tags, datasets or pictures": desk.had == first.had,
        "model": len(versions) == 1 and set(desk.client.get_registered_model("ddpm-digits").aliases) == aliases,
        "report": len(list(desk.folder.glob("home/.local/share/ddpm/reports/*/report.html"))) == whole,
        "what waits": not list(desk.folder.glob("home/.local/share/ddpm/tracking/undelivered/*/*/*")),
        "weights": desk.sums() == first.sums(),
    }
    desk.wrong += [f"not as it should be: {what}" for what, right in checks.items() if not right]
    codes, seconds = ", ".join(map(str, desk.codes)), ", ".join(f"{each:.1f}" for each in desk.seconds)
    return " | ".join(map(str, [codes, seconds, *counts, len(versions), "yes" if checks["weights"] else "NO"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--away", type=float, default=15.0, help="seconds until the server is back meanwhile")
    args, flags = parser.parse_known_args()
    folder, desks, rows = Path(tempfile.mkdtemp(prefix="outage-")), [], []
    for number, case in enumerate(CASES):
        script, how = case.split(", ")
        desk = Desk(folder / str(number), flags)
        desk.start_server()
        desks.append(desk)
        try:
            play(desk, script, how, args.away)
            rows.append(f"| {case} | {verdict(desk, desks[0], script == 'workflow')} |")
        finally:
            desk.kill_server()
        print(f"{case}: {'; '.join(desk.wrong) or 'as it should be'}", file=sys.stderr, flush=True)
    print("\n".join([HEAD, "|---" * 9 + "|", *rows]))
    if any(desk.wrong for desk in desks):
        print(f"what was said lies in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
