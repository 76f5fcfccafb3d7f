"""An opened tracking store and experiment: every stage is a run in it. What runs log is brought to the store, then to MLflow."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import HeldError, InputError
from pipelines.naming import digest
from pipelines.tracking.outage import is_outage, is_refusal, one_line, refused
from pipelines.tracking.projection import project
from pipelines.tracking.record import Lineage, Recorded, Records, experiments
from pipelines.tracking.runs import RunHandle
from pipelines.tracking.store import (
    AwayError,
    Server,
    artifact_location,
    is_server,
    lock,
    new_client,
    open_server,
    tracking_uri,
)

logger = logging.getLogger(__name__)

_KEY_TAG, _PARENT_TAG = "ddpm.key", "mlflow.parentRunId"
EVERY_S = 10.0
"""What was logged reaches the store and MLflow after so long at most: what a kill costs."""
RETRY_AFTER_S = 60.0
"""After a failure the server is left alone for so long: a call to a dead one can take seconds to fail."""


class Tracker(Server):
    """An MLflow, an experiment in it, and the runs that have something to tell."""

    def __init__(self, server: Server, store: str, experiment: str, experiment_id: str) -> None:
        super().__init__(server.client, server.uri)
        self.store, self.experiment_id = store, experiment_id
        self.records = Records(store, experiment, server.uri)
        self._runs: dict[str, RunHandle] = {}
        self._kept_up = self._retry_at = 0.0
        self._told: set[str] = set()

    @contextmanager
    def run(
        self,
        name: str,
        *,
        key: str,
        parent: RunHandle | None = None,
        shown_above: bool = False,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Iterator[RunHandle]:
        """One stage as an MLflow run; the run of the same key is continued, whatever became of it.

        It ends as FINISHED; as FAILED at an exception; as KILLED at an interrupt or exit; not at all at a
        HeldError. Killed outright it stays RUNNING until the same key comes again. What a user's mistake refuses (InputError)
        leaves it as it was: another command may be at work on it.

        Args:
            name: what a person reads.
            key: what the stage makes, as a stable identity (an artifact's fingerprint); stored as the tag `ddpm.key`.
            parent: the run in which it is shown.
            shown_above: whether its points and pictures are the parent's, too.
            tags: facts to find it by.
            params: config, nested as it may be; what the run already has is left as it is.
        """
        lineage = [[name, key], *(parent.lineage if parent else [])]
        handle = self.handle(lineage)
        before = handle.start(lineage, parent if shown_above else None, tags or {}, params or {})
        status = "KILLED"
        try:
            yield handle
            status = "FINISHED"
        except InputError:
            status = "" if before == "RUNNING" else before or "FAILED"
            raise
        except Exception as error:  # whoever holds what this job would have made ends the run
            status = "" if isinstance(error, HeldError) else "FAILED"
            raise
        finally:
            if status:
                handle.end(status)
            if parent is None:
                self._retry_at = 0.0  # the end is worth an attempt, and nothing waits for a holder's end
                self.keep_up(at_once=True)
            if parent is None and any(run.waiting for run in self._runs.values()):
                logger.warning(
                    "MLflow at %s misses some of it; the next command on this store and recipe, or `ui.py sync`, brings it there",
                    self.shown_uri,
                )

    def handle(self, lineage: Lineage) -> RunHandle:
        """The one that this process has of a run, whether it logs to it or delivers what another process left."""
        return self._runs.setdefault(lineage[0][1], RunHandle(self.records, lineage, self.keep_up))

    def adopt(self, runs: Iterable[Recorded]) -> None:
        """Take over what is on record; it goes to MLflow with the next that is logged."""
        for recorded in runs:
            self.handle(recorded.lineage).adopt(recorded)

    def keep_up(self, at_once: bool = False) -> None:
        """Bring what was logged to the store and to MLflow, if the last time is long enough ago."""
        if not at_once and time.monotonic() - self._kept_up < EVERY_S:
            return
        self._kept_up = time.monotonic()
        self._flush()
        if time.monotonic() >= self._retry_at:
            try:
                self.deliver()
            except Exception as error:
                if not is_outage(error):
                    raise
                self.failed(f"MLflow at {self.shown_uri} fails ({one_line(error)})")
        self._flush()

    def deliver(self) -> None:
        """Write what waits, of all runs. Raises if the server is away; nothing is lost then."""
        while waiting := [run for run in self._runs.values() if run.waiting]:  # to open a run may make its parent
            for run in waiting:
                self._deliver(run)

    def open_run(self, run: RunHandle) -> Any:
        """The run of this key as MLflow has it; made if there is none, or somebody deleted it. Raises if the server is away."""
        key, above = run.lineage[0][1], run.lineage[1:]
        found = self._find(key)
        if not found:
            parent = {_PARENT_TAG: self.open_run(self.handle(above)).info.run_id} if above else {}
            with lock(self.uri):
                found = self._find(key) or [self._create(run, {_KEY_TAG: key, **parent})]
        run.run_id = found[0].info.run_id
        return found[0]

    def _find(self, key: str) -> list[Any]:
        same_key, oldest = f"tags.`{_KEY_TAG}` = '{key}'", ["attributes.start_time"]
        return list(self.client.search_runs([self.experiment_id], same_key, order_by=oldest))

    def _create(self, run: RunHandle, tags: Mapping[str, str]) -> Any:
        """A new one, which gets all that is on record."""
        run.flush()
        run.waiting = self.records.read(run.lineage)
        began = min((entry[2] for entry in run.waiting if entry[0] == "status"), default=None)
        return self.client.create_run(self.experiment_id, began, tags, run.lineage[0][0])

    def _deliver(self, run: RunHandle) -> None:
        found = self.open_run(run)
        waiting, run.waiting = run.waiting, []
        try:
            project(self.client, found, waiting, self.records.uri)
        except BaseException as error:  # Ctrl-C, too
            if not is_refusal(error):
                run.waiting = waiting + run.waiting
                raise
            said = "MLflow refuses figures of run %s (%s); they stay in the store's record"
            logger.warning(said, run.lineage[0][0], one_line(error))

    def failed(self, said: str) -> None:
        """Leave the server alone for a while. A person is told the first time; in the end, if anything is missing."""
        self._retry_at = time.monotonic() + RETRY_AFTER_S
        self._tell_once("server", f"{said}; the work goes on, and the store keeps what MLflow misses")

    def _flush(self) -> None:
        try:
            for run in list(self._runs.values()):
                run.flush()
        except OSError as error:  # the work itself writes there too, and decides whether it can go on
            said = f"the store does not take what MLflow is to show ({one_line(error)}); it is tried again"
            self._tell_once("store", said)

    def _tell_once(self, of: str, line: str) -> None:
        if of not in self._told:
            self._told.add(of)
            logger.warning("%s", line)


def open_tracking(store: str, experiment: str) -> Tracker:
    """Open the tracking store, made if new, and the experiment in it. In a driver, before its workers start.

    A server that is away is a user's mistake the first time, as a misspelt address is away too. Once this store's
    experiment was opened on it, it is an outage: a run of days that is started again meanwhile shall go on, so all
    waits in the store and is delivered later. Whether it was opened stands in the store, which all nodes see that may be next.

    Args:
        store: the store's URI; its experiments keep their artifacts under <store>/mlflow.
        experiment: name shown in MLflow.

    Raises:
        InputError: one line, if the store does not open, or the experiment lies in MLflow's waste bin.
    """
    uri = tracking_uri(store)
    opened = storage.join(store, "mlflow", "opened", digest([uri, experiment], 16))
    try:
        server = open_server(store)
    except AwayError as error:
        if not storage.exists(opened):
            raise
        tracker = Tracker(Server(new_client(uri), uri), store, experiment, storage.read_bytes(opened).decode())
        tracker.failed(str(error))
    else:
        tracker = Tracker(server, store, experiment, _open_experiment(server, store, experiment))
        if is_server(uri):
            storage.write_bytes(opened, tracker.experiment_id.encode())
    tracker.adopt(tracker.records.undelivered())
    return tracker


def sync(store: str) -> dict[str, int]:
    """Bring MLflow to all that is on a store's record, whatever it has of it: another server, or one that lost its own.

    Returns:
        the number of runs, by experiment.

    Raises:
        InputError: in one line, if the tracking store does not open.
        TrackingError: likewise, if it fails meanwhile.
    """
    runs = {}
    for experiment in experiments(store):
        tracker = open_tracking(store, experiment)
        recorded = list(tracker.records.all())
        tracker.adopt(recorded)
        runs[experiment] = len(recorded)
        with refused(f"MLflow at {tracker.shown_uri}"):
            tracker.deliver()
        tracker.keep_up(at_once=True)
    return runs


def _open_experiment(server: Server, store: str, experiment: str) -> str:
    """The experiment's id."""
    with refused(f"MLflow experiment {experiment!r}"), lock(server.uri):
        found = server.client.get_experiment_by_name(experiment)
        if found is None:
            # The tag has MLflow's pages show training runs rather than chat traces.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(server.client.create_experiment(experiment, artifact_location(store, server.uri), tags))
    if found.lifecycle_stage != "active":
        raise InputError(
            f"MLflow experiment {experiment!r} was deleted; restore it: "
            f"MLFLOW_TRACKING_URI={server.shown_uri} mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)
