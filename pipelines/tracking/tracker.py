"""An opened tracking store and experiment, in which every stage is a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipelines.tracking.outage import Outages, refused
from pipelines.tracking.runs import RunHandle
from pipelines.tracking.store import artifact_location, lock, open_client, tracking_uri


class Tracker:
    """Holds the client and the experiment."""

    def __init__(self, client: Any, uri: str, experiment: str, experiment_id: str) -> None:
        self.client = client
        self.uri = uri
        self.experiment = experiment
        self.experiment_id = experiment_id
        self.outages = Outages(uri)

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

        It ends as FINISHED; as FAILED at an exception; as KILLED at an interrupt or exit. Killed outright it stays
        RUNNING until the same key comes again.

        Args:
            name: what a person reads.
            key: what the stage makes, as a stable identity (an artifact's fingerprint); stored as the tag `ddpm.key`.
            parent: the run in which it is shown.
            tags: facts to find it by.
            params: config, nested as it may be; what the run already has is left as it is.
        """
        handle = RunHandle(self, name, key=key, parent=parent, tags=tags or {}, params=params or {})
        handle.start()
        status = "FINISHED"
        try:
            yield handle
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            handle.end(status)


def open_tracking(store: str, experiment: str) -> Tracker:
    """Open the tracking store, made if new, and the experiment in it. In a driver, before its workers start.

    Args:
        store: the store's URI; its experiments keep their artifacts under <store>/mlflow.
        experiment: name shown in MLflow.

    Raises:
        ValueError: one line, if the store does not open, or the experiment lies in MLflow's waste bin.
    """
    uri = tracking_uri(store)
    client = open_client(uri)
    with refused(f"MLflow experiment {experiment!r}"), lock(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            # The tag has MLflow's pages show training runs rather than chat traces.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            made = client.create_experiment(experiment, artifact_location(store, uri), tags)
            return Tracker(client, uri, experiment, made)
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"MLflow experiment {experiment!r} was deleted; restore it: "
            f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return Tracker(client, uri, experiment, found.experiment_id)
