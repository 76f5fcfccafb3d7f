"""How a scheduled job is started and followed: by Ray's Jobs API where there is a cluster, else as a process here."""

import fcntl
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pipelines.cluster  # noqa: F401  sets Ray's environment before Ray is imported
from ddpm_core.errors import InputError, UserError

_TAIL = 1 << 16
_GRACE_S = 10.0
# Not copied to a cluster, beside what .gitignore names.
_EXCLUDES = ["tests", "docs"]


class LaunchError(UserError, OSError):
    """Ray's Jobs API failed or is out of reach; worth another try."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended."""

    exit_code: int | None
    output: str
    """The end of its output."""

    @property
    def made(self) -> dict[str, Any]:
        """The last line that is a JSON object, as --json prints it; empty if there is none."""
        for line in reversed(self.output.splitlines()):
            if line.startswith("{"):
                try:
                    plain = json.loads(line)
                except ValueError:
                    continue
                return plain if isinstance(plain, dict) else {}
        return {}

    @property
    def last_line(self) -> str:
        """The last line that says anything."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "")


class Job(Protocol):
    """A job under way."""

    log: str
    """Where its output lies."""

    def poll(self) -> JobResult | None:
        """How it ended; None while it runs."""

    def leave(self) -> None:
        """Let go of it: a process of this machine is ended, a job of a cluster goes on and can be found again."""


class Launcher(Protocol):
    """Starts jobs, and finds those that others started."""

    def find(self, submission_id: str) -> Job | None:
        """A job that runs or has succeeded."""

    def start(self, submission_id: str, command: Sequence[str]) -> Job:
        """Start a job, once: an id that was used already is that job."""


def project_root() -> Path:
    """The folder that holds pipelines/ and ddpm_core/."""
    return Path(__file__).resolve().parents[2]


def ray_address() -> str | None:
    """The cluster that the environment names, as Ray reads it; `local` names none."""
    given = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    return None if given == "local" else given


def local_arguments(command: Sequence[str]) -> list[str]:
    """`python pipelines/...` with this Python and from this project."""
    return [sys.executable, str(project_root() / command[1]), *command[2:]]


def local_environment() -> dict[str, str]:
    """This environment, with the project to be found by Python."""
    paths = [str(project_root()), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


class LocalJobs:
    """Processes of this machine. They end with whoever started them, unless that is killed outright.

    A process has its log locked for as long as it lives: so one that outlived its starter is found.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs

    def find(self, submission_id: str) -> Job | None:
        """One that outlived its starter, on this machine."""
        orphan = _Orphan(self._log(submission_id))
        return orphan if orphan.lives() else None

    def start(self, submission_id: str, command: Sequence[str]) -> Job:
        """Start a process, its output in a log of its own."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._log(submission_id)
        with open(log, "ab") as output:
            fcntl.flock(output, fcntl.LOCK_EX)  # it stays with the process, whose output this is
            process = subprocess.Popen(
                local_arguments(command),
                cwd=project_root(),
                env=local_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for its starter, which then ends it
            )
        return _Process(process, log)

    def _log(self, submission_id: str) -> Path:
        return self._logs / f"{submission_id}.log"


class _Orphan:
    def __init__(self, path: Path) -> None:
        self._path, self.log = path, str(path)

    def lives(self) -> bool:
        try:
            with open(self._path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def poll(self) -> JobResult | None:
        """Its exit code nobody knows: whether it said what it made is taken for that."""
        if self.lives():
            return None
        said = JobResult(exit_code=None, output=_tail(self._path))
        return JobResult(exit_code=0, output=said.output) if said.made else said

    def leave(self) -> None:
        """Nothing: it goes on, and is found again."""


class _Process:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._path, self.log = process, log, str(log)

    def poll(self) -> JobResult | None:
        code = self._process.poll()
        return None if code is None else JobResult(exit_code=code, output=_tail(self._path))

    def leave(self) -> None:
        """End it and whatever it started: asked first, then killed."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # all of it has ended


def _tail(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _TAIL))
        return file.read().decode(errors="replace")


class RayJobs:
    """Jobs of a Ray cluster. They outlive whoever started them, and the next one finds them by their id."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def find(self, submission_id: str) -> Job | None:
        """The job, if the cluster knows it and it has not failed."""
        job = _RayJob(self._client, submission_id)
        info = job.info()
        return job if info is not None and info.status in {"PENDING", "RUNNING", "SUCCEEDED"} else None

    def start(self, submission_id: str, command: Sequence[str]) -> Job:
        """Submit it with a copy of the project; if the id is taken, that is the job."""
        try:
            with _asking(f"the job {submission_id} was not taken"):
                self._client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=submission_id,
                    runtime_env={"working_dir": str(project_root()), "excludes": _EXCLUDES},
                )
        except LaunchError as error:
            if "already exists" not in str(error.__cause__):
                raise
        return _RayJob(self._client, submission_id)


class _RayJob:
    def __init__(self, client: Any, submission_id: str) -> None:
        self._client, self._id = client, submission_id
        self.log = f"ray job logs {submission_id}"

    def info(self) -> Any:
        """What the cluster knows of it; None if nothing."""
        try:
            with _asking(f"the job {self._id} was not told of"):
                return self._client.get_job_info(self._id)
        except LaunchError as error:
            if "does not exist" in str(error.__cause__):
                return None
            raise

    def poll(self) -> JobResult | None:
        info = self.info()
        if info is None:
            return JobResult(exit_code=None, output="the cluster does not know the job any more")
        if info.status in {"PENDING", "RUNNING"}:
            return None
        try:
            with _asking("no log"):
                output = str(self._client.get_job_logs(self._id))
        except LaunchError as error:  # its node may be gone, and the log with it
            output = str(error)
        code = 0 if info.status == "SUCCEEDED" else info.driver_exit_code or None
        return JobResult(exit_code=code, output=output[-_TAIL:] if output.strip() else str(info.message))

    def leave(self) -> None:
        """Nothing: it goes on."""


def open_launcher(address: str | None, logs: Path, store: str) -> Launcher:
    """Ray's Jobs API at the address; without one, processes of this machine.

    Raises:
        InputError: one line, if no cluster answers there, or not all of its nodes reach the store.
    """
    if not address:
        return LocalJobs(logs)
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    from pipelines.cluster.reach import check_places

    logging.getLogger("ray").setLevel(logging.ERROR)  # else it tells of every file that is not copied
    try:
        with _asking(f"no Ray cluster takes jobs at {address}"):
            client = JobSubmissionClient(address)
            num_nodes = len(list_nodes(client.get_address(), filters=[("state", "=", "ALIVE")]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{error}; start it, set RAY_API_SERVER_ADDRESS to its dashboard as http://host:8265, or unset RAY_ADDRESS"
        ) from None
    check_places(store, None, num_nodes, grows=False)
    return RayJobs(client)


@contextmanager
def _asking(doing: str) -> Iterator[None]:
    """Ray's errors as one line; its server answers with whole tracebacks, its client with a page on tokens."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        said = str(error).partition("\n")[0]
        raise LaunchError(f"{doing} ({said}); set RAY_AUTH_MODE=token and the cluster's token here too") from error
    except (RuntimeError, OSError) as error:
        said = next((line.strip(" .") for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise LaunchError(f"{doing} ({said})") from error
