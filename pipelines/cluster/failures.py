"""Ray's errors in words for a person, and whose mistake an error is."""

import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

_DOMESTIC = ("ddpm_core", "pipelines")


def raised_by_us(error: BaseException) -> bool:
    """Whether the error was worded by this project for a user; anything else deserves its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename) if frames else Path()
    return any(part in _DOMESTIC for part in last.parts) and not os.environ.get("DDPM_TRACEBACK")


def last_words(error: BaseException) -> str | None:
    """One line on a process or node that was lost for the last time, and where its log lies; None for any other error.

    An exception that our own code raised in a task or on a worker is none of these: it keeps its traceback.
    """
    ray = sys.modules.get("ray")
    if ray is None or os.environ.get("DDPM_TRACEBACK"):
        return None
    lost = _of_training(error) or (error,)
    if not all(
        isinstance(each, ray.exceptions.RayError) and not isinstance(each, ray.exceptions.RayTaskError) for each in lost
    ):
        return None
    logs = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray/session_latest/logs"
    return f"{_first_sentence(lost[0])}; its log lies in {logs} of its node; the same command goes on where it was"


def _of_training(error: BaseException) -> tuple[BaseException, ...]:
    """What was lost of a group of workers, as Ray Train tells it."""
    failures = getattr(error, "worker_failures", None)
    return tuple(failures.values()) if failures else ()


def _first_sentence(error: BaseException) -> str:
    said = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
    return re.split(r"(?<=[a-z)])\. ", said)[0].rstrip(".")[:300] or type(error).__name__
