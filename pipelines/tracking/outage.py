"""What is an outage of the tracking server, and what somebody's mistake; and either in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from ddpm_core.errors import InputError, UserError
from pipelines.progress import shown

# Errors of these packages come from the server, its database or its artifacts. By name: most are not imported here.
_OUTSIDE = {"mlflow", "requests", "urllib3", "botocore", "boto3", "s3transfer", "sqlalchemy"}
# MLflow calls it an invalid value too when somebody deleted the run in the UI while it was written to.
_DELETED = "must be in the 'active' state"


class TrackingError(UserError, OSError):
    """MLflow could not do what was asked; the message is one line."""


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow calls a value invalid, which is a mistake in our code, or a user's."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE" and _DELETED not in str(error)


def is_outage(error: Exception) -> bool:
    """Whether an error came from outside: from a server, its database or its artifacts."""
    if is_refusal(error):
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _OUTSIDE


def one_line(error: BaseException) -> str:
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
