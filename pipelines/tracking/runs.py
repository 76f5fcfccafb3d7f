"""One stage's run: what it logs goes into the store's record of it, and from there to MLflow, never twice."""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import InputError
from pipelines.tracking.record import Entry, Lineage, Recorded, Records

_SHOWS_TAG = "ddpm.shows"
# MLflow's limits: characters of a param's value, of a dataset's digest.
MAX_VALUE, MAX_DIGEST = 6000, 36
_NAME = re.compile(r"[\w\-. :/@]+")


class RunHandle:
    """Logs to one run. So a server that is away neither stops the caller nor costs a figure or a picture, whoever is killed
    meanwhile; errors that are no outage raise."""

    def __init__(self, records: Records, lineage: Lineage, keep_up: Callable[[bool], None]) -> None:
        """A run of an experiment's records.

        Args:
            keep_up: brings what was logged to the store and to MLflow: now and then, or at once.
        """
        key = lineage[0][1]
        if not key or "'" in key or "`" in key:
            raise InputError(f"a run's key is {key!r}; expected a text without quotes")
        self._records, self._keep_up = records, keep_up
        self._record = records.new(lineage)
        self._above: RunHandle | None = None
        self._points: set[tuple[str, int]] = set()
        self._shows: str | None = None
        self._status = ""
        self.waiting: list[Entry] = []
        """What is logged and MLflow may miss."""
        self.run_id: str | None = None
        """MLflow's id of the run; None as long as the server could not be reached."""

    @property
    def lineage(self) -> Lineage:
        """Its name and key, its parent's, ..."""
        return self._record.lineage

    def start(
        self, lineage: Lineage, above: "RunHandle | None", tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> str:
        """Mark the run as running, below what is now its parent; returns what it was, empty if it is new."""
        self._record.lineage, self._above = lineage, above
        self._records.tidy(lineage)
        self._note(self._records.read(lineage))
        before = self._status
        given = [["param", tracked_name(name), value] for name, value in flatten(params).items()]
        self._log([["status", "RUNNING", _now()], *_tags(tags), *given], at_once=True)
        return before

    def shows(self, key: str) -> bool:
        """Whether the points of a run below may stand here, too: those of the first that asked, as those of two would mix."""
        if self._shows is None:
            self.set_tags({_SHOWS_TAG: key})
        return self._shows == key

    def end(self, status: str) -> None:
        """Give the run its final status: FINISHED, FAILED or KILLED."""
        self._log([["status", status, _now()]], at_once=True)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set facts by which the run is found, replacing those of the same name; {run_id}, {experiment_id} become MLflow's."""
        self._log(_tags(tags))

    def describe(self, markdown: str) -> None:
        """Set what the UI shows as the run's description; the same ids may stand in it."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_metrics(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Log points, each row a `step` (0 if it has none) and values by name, in any order.

        A metric has one point a step: the first that was logged. A resumed run computes some anew.
        """
        rows, now = sorted(rows, key=lambda row: row.get("step", 0)), _now()
        if self._above:
            self._above.log_metrics(
                {name: value for name, value in row.items() if not name.startswith("system/")} for row in rows
            )
        points = [
            ["metric", tracked_name(name), float(value), int(row.get("step", 0)), now]
            for row in rows
            for name, value in row.items()
            if name != "step"
        ]
        self._log([point for point in points if (point[1], point[3]) not in self._points])

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
        self._log([["picture", self._records.place(uri), name, step]])

    def log_file(self, uri: str, name: str | None = None) -> None:
        """Show a text of the store (a page, JSON), as the artifact of that name."""
        self._log([["file", self._records.place(uri), name or uri.rpartition("/")[2]]])

    def keep_up(self) -> None:
        """Bring what was logged to the store and to MLflow, if the last time is long enough ago."""
        self._keep_up(False)

    # --- for the tracker

    def adopt(self, recorded: Recorded) -> None:
        """Take over what a process that is gone has recorded: all of it, as nobody knows what was delivered."""
        self._record.marks |= set(recorded.marks)
        self._note(recorded.entries)
        self.waiting += recorded.entries

    def flush(self) -> None:
        """Have what was logged stand in the store, and whether MLflow may miss some of it."""
        if self.waiting:
            self._record.mark()
        self._record.flush()
        if not self.waiting and self._status != "RUNNING":
            self._record.unmark()

    def _log(self, entries: list[Entry], *, at_once: bool = False) -> None:
        self._note(entries)
        self._record.append(entries)
        self.waiting += entries
        self._keep_up(at_once)

    def _note(self, entries: list[Entry]) -> None:
        """Learn what the run has. Its status is the newest of several jobs', one beside the other."""
        for kind, name, *rest in sorted(entries, key=lambda entry: entry[2] if entry[0] == "status" else 0):
            if kind == "metric":
                self._points.add((name, rest[1]))
            elif kind == "status":
                self._status = name
            elif (kind, name) == ("tag", _SHOWS_TAG):
                self._shows = rest[0]


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
