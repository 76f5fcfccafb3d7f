"""Where MLflow keeps its records, and how they are opened."""

import fcntl
import logging
import os
import re
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import platformdirs

from ddpm_core import storage
from ddpm_core.errors import InputError
from pipelines.progress import say, shown
from pipelines.tracking.outage import is_outage, is_refusal, one_line

logger = logging.getLogger(__name__)

# Set before MLflow is imported, unless the user set them: no telemetry, only warnings, no progress bars, no links, a dead server
# noticed in seconds (MLflow's own defaults retry for minutes, and would make a run twice where the first answer was
# lost; what fails is tried again from the record). A uv.lock in the working directory is not our model's.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own client of S3, which else gives up after two seconds; ours has rules of its own.
    "AWS_RETRY_MODE": "standard",
    "AWS_MAX_ATTEMPTS": "6",
}
_SQLITE = "sqlite:///"
_KINDS = (_SQLITE, "http://", "https://", "postgresql", "mysql", "mssql")
"""What MLflow keeps runs in; it reads no more those that it kept in folders."""
_DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages, by what they are imported as."""
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Of its SQLite, what says where artifacts lie."""


class AwayError(InputError):
    """A server does not answer, or not as one should."""


def tracking_uri(store: str) -> str:
    """MLFLOW_TRACKING_URI if set; else SQLite in the store's folder, or in the per-user one for a store on S3."""
    folder = platformdirs.user_data_path("ddpm") if storage.is_s3(store) else Path(storage.absolute(store))
    return os.environ.get("MLFLOW_TRACKING_URI") or _database_uri(folder)


def is_there(store: str) -> bool:
    """Whether a store's MLflow can be asked without being made first: a server, or a database that stands."""
    uri = tracking_uri(store)
    return not uri.startswith(_SQLITE) or _database(uri).is_file()


def standing_server(store: str) -> "Server | None":
    """The MLflow of a store; None where nothing was ever tracked, and none is made to find that out.

    Raises:
        InputError: one line, if it does not open.
    """
    return open_server(store) if is_there(store) else None


def _database_uri(folder: Path) -> str:
    """Of the SQLite in a folder; what would mean something in a URI as %NN, which SQLAlchemy (from 2.1 on) takes back."""
    return _SQLITE + str(folder / "mlflow.db").replace("%", "%25").replace("?", "%3F")


def _database(uri: str) -> Path:
    """The file of a SQLite URI."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0]))


def registry_at_risk(store: str) -> str | None:
    """A line, if the models' registry lies on this machine alone while the models lie on S3."""
    uri = tracking_uri(store)
    if not (storage.is_s3(store) and uri.startswith(_SQLITE)):
        return None
    return (
        f"the registry lies in {_database(uri)} of this machine alone, and is lost with it, while the store is "
        f"{store}: set MLFLOW_TRACKING_URI to an MLflow server's"
    )


def check_place(store: str) -> None:
    """Refuse a store that MLflow would write beside.

    Raises:
        InputError: in one line.
    """
    if storage.is_s3(store) and (cut := re.search(r"[?#\x00-\x1f\x7f]", store)):
        raise InputError(
            f"the store is {storage.printable(store)}; expected a prefix without {storage.printable(cut[0])}, where MLflow "
            "would cut it off"
        )


def artifact_location(store: str, uri: str) -> str | None:
    """Where a new experiment's artifacts go: <store>/mlflow, or the place of a server that may not see that folder."""
    if storage.is_s3(store):
        return storage.join(storage.absolute(store), "mlflow")
    return None if is_server(uri) else (Path(storage.absolute(store)) / "mlflow").as_uri()


def follow_move(store: str, uri: str) -> None:
    """Have the records of a store's own SQLite point into the store, where it was moved or copied since.

    MLflow records absolute places, and has no call that changes them.
    """
    if uri != _database_uri(Path(storage.absolute(store))) or not _is_writable(_database(uri)):
        return
    now = artifact_location(store, uri)
    with lock(uri), closing(sqlite3.connect(_database(uri))) as database, database:
        ours = "SELECT DISTINCT artifact_location FROM experiments WHERE name LIKE 'ddpm-%' AND artifact_location LIKE '%/mlflow'"
        for (before,) in database.execute(ours).fetchall():
            for table, column in _PLACES if before != now else ():
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
                )


def is_server(uri: str) -> bool:
    """Whether an MLflow server answers at this URI, rather than a database."""
    return uri.startswith(("http://", "https://"))


def quiet_environment() -> None:
    """Keep MLflow to itself; must come before it is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Leave out what MLflow 3.17's own code is warned of, and nothing else."""
    with warnings.catch_warnings():
        # Its SQLAlchemy models use a loader strategy that SQLAlchemy calls deprecated.
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)
        # Its own chat agents' type hints.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        # Its way of writing an input example, beside pandas 3.
        warnings.filterwarnings("ignore", "Operation with range is deprecated", DeprecationWarning)
        yield


@contextmanager
def import_meanwhile(store: str) -> Iterator[None]:
    """Import MLflow, which takes seconds, in a thread beside a block that leaves the time, and must not import it itself."""
    quiet_environment()
    # For a database what it needs, too, which is not imported with the rest.
    name = "mlflow" if is_server(tracking_uri(store)) else "mlflow.store.tracking.sqlalchemy_store"
    thread = threading.Thread(target=import_module, args=[name], name="import mlflow", daemon=True)
    with quiet_warnings():  # here: of a thread they would be all threads' ones, and end in any order
        thread.start()
        try:
            yield
            thread.join(1.0)  # not worth a word
            if thread.is_alive():
                say("importing MLflow")
            thread.join()
        except Exception:
            thread.join()  # of an error that is told in one line, nothing else is
            raise
    # Of Ctrl-C not: it may have broken off an import of this thread's, and left it locked for the other one for ever.


@dataclass(eq=False)
class Server:
    """An MLflow that is opened."""

    client: Any
    uri: str

    @property
    def shown_uri(self) -> str:
        """Where it is, without a password."""
        return shown(self.uri)


def open_server(store: str) -> Server:
    """The MLflow of a store, without an experiment; a new SQLite is created by one process while others wait.

    Raises:
        InputError: one line, if it does not open.
    """
    check_place(store)
    uri = tracking_uri(store)
    if not uri.startswith(_KINDS):
        raise InputError(
            f"MLFLOW_TRACKING_URI is {shown(uri)}; expected a server's http://HOST:PORT, or a database's sqlite:///PATH or "
            "postgresql://USER@HOST/NAME, or unset it"
        )
    try:
        with lock(uri), quiet_warnings():
            client = new_client(uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except Exception as error:
        if not (is_outage(error) or is_refusal(error) or isinstance(error, ImportError)):
            raise
        kind = AwayError if is_server(uri) and not _asks_for_password(error) else InputError
        raise kind(f"MLflow at {shown(uri)} cannot be opened{_why(uri, error)}") from error
    follow_move(store, uri)
    if risk := registry_at_risk(store):
        logger.warning(risk)
    return Server(client, uri)


def new_client(uri: str) -> Any:
    """An MlflowClient; of a server nothing is asked yet."""
    quiet_environment()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=with_driver(uri))


def with_driver(uri: str) -> str:
    """A SQLite's URI with its driver named: of one without MLflow makes a folder, with its %NN, beside that of the database."""
    return re.sub("^sqlite:", "sqlite+pysqlite:", uri)


def _asks_for_password(error: Exception) -> bool:
    return re.search("error code 40[13]", str(error)) is not None


def _why(uri: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        package = _DRIVERS.get(error.name or "", error.name)
        return f": the Python package {error.name} is missing; pip install {package}"
    if "out-of-date database schema" in str(error):
        return f": it was made by another version of MLflow; after a backup of it, mlflow db upgrade '{shown(uri)}'"
    if _asks_for_password(error):
        return ": it asks for another user or password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if "is locked" in str(error):
        return ": another program holds it; try again once that has ended"
    remedy = "MLFLOW_TRACKING_URI, or unset it" if os.environ.get("MLFLOW_TRACKING_URI") else "the store"
    return f" ({one_line(error)}); check {remedy}"


@contextmanager
def lock(uri: str) -> Iterator[None]:
    """Hold a SQLite store for oneself against other drivers on this machine; a server needs no such thing, nor one only read."""
    path = _database(uri)
    if not uri.startswith(_SQLITE) or not _is_writable(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_writable(database: Path) -> bool:
    """Whether it, or one that is still to be made, may be written."""
    return not database.exists() or os.access(database, os.W_OK)
