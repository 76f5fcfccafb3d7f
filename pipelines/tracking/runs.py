"""One stage's run: what it logs goes into the store's record of it, and from there to MLflow, never twice."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ddpm_core import storage
from ddpm_core.errors import InputError
from pipelines.tracking.outage import is_refusal, one_line
from pipelines.tracking.projection import DESCRIPTION, project
from pipelines.tracking.record import Entry, Lineage, Recorded
from pipelines.tracking.store import lock

if TYPE_CHECKING:
    from pipelines.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

KEY_TAG = "ddpm.key"
_SHOWS_TAG = "ddpm.shows"
_PARENT_TAG = "mlflow.parentRunId"
# MLflow's limits: characters of a param's value, of a dataset's digest.
MAX_VALUE, MAX_DIGEST = 6000, 36
_NAME = re.compile(r"[\w\-. :/@]+")


class RunHandle:
    """Logs to one run. So a server that is away neither stops the caller nor costs a figure or a picture, whoever is killed
    meanwhile; errors that are no outage raise."""

    def __init__(self, tracker: Tracker, name: str, *, key: str, parent: RunHandle | None, shown_above: bool) -> None:
        if not key or "'" in key or "`" in key:
            raise InputError(f"a run's key is {key!r}; expected a text without quotes")
        self._tracker, self.name, self._key, self._parent = tracker, name, key, parent
        self._above = parent if shown_above else None
        self.lineage: Lineage = [[name, key], *(parent.lineage if parent else [])]
        self._record = tracker.records.new(self.lineage)
        self._points: set[tuple[str, int]] = set()
        self._shows: str | None = None
        self._waiting: list[Entry] = []
        self._ended = False
        self._marks: set[str] = set()
        self._own_mark = ""
        self._began = _now()
        self.run_id: str | None = None
        """MLflow's id of the run; None as long as the server could not be reached."""

    def start(self, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Find or make the run, and mark it as running."""
        self._tracker.records.tidy(self.lineage)
        recorded = self._tracker.records.read(self.lineage)
        self._points = {(entry[1], entry[3]) for entry in recorded if entry[0] == "metric"}
        self._shows = next((entry[2] for entry in recorded if entry[:2] == ["tag", _SHOWS_TAG]), None)
        self._log([["status", "RUNNING", self._began], *_tags(tags), *_params(params)], at_once=True)

    def shows(self, key: str) -> bool:
        """Whether the points of a run below may stand here, too: those of the first that asked, as those of two would mix."""
        if self._shows is None:
            self._shows = key
            self.set_tags({_SHOWS_TAG: key})
        return self._shows == key

    def end(self, status: str) -> None:
        """Give the run its final status: FINISHED, FAILED or KILLED."""
        self._ended = True
        self._log([["status", status, _now()]], at_once=True)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log config values, nested names joined by dots. A param that the run already has keeps its value."""
        self._log(_params(params))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set facts by which the run is found, replacing those of the same name."""
        self._log(_tags(tags))

    def describe(self, markdown: str) -> None:
        """What the UI shows as the run's description; {run_id} and {experiment_id} in it become MLflow's."""
        self.set_tags({DESCRIPTION: markdown})

    def log_metrics(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Log points, each row a `step` (0 if it has none) and values by name, in any order.

        A metric has one point a step: the first that was logged. A resumed run computes some anew.
        """
        rows = list(rows)
        if self._above:
            self._above.log_metrics(
                {name: value for name, value in row.items() if not name.startswith("system/")} for row in rows
            )
        now, fresh = _now(), []
        for row in sorted(rows, key=lambda row: row.get("step", 0)):
            step = int(row.get("step", 0))
            for name, value in row.items():
                if name != "step" and (point := (tracked_name(name), step)) not in self._points:
                    self._points.add(point)
                    fresh.append(["metric", point[0], float(value), step, now])
        self._log(fresh)

    def log_figures(self, figures: Mapping[str, float], step: int) -> None:
        """Log what something came to, in the end: it replaces what was found before."""
        now = _now()
        self._log([["figure", tracked_name(name), float(value), step, now] for name, value in figures.items()])

    def log_dataset(
        self,
        name: str,
        digest: str,
        uri: str,
        counts: Mapping[str, int],
        facts: Mapping[str, Any],
        *,
        context: str = "training",
    ) -> None:
        """Say which dataset the run used; the UI shows it beside the run. MLflow keeps 36 characters of the digest;
        the whole of it, the counts and the facts (image size, channels, class names) stand in the dataset's profile."""
        columns = [{"name": "png", "type": "binary"}, {"name": "label", "type": "integer"}]
        profile = {**{f"num_{split}": count for split, count in counts.items()}, "digest": digest, **facts}
        dataset = {
            "name": name,
            "digest": digest[:MAX_DIGEST],
            "source_type": "s3" if storage.is_s3(uri) else "local",
            "source": json.dumps({"uri": uri}),
            "schema": json.dumps({"mlflow_colspec": columns}),
            "profile": json.dumps(profile),
        }
        self._log([["dataset", dataset, context]])

    def log_picture(self, uri: str, name: str, step: int | None = None) -> None:
        """Show a PNG of the store: with a step, in the UI's image grid, once a step; without, as the artifact <name>.png."""
        if self._above:
            self._above.log_picture(uri, name, step)
        self._log([["picture", self._tracker.records.place(uri), name, step]])

    def log_file(self, uri: str, name: str | None = None) -> None:
        """Show a text of the store (a page, JSON), as the artifact of that name."""
        self._log([["file", self._tracker.records.place(uri), name or uri.rpartition("/")[2]]])

    def keep_up(self) -> None:
        """Bring what was logged to the store and to MLflow, if the last time is long enough ago."""
        self._tracker.keep_up()

    def open(self) -> str:
        """The run's id; the first call finds the run of this key or makes one. Raises if the server is away."""
        if self.run_id is None:
            parent = {_PARENT_TAG: self._parent.open()} if self._parent else {}
            with lock(self._tracker.uri):
                experiment, same_key = self._tracker.experiment_id, f"tags.`{KEY_TAG}` = '{self._key}'"
                found = self._client.search_runs([experiment], same_key, order_by=["attributes.start_time"])
                if not found:
                    self.flush()
                    # A new one gets all of it.
                    self._waiting = self._tracker.records.read(self.lineage) or self._waiting
                    began = min([self._began, *(entry[2] for entry in self._waiting if entry[0] == "status")])
                    tags = {KEY_TAG: self._key, **parent}
                    found = [self._client.create_run(experiment, began, tags, self.name)]
            run = found[0]
            if parent and _PARENT_TAG not in run.data.tags:
                self._client.set_tag(run.info.run_id, _PARENT_TAG, parent[_PARENT_TAG])
            self.run_id = run.info.run_id
        return self.run_id

    # --- for the tracker

    @property
    def waits(self) -> bool:
        """Whether something is still to be delivered."""
        return bool(self._waiting)

    def adopt(self, recorded: Recorded) -> None:
        """Take over what a process that is gone has recorded: all of it, as nobody knows what was delivered."""
        self._waiting += recorded.entries
        self._marks |= set(recorded.marks)
        self._ended = next((entry[1] for entry in reversed(recorded.entries) if entry[0] == "status"), "") != "RUNNING"

    def take_over(self, other: RunHandle) -> None:
        """Deliver what another handle of the same run has to."""
        self._waiting, self._marks = other._waiting + self._waiting, other._marks | self._marks
        other._waiting, other._marks = [], set()

    def flush(self) -> None:
        """Have what was logged stand in the store, and that MLflow may miss it."""
        if self._waiting and not self._own_mark:
            self._own_mark = self._tracker.records.mark(self._record)
            self._marks.add(self._own_mark)
        self._record.flush()

    def settle(self) -> None:
        """Once it has ended, and MLflow knows all of it, have the store say so."""
        if self._ended and not self._waiting:
            while self._marks:
                storage.delete(self._marks.pop())
            self._own_mark = ""

    def deliver(self) -> None:
        """Write to MLflow what waits. Raises if the server is away; nothing is lost then."""
        if not self._waiting:
            return
        run = self._client.get_run(self.open())
        if run.info.lifecycle_stage == "deleted":  # in the UI, meanwhile
            self.run_id = None
            run = self._client.get_run(self.open())
        waiting, self._waiting = self._waiting, []
        try:
            project(self._client, run, waiting, self._tracker.records.uri)
        except BaseException as error:  # Ctrl-C, too
            if not (isinstance(error, Exception) and is_refusal(error)):
                self._waiting = waiting + self._waiting
                raise
            logger.warning(
                "MLflow refuses figures of run %s (%s); they stay in the store's record", self.name, one_line(error)
            )

    @property
    def _client(self) -> Any:
        return self._tracker.client

    def _log(self, entries: list[Entry], *, at_once: bool = False) -> None:
        if entries:
            self._record.append(entries)
            self._waiting += entries
            self._tracker.keep_up(at_once=at_once)


def _now() -> int:
    return int(time.time() * 1000)


def tracked_name(name: str) -> str:
    """The name as MLflow takes it, `fid at 2048` for `fid@2048`: what it would refuse must not reach the record."""
    if not _NAME.fullmatch(name):
        raise InputError(f"the name of a metric, param or tag is {name!r}; expected letters, digits and _-. :/")
    return name.replace("@", " at ")


def _tags(tags: Mapping[str, str]) -> list[Entry]:
    return [["tag", tracked_name(name), _utf8(str(value))] for name, value in tags.items()]


def _utf8(text: str) -> str:
    r"""What a file's name may hold and no database takes, as \udcNN."""
    return text.encode(errors="backslashreplace").decode()


def _params(params: Mapping[str, Any]) -> list[Entry]:
    return [["param", tracked_name(name), value] for name, value in flatten(params).items()]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested names joined by dots; values as text, cut at MLflow's limit."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = json.dumps(value) if isinstance(value, list | tuple | Mapping) else str(value)
            flat[f"{prefix}{name}"] = _utf8(text)[:MAX_VALUE]
    return flat
