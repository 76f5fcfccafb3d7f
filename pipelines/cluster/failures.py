"""Ray's errors in words for a person."""

import os
import re
import sys


def last_words(error: BaseException) -> str | None:
    """One line on a process or node that was lost for the last time, and where its log lies; None for any other error.

    An exception that code raised in a task, in an actor's start or on a worker is none of these: it keeps its traceback.
    """
    lost = None if os.environ.get("DDPM_TRACEBACK") or "ray" not in sys.modules else _lost(error)
    if lost is None:
        return None
    words = [first_sentence(lost), *getattr(error, "__notes__", ())]
    return "; ".join([*words, "the same command goes on where it was"])


def _lost(error: BaseException) -> BaseException | None:
    """What was lost, in whatever Ray wrapped it."""
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.train import TrainingFailedError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

    inside = [*getattr(error, "worker_failures", {}).values()]
    inside += [getattr(error, name) for name in ("controller_failure", "health_check_failure") if hasattr(error, name)]
    if isinstance(error, RayTaskError):
        inside.append(error.cause)
    if inside or isinstance(error, TrainingFailedError):
        return next((lost for each in inside if (lost := _lost(each)) is not None), None)
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return None
    gone = (RayError, WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
    return error if isinstance(error, gone) else None


def first_sentence(page: object) -> str:
    """Of what Ray says, which is a page; the type of an error that says nothing."""
    said = " ".join(re.sub(r"\x1b\[\d*m", "", str(page)).split())
    return re.split(r"(?<=[a-z)])\. ", said)[0].rstrip(".")[:300] or type(page).__name__
