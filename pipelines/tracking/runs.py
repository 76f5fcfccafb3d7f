"""One stage's MLflow run: continued by its key, written in batches, never twice."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_core import storage
from ddpm_core.errors import InputError, MissingError
from pipelines.tracking.delivery import KnownSteps, write
from pipelines.tracking.journal import Entry, Journal, Lineage
from pipelines.tracking.outage import is_refusal, one_line
from pipelines.tracking.store import lock

if TYPE_CHECKING:
    from pipelines.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

KEY_TAG = "ddpm.key"
_PARENT_TAG = "mlflow.parentRunId"
# MLflow's limits: characters of a param's value, of a dataset's digest.
MAX_VALUE, MAX_DIGEST = 6000, 36
_NAME = re.compile(r"[\w\-. :/@]+")


class RunHandle:
    """Writes to one run, by way of a journal on disk: what is logged is there before MLflow is asked to take it.

    So a server that is away neither stops the caller nor costs a figure, whoever is killed meanwhile. What the run has
    is left out at delivery, as by (metric, step): an answer may have been lost, or a resumed run computes steps anew.
    Pictures and files are no part of it, as they lie in the store. Errors that are no outage raise.
    """

    def __init__(self, tracker: Tracker, name: str, *, key: str, parent: RunHandle | None) -> None:
        if not key or "'" in key or "`" in key:
            raise InputError(f"a run's key is {key!r}; expected a text without quotes")
        self._tracker, self.name, self._key, self._parent = tracker, name, key, parent
        self.lineage: Lineage = [[name, key], *(parent.lineage if parent else [])]
        self._journal = Journal(tracker.uri, tracker.experiment, self.lineage)
        self._started = _now()
        self.run_id: str | None = None
        """MLflow's id of the run; None as long as the server could not be reached."""
        self._steps: KnownSteps = defaultdict(set)
        self._pictures: set[tuple[str, int]] | None = None

    def start(self, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Find or make the run, and mark it as running."""
        self._log([["status", "RUNNING", self._started], *_tags(tags), *_params(params)])
        self._tracker.outages.attempt(self.open)  # another process may have delivered for it

    def end(self, status: str) -> None:
        """Give the run its final status: FINISHED, FAILED or KILLED."""
        self._log([["status", status, _now()]])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log config values, nested names joined by dots. A param that the run already has keeps its value."""
        self._log(_params(params))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set facts by which the run is found, replacing those of the same name."""
        self._log(_tags(tags))

    def describe(self, markdown: str) -> None:
        """What the UI shows as the run's description."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_metrics(self, rows: Iterable[Mapping[str, float]], *, model_id: str | None = None) -> None:
        """Log points, each row a `step` (0 if it has none) and values by name; `delivery.write` brings them to MLflow.

        A metric has one point a step: the first that was logged.

        Args:
            rows: in any order.
            model_id: MLflow's id of the logged model that the figures belong to.
        """
        now = _now()
        self._log(
            [
                ["metric", tracked_name(name), float(value), int(row.get("step", 0)), now, model_id]
                for row in sorted(rows, key=lambda row: row.get("step", 0))
                for name, value in row.items()
                if name != "step"
            ]
        )

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

    def log_picture(self, png: bytes, name: str, step: int | None = None) -> None:
        """Log a PNG: with a step, in the UI's image grid, once a step; without, as the artifact <name>.png."""
        image = _decode(png)

        def write() -> None:
            if step is None:
                self._client.log_image(self.open(), image, f"{name}.png")
            else:
                self._write_picture(image, name, step)

        self._tracker.outages.attempt(write, "pictures")

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a local file as an artifact, in a folder of the run's artifacts."""
        if not path.is_file():
            raise MissingError(f"no file at {path}")
        self._tracker.outages.attempt(lambda: self._client.log_artifact(self.open(), str(path), folder), "files")

    def log_dict(self, data: Mapping[str, Any], name: str) -> None:
        """Log JSON as the artifact `name`."""
        self.log_text(json.dumps(data, indent=2), name)

    def log_html(self, html: str, name: str = "report.html") -> None:
        """Log a page, which the UI shows."""
        self.log_text(html, name)

    def log_text(self, text: str, name: str) -> None:
        """Log a text as the artifact `name`."""
        self._tracker.outages.attempt(lambda: self._client.log_text(self.open(), text, name), "files")

    def open(self) -> str:
        """The run's id; the first call finds the run of this key or makes one. Raises if the server is away."""
        if self.run_id is None:
            parent = {_PARENT_TAG: self._parent.open()} if self._parent else {}
            with lock(self._tracker.uri):
                experiment, same_key = self._tracker.experiment_id, f"tags.`{KEY_TAG}` = '{self._key}'"
                found = self._client.search_runs([experiment], same_key, order_by=["attributes.start_time"])
                tags = {KEY_TAG: self._key, **parent}
                run = found[0] if found else self._client.create_run(experiment, self._started, tags, self.name)
            if parent and _PARENT_TAG not in run.data.tags:
                self._client.set_tag(run.info.run_id, _PARENT_TAG, parent[_PARENT_TAG])
            self.run_id = run.info.run_id
        return self.run_id

    @property
    def waits(self) -> bool:
        """Whether something is still to be delivered."""
        return self._journal.waits

    def deliver(self) -> None:
        """Write to MLflow what waits in the journal. Raises if the server is away; nothing is lost then."""
        try:
            self._journal.deliver(self._write)
        except Exception as error:
            if not is_refusal(error):
                raise
            kept = self._journal.set_aside()
            logger.warning(
                "MLflow refuses figures of run %s (%s), they are kept in %s", self.name, one_line(error), kept
            )

    @property
    def _client(self) -> Any:
        return self._tracker.client

    def _log(self, entries: list[Entry]) -> None:
        if entries:
            self._journal.append(entries)
            self._tracker.deliver()

    def _write(self, entries: list[Entry]) -> None:
        """Write entries to the run as the server has it now."""
        self._started = min([self._started, *(entry[2] for entry in entries if entry[0] == "status")])
        run = self._client.get_run(self.open())
        if run.info.lifecycle_stage == "deleted":  # in the UI, meanwhile; the rest goes to a new one
            self.run_id = None
            run = self._client.get_run(self.open())
        write(self._client, run, entries, self._steps)

    def _write_picture(self, image: Any, name: str, step: int) -> None:
        run_id = self.open()
        if self._pictures is None:
            # MLflow's own naming; the compressed copy is the last thing that log_image writes.
            written = re.compile(r"images/(.+)\+step\+(\d+)\+.*\+compressed\.webp")
            there = (written.fullmatch(each.path) for each in self._client.list_artifacts(run_id, "images"))
            self._pictures = {(found[1].replace("~", "/"), int(found[2])) for found in there if found}
        if (name, step) not in self._pictures:
            self._client.log_image(run_id, image, key=name, step=step)
            self._pictures.add((name, step))


def _now() -> int:
    return int(time.time() * 1000)


def tracked_name(name: str) -> str:
    """The name as MLflow takes it, `fid at 2048` for `fid@2048`: what it would refuse must not reach the journal."""
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


def _decode(png: bytes) -> Any:
    from PIL import Image

    image = Image.open(io.BytesIO(png))
    image.load()
    return image
