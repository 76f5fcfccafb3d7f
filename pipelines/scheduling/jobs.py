"""How a scheduled job is started and followed: by Ray's Jobs API where there is a cluster, else as a process here."""

import fcntl
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import pipelines.cluster  # noqa: F401  sets Ray's environment before Ray is imported
from ddpm_core.errors import InputError, UserError

_TAIL = 1 << 16
_GRACE_S = 10.0
# Copied to a cluster is this project alone: it lies in its checkout, or among all else that is installed.
_EXCLUDES = ["/*", "!/.", "!/ddpm_core", "!/pipelines"]


class LaunchError(UserError, OSError):
    """Ray's Jobs API failed or is out of reach; worth another try."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended."""

    exit_code: int | None
    output: str
    """The end of its output."""
    log: str = ""
    """Where all of it lies."""

    @property
    def made(self) -> dict[str, Any]:
        """The last line that is a JSON object, as --json prints it; empty if there is none."""
        for line in reversed(self.output.splitlines()):
            if line.startswith("{"):
                with suppress(ValueError):
                    made: dict[str, Any] = json.loads(line)
                    return made
        return {}

    @property
    def last_line(self) -> str:
        """The last line that says anything."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "")


Started = Callable[[str], None]
"""Told where a job's output lies, if it was started."""
Wait = Callable[[], None]
"""Called again and again while a job runs. What it raises lets go of it: a process that was started here is then ended, any
other job goes on, and is there the next time."""


class Launcher(Protocol):
    """Does jobs."""

    def __call__(self, submission_id: str, command: Sequence[str], *, started: Started, wait: Wait) -> JobResult:
        """Follow a job to its end. One of that id that is there is that job; else it is started."""


def project_root() -> Path:
    """The folder that holds pipelines/ and ddpm_core/."""
    return Path(__file__).resolve().parents[2]


def ray_address() -> str | None:
    """The cluster that the environment names, as Ray reads it; `local` names none."""
    given = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    return None if given == "local" else given


def as_process(command: Sequence[str], **environment: str) -> dict[str, Any]:
    """How subprocess runs `python pipelines/...`: with this Python, from this project, where it finds its modules."""
    root = project_root()
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return {
        "args": [sys.executable, str(root / command[1]), *command[2:]],
        "cwd": root,
        "env": {**os.environ, "PYTHONPATH": path, **environment},
        "stdin": subprocess.DEVNULL,
    }


def local_job(logs: Path, submission_id: str, command: Sequence[str], *, started: Started, wait: Wait) -> JobResult:
    """As a process of this machine. It ends with whoever started it, unless that is killed outright.

    It has its log locked for as long as it lives: so one that outlived its starter is found.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{submission_id}.log"
    with open(log, "ab") as output:
        if not _lock(output):
            return _outlived(log, output, wait)
        process = subprocess.Popen(
            **as_process(command),
            stdout=output,  # and with it goes the lock
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for its starter, which then ends it
        )
    try:
        started(str(log))
        while process.poll() is None:
            wait()
    except BaseException:
        _end(process)
        raise
    return JobResult(exit_code=process.returncode, output=_tail(log), log=str(log))


def _outlived(log: Path, output: IO[bytes], wait: Wait) -> JobResult:
    """Of another's process nobody knows the exit code: whether it said what it made is taken for that."""
    while not _lock(output):
        wait()
    result = JobResult(exit_code=None, output=_tail(log), log=str(log))
    return replace(result, exit_code=0) if result.made else result


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and whatever it started: asked first, then killed."""
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - _TAIL))
        return file.read().decode(errors="replace")


def ray_job(client: Any, submission_id: str, command: Sequence[str], *, started: Started, wait: Wait) -> JobResult:
    """As a job of a Ray cluster, with a copy of the project. It outlives whoever started it."""
    log = f"ray job logs {submission_id}"
    told = partial(
        _ask, f"the job {submission_id} was not told of", client.get_job_info, submission_id, unless="does not exist"
    )
    if told() is None and _ask(
        f"the job {submission_id} was not taken",
        client.submit_job,
        entrypoint=shlex.join(command),
        submission_id=submission_id,
        runtime_env={"working_dir": str(project_root()), "excludes": _EXCLUDES},
        unless="already exists",
    ):
        started(log)
    while (info := told()) and info.status in {"PENDING", "RUNNING"}:
        wait()
    if info is None:
        return JobResult(exit_code=None, output="the cluster does not know the job any more", log=log)
    try:
        output = str(_ask("no log", client.get_job_logs, submission_id))
    except LaunchError as error:  # its node may be gone, and the log with it
        output = str(error)
    code = 0 if info.status == "SUCCEEDED" else info.driver_exit_code or None
    return JobResult(exit_code=code, output=output[-_TAIL:] if output.strip() else str(info.message), log=log)


def open_launcher(address: str | None, logs: Path, store: str) -> Launcher:
    """Ray's Jobs API at the address; without one, processes of this machine.

    Raises:
        InputError: one line, if no cluster answers there, or not all of its nodes reach the store.
    """
    if not address:
        return partial(local_job, logs)
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    from pipelines.cluster.reach import check_places

    logging.getLogger("ray").setLevel(logging.ERROR)  # else it tells of every file that is not copied
    try:
        ask = partial(_ask, f"no Ray cluster takes jobs at {address}")
        client = ask(JobSubmissionClient, address)
        nodes = ask(list_nodes, client.get_address(), filters=[("state", "=", "ALIVE")])
    except (OSError, ValueError) as error:
        raise InputError(
            f"{error}; start it, set RAY_API_SERVER_ADDRESS to its dashboard as http://host:8265, or unset RAY_ADDRESS"
        ) from None
    check_places(store, None, len(nodes), grows=False)
    return partial(ray_job, client)


def _ask(doing: str, request: Callable[..., Any], *args: Any, unless: str = "", **more: Any) -> Any:
    """What Ray answers; its errors as one line. Its server answers with whole tracebacks, its client with a page on tokens.

    Args:
        doing: what did not succeed, in an error.
        unless: stands in an error that is none: the answer is None then.
    """
    from ray.exceptions import AuthenticationError

    try:
        return request(*args, **more)
    except AuthenticationError as error:
        said = str(error).partition("\n")[0]
        raise LaunchError(f"{doing} ({said}); set RAY_AUTH_MODE=token and the cluster's token here too") from error
    except (RuntimeError, OSError) as error:
        if unless and unless in str(error):
            return None
        lines = [line.strip(" .") for line in str(error).splitlines()]
        said = next(filter(None, reversed(lines)), "no reason given")
        raise LaunchError(f"{doing} ({said})") from error
