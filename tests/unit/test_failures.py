"""What Ray's errors say to a user: one line on what was lost; what code raised keeps its traceback."""

import traceback

import pytest
import ray.exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from pipelines.cluster.failures import first_sentence, last_words


def in_task(error: Exception) -> Exception:
    """What ray.get raises for an error of a task."""
    page = "".join(traceback.format_exception(error))
    return ray.exceptions.RayTaskError("work", page, error, "ray::work", 7, "10.0.0.3").as_instanceof_cause()


DEAD = ray.exceptions.ActorDiedError(
    ActorDiedErrorContext(
        class_name="Board",
        actor_id=b"\1" * 16,
        pid=178,
        node_ip_address="10.0.0.3",
        error_message="The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR. " * 20,
    )
)
CRASHED = ray.exceptions.WorkerCrashedError()
STRANGER = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "pages")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CRASHED, "The worker died unexpectedly while executing this task"),
        (in_task(CRASHED), "The worker died unexpectedly while executing this task"),
        (ray.exceptions.OutOfMemoryError("Low on memory.\n\nMemory on the node was 15 GB."), "Low on memory"),
        (ControllerError(DEAD), "The actor died unexpectedly before finishing this task"),
        (
            WorkerGroupError("pages", {0: STRANGER, 3: WorkerHealthCheckFailedError("x", DEAD)}),
            "The actor died unexpectedly",
        ),
    ],
)
def test_what_was_lost_is_one_line(error: Exception, said: str) -> None:
    error.add_note("Ray's logs lie in /tmp/ray/session_x/logs")
    words = last_words(error)
    assert words is not None
    assert words.startswith(said)
    assert words.endswith("; Ray's logs lie in /tmp/ray/session_x/logs; the same command goes on where it was")
    assert "\n" not in words
    assert len(words) < 400


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        in_task(KeyError("x")),
        ray.exceptions.ActorDiedError(ray.exceptions.RayTaskError("f", "page", ValueError(), "ray::f", 7, "10.0.0.3")),
        WorkerGroupError("pages", {0: STRANGER}),
    ],
)
def test_a_mistake_of_ours_keeps_its_traceback(error: Exception) -> None:
    assert last_words(error) is None


def test_a_page_becomes_its_first_sentence() -> None:
    assert first_sentence("\x1b[36mOne is\nhere.  Two is here.\x1b[0m") == "One is here"
    assert len(first_sentence("y" * 999)) == 300
