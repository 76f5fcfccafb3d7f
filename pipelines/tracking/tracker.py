"""An opened tracking store and experiment: every stage is a run in it. A stage logs to `runs.py`, `delivery.py` sends it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import HeldError, InputError
from pipelines.progress import shown
from pipelines.tracking.journal import digest, journal_folder, waiting
from pipelines.tracking.outage import Outages, refused
from pipelines.tracking.runs import RunHandle
from pipelines.tracking.store import (
    artifact_location,
    check_place,
    follow_move,
    is_server,
    lock,
    new_client,
    open_client,
    registry_at_risk,
    tracking_uri,
)

logger = logging.getLogger(__name__)


class Tracker:
    """Holds the client, the experiment, and the runs that have something to tell."""

    def __init__(self, client: Any, uri: str, experiment: str, experiment_id: str) -> None:
        self.client = client
        self.uri = uri
        self.experiment = experiment
        self.experiment_id = experiment_id
        self.outages = Outages(shown(uri))
        self._runs: dict[str, RunHandle] = {}

    @property
    def shown_uri(self) -> str:
        """Where it writes, without a password."""
        return shown(self.uri)

    @contextmanager
    def run(
        self,
        name: str,
        *,
        key: str,
        parent: RunHandle | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Iterator[RunHandle]:
        """One stage as an MLflow run; the run of the same key is continued, whatever became of it.

        It ends as FINISHED; as FAILED at an exception; as KILLED at an interrupt or exit; not at all at a
        HeldError. Killed outright it stays RUNNING until the same key comes again.

        Args:
            name: what a person reads.
            key: what the stage makes, as a stable identity (an artifact's fingerprint); stored as the tag `ddpm.key`.
            parent: the run in which it is shown.
            tags: facts to find it by.
            params: config, nested as it may be; what the run already has is left as it is.
        """
        handle = RunHandle(self, name, key=key, parent=parent)
        self._runs[key] = handle
        handle.start(tags or {}, params or {})
        status: str | None = "FINISHED"
        try:
            yield handle
        except HeldError:
            status = None  # whoever holds what this job would have made ends the run
            raise
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            if parent is None:
                self.outages.retry_now()
            if status:
                handle.end(status)
            if parent is None:
                self._settle()

    def deliver(self) -> None:
        """Write what waits, of all runs, unless the server failed a moment ago."""
        self.outages.attempt(self._deliver)

    def adopt_waiting(self) -> None:
        """Take over what processes that are gone could not deliver; it goes out with the next that is logged."""
        for lineage in waiting(self.uri, self.experiment):
            run: RunHandle | None = None
            for name, key in reversed(lineage):
                run = self._runs.setdefault(key, RunHandle(self, name, key=key, parent=run))

    def _deliver(self) -> None:
        for run in self._runs.values():
            run.deliver()

    def _settle(self) -> None:
        if any(run.waits for run in self._runs.values()):
            logger.warning(
                "what MLflow at %s misses waits in %s; the same command again delivers it",
                self.shown_uri,
                journal_folder(),
            )
        self.outages.settle()


def open_tracking(store: str, experiment: str) -> Tracker:
    """Open the tracking store, made if new, and the experiment in it. In a driver, before its workers start.

    A server that is away is a user's mistake the first time, as a misspelt address is away too. Once this store's
    experiment was opened on it, it is an outage: a run of days that is started again meanwhile shall go on, so all is
    journaled and delivered later. The store keeps the record of that, as it is what all nodes see that may be next.

    Args:
        store: the store's URI; its experiments keep their artifacts under <store>/mlflow.
        experiment: name shown in MLflow.

    Raises:
        InputError: one line, if the store does not open, or the experiment lies in MLflow's waste bin.
    """
    check_place(store)
    uri = tracking_uri(store)
    record = storage.join(store, "mlflow", "opened", digest(uri, experiment))
    try:
        client = open_client(uri)
    except ValueError as error:
        if not is_server(uri) or not storage.exists(record):
            raise
        tracker = Tracker(new_client(uri), uri, experiment, storage.read_bytes(record).decode())
        tracker.outages.failed(str(error))
    else:
        follow_move(store, uri)
        tracker = Tracker(client, uri, experiment, _open_experiment(client, store, uri, experiment))
        if is_server(uri):
            storage.write_bytes(record, tracker.experiment_id.encode())
    if risk := registry_at_risk(store):
        logger.warning(risk)
    tracker.adopt_waiting()
    return tracker


def _open_experiment(client: Any, store: str, uri: str, experiment: str) -> str:
    """The experiment's id."""
    with refused(f"MLflow experiment {experiment!r}"), lock(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            # The tag has MLflow's pages show training runs rather than chat traces.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            made: str = client.create_experiment(experiment, artifact_location(store, uri), tags)
            return made
    if found.lifecycle_stage != "active":
        raise InputError(
            f"MLflow experiment {experiment!r} was deleted; restore it: "
            f"MLFLOW_TRACKING_URI={shown(uri)} mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)
