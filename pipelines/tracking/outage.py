"""What to do when the tracking server is away: the work goes on, and one line says so."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ddpm_core.errors import InputError, UserError
from pipelines.progress import shown

logger = logging.getLogger(__name__)

# After a failure the server is left alone for so long: a call to a dead one can take seconds to fail.
RETRY_AFTER_S = 60.0

# Errors of these packages come from the server, its database or its artifacts. By name: most are not imported here.
_OUTSIDE = {"mlflow", "requests", "urllib3", "botocore", "boto3", "s3transfer", "sqlalchemy"}
# MLflow calls it an invalid value too when somebody deleted the run in the UI while it was written to.
_DELETED = "must be in the 'active' state"


class TrackingError(UserError, OSError):
    """MLflow could not do what was asked; the message is one line."""


def is_refusal(error: Exception) -> bool:
    """Whether MLflow calls a value invalid, which is a mistake in our code, or a user's."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE" and _DELETED not in str(error)


def is_outage(error: Exception) -> bool:
    """Whether an error came from outside: from a server, its database or its artifacts."""
    if is_refusal(error):
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _OUTSIDE


def one_line(error: Exception) -> str:
    """The first line of an error's message, and the second if the first announces it; not longer than a few rows of a terminal."""
    lines = [line.strip() for line in shown(str(error)).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return first if len(first) <= 320 else first[:317] + "..."


@contextmanager
def refused(doing: str) -> Iterator[None]:
    """Turn MLflow's errors into errors of one line: an InputError for an invalid value, else a TrackingError."""
    try:
        yield
    except Exception as error:
        if is_refusal(error):
            raise InputError(f"{doing}: {one_line(error)}") from error
        if isinstance(error, TrackingError) or not is_outage(error):
            raise
        raise TrackingError(f"{doing}: {one_line(error)}") from error


class Outages:
    """Keeps a failing tracking server from stopping a stage."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._retry_at = 0.0
        self._told = False
        self._lost: Counter[str] = Counter()

    def attempt(self, call: Callable[[], object], what: str | None = None) -> None:
        """call(); if the server fails, or failed a moment ago, the work goes on, and one `what` is counted as lost."""
        if time.monotonic() >= self._retry_at:
            try:
                call()
                return
            except Exception as error:
                if not is_outage(error):
                    raise
                self.failed(f"MLflow at {self._uri} fails ({one_line(error)})")
        if what is not None:
            self._lost[what] += 1

    def failed(self, said: str) -> None:
        """Leave the server alone for a while. A person is told the first time; in the end, if anything is missing."""
        self._retry_at = time.monotonic() + RETRY_AFTER_S
        if not self._told:
            self._told = True
            logger.warning("%s; the work goes on, and the run's figures are kept for it on this machine", said)

    def retry_now(self) -> None:
        """Let the next attempt reach for the server, however short ago it failed."""
        self._retry_at = 0.0

    def settle(self) -> None:
        """Say what was lost since the last time, if anything was."""
        if self._lost:
            told = ", ".join(f"{what} ({count})" for what, count in sorted(self._lost.items()))
            logger.warning("MLflow misses: %s; they lie in the store", told)
            self._lost.clear()
