"""What to do when the tracking server is away: the work goes on, one line says so, and what was lost is counted."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

# After a failure the server is left alone for so long: a call to a dead one can take a minute to fail.
RETRY_AFTER_S = 60.0

# Errors of these packages come from the server, its database or its artifacts. By name: most are not imported here.
_OUTSIDE = {"mlflow", "requests", "urllib3", "botocore", "boto3", "s3transfer", "sqlalchemy"}
# MLflow calls it an invalid value too when somebody deleted the run in the UI while it was written to.
_DELETED = "must be in the 'active' state"


class TrackingError(OSError):
    """MLflow could not do what was asked; the message is one line."""


def is_outage(error: Exception) -> bool:
    """Whether an error came from outside. What MLflow calls an invalid value is a mistake in our code, or a user's."""
    if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
        return _DELETED in str(error)
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _OUTSIDE


def one_line(error: Exception) -> str:
    """The first line of an error's message, not longer than a terminal is wide."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first if len(first) <= 160 else first[:157] + "..."


@contextmanager
def refused(doing: str) -> Iterator[None]:
    """Turn MLflow's errors into errors of one line: a ValueError for an invalid value, else a TrackingError."""
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
            raise ValueError(f"{doing}: {one_line(error)}") from error
        if isinstance(error, TrackingError) or not is_outage(error):
            raise
        raise TrackingError(f"{doing}: {one_line(error)}") from error


class Outages:
    """Keeps a failing tracking server from stopping a stage."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._retry_at = 0.0
        self._told = False
        self.lost: Counter[str] = Counter()

    def attempt(self, what: str | None, call: Callable[[], T]) -> T | None:
        """call(); or None if the server fails or failed a moment ago, and then one `what` is counted as lost."""
        if time.monotonic() >= self._retry_at:
            try:
                return call()
            except Exception as error:
                if not is_outage(error):
                    raise
                self._away(error)
        if what is not None:
            self.lost[what] += 1
        return None

    def _away(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_AFTER_S
        if not self._told:
            self._told = True
            logger.warning("MLflow at %s fails, the work goes on without it: %s", self._uri, one_line(error))

    def retry_now(self) -> None:
        """Let the next attempt reach for the server, however short ago it failed."""
        self._retry_at = 0.0

    def settle(self, run: str) -> None:
        """Say what was lost since the last time, if anything was."""
        lost = {what: count for what, count in self.lost.items() if count}
        self.lost.clear()
        if lost:
            told = ", ".join(f"{what} ({count})" for what, count in sorted(lost.items()))
            logger.warning("MLflow run %s misses: %s; run the same again to fill it in", run, told)
