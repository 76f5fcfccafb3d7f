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
from pipelines.tracking.projection import project
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

    def __init__(self, tracker: Tracker, lineage: Lineage) -> None:
        key = lineage[0][1]
        if not key or "'" in key or "`" in key:
            raise InputError(f"a run's key is {key!r}; expected a text without quotes")
        self._tracker = tracker
        self._record = tracker.records.new(lineage)
        self._above: RunHandle | None = None
        self._points: set[tuple[str, int]] = set()
        self._shows: str | None = None
        self._waiting: list[Entry] = []
        """What is logged and MLflow may miss."""
        self._status = ""
        self.run_id: str | None = None
        """MLflow's id of the run; None as long as the server could not be reached."""

    @property
    def lineage(self) -> Lineage:
        """Its name and key, its parent's, ..."""
        return self._record.lineage

    def start(
        self, lineage: Lineage, above: RunHandle | None, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> str:
        """Mark the run as running, below what is now its parent; returns what it was, empty if it is new."""
        self._record.lineage, self._above = lineage, above
        self._tracker.records.tidy(lineage)
        recorded = self._tracker.records.read(lineage)
        self._points |= {(entry[1], entry[3]) for entry in recorded if entry[0] == "metric"}
        self._shows = next((entry[2] for entry in recorded if entry[:2] == ["tag", _SHOWS_TAG]), self._shows)
        self._log([["status", "RUNNING", _now()], *_tags(tags), *_params(params)], at_once=True)
        before = sorted((entry for entry in recorded if entry[0] == "status"), key=lambda entry: entry[2])
        return str(before[-1][1]) if before else ""

    def shows(self, key: str) -> bool:
        """Whether the points of a run below may stand here, too: those of the first that asked, as those of two would mix."""
        if self._shows is None:
            self._shows = key
            self.set_tags({_SHOWS_TAG: key})
        return self._shows == key

    def end(self, status: str) -> None:
        """Give the run its final status: FINISHED, FAILED or KILLED."""
        self._log([["status", status, _now()]], at_once=True)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set facts by which the run is found, replacing those of the same name; {run_id} and {experiment_id} in a text become MLflow's."""
        self._log(_tags(tags))

    def describe(self, markdown: str) -> None:
        """What the UI shows as the run's description; the same ids may stand in it."""
        self.set_tags({"mlflow.note.content": markdown})

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
        self, name: str, digest: str, uri: str, counts: Mapping[str, int], facts: Mapping[str, Any]
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
        self._log([["dataset", dataset, "training"]])

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
            tracker, key, above = self._tracker, self.lineage[0][1], self.lineage[1:]
            parent = {_PARENT_TAG: tracker.handle(above).open()} if above else {}
            with lock(tracker.uri):
                same_key, oldest = f"tags.`{KEY_TAG}` = '{key}'", ["attributes.start_time"]
                found = tracker.client.search_runs([tracker.experiment_id], same_key, order_by=oldest)
                run = found[0] if found else self._create({KEY_TAG: key, **parent})
            if parent and _PARENT_TAG not in run.data.tags:
                tracker.client.set_tag(run.info.run_id, _PARENT_TAG, parent[_PARENT_TAG])
            self.run_id = run.info.run_id
        return self.run_id

    def _create(self, tags: Mapping[str, str]) -> Any:
        """A new one, which gets all that is on record."""
        self.flush()
        self._waiting = self._tracker.records.read(self.lineage)
        began = min((entry[2] for entry in self._waiting if entry[0] == "status"), default=_now())
        return self._tracker.client.create_run(self._tracker.experiment_id, began, tags, self.lineage[0][0])

    # --- for the tracker

    @property
    def waits(self) -> bool:
        """Whether something is still to be delivered."""
        return bool(self._waiting)

    def adopt(self, recorded: Recorded) -> None:
        """Take over what a process that is gone has recorded: all of it, as nobody knows what was delivered."""
        self._record.marks |= set(recorded.marks)
        self._await(recorded.entries)

    def flush(self) -> None:
        """Have what was logged stand in the store, and whether MLflow may miss some of it."""
        if self._waiting:
            self._record.mark()
        self._record.flush()
        if not self._waiting and self._status != "RUNNING":
            self._record.unmark()

    def deliver(self) -> None:
        """Write to MLflow what waits. Raises if the server is away; nothing is lost then."""
        if not self._waiting:
            return
        client = self._tracker.client
        run = client.get_run(self.open())
        if run.info.lifecycle_stage == "deleted":  # in the UI, meanwhile
            self.run_id = None
            run = client.get_run(self.open())
        waiting, self._waiting = self._waiting, []
        try:
            project(client, run, waiting, self._tracker.records.uri)
        except BaseException as error:  # Ctrl-C, too
            if not is_refusal(error):
                self._waiting = waiting + self._waiting
                raise
            said = "MLflow refuses figures of run %s (%s); they stay in the store's record"
            logger.warning(said, self.lineage[0][0], one_line(error))

    def _log(self, entries: list[Entry], *, at_once: bool = False) -> None:
        if entries:
            self._record.append(entries)
            self._await(entries)
            self._tracker.keep_up(at_once=at_once)

    def _await(self, entries: list[Entry]) -> None:
        self._waiting += entries
        for entry in entries:
            if entry[0] == "status":
                self._status = entry[1]


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
