"""One stage's MLflow run: continued by its key, written in batches, never twice."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_core import storage
from pipelines.tracking.store import lock

if TYPE_CHECKING:
    from pipelines.tracking.tracker import Tracker

KEY_TAG = "ddpm.key"
# MLflow's limits: entities a call, characters of a param's value, of a dataset's digest, of an input's tag.
MAX_METRICS, MAX_PARAMS, MAX_VALUE, MAX_DIGEST = 1000, 100, 6000, 36
_NAME = re.compile(r"[\w\-. :/]+")


class RunHandle:
    """Writes to one run. A tracking server that fails is told once and does not stop the caller; other errors raise."""

    def __init__(
        self,
        tracker: Tracker,
        name: str,
        *,
        key: str,
        parent: RunHandle | None,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> None:
        if not key or "'" in key or "`" in key:
            raise ValueError(f"a run's key is {key!r}; expected a text without quotes")
        self._tracker, self.name, self._key, self._parent = tracker, name, key, parent
        self._tags = {name: str(value) for name, value in tags.items()}
        self._wanted_params = flatten(params)
        self.run_id: str | None = None
        """MLflow's id of the run; None as long as the server could not be reached."""
        self._params: set[str] = set()
        self._last_step: dict[str, int] = {}
        self._pictures: set[tuple[str, int]] = set()
        self._pending: list[Any] = []

    def start(self) -> None:
        """Find or make the run, and mark it as running."""
        self._attempt(None, self.open)

    def end(self, status: str) -> None:
        """Write what is still to be written, and give the run its final status: FINISHED, FAILED or KILLED."""
        outages = self._tracker.outages
        outages.retry_now()
        self._attempt(None, self._write_rest)
        outages.lost["points"] += len(self._pending)
        outages.lost["params"] += len(self._wanted_params.keys() - self._params)
        outages.lost["tags"] += len(self._tags)
        self._attempt("status", lambda: self._client.set_terminated(self.open(), status=status))
        outages.settle(self.name)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log config values, nested names joined by dots. A param that the run already has keeps its value."""
        self._wanted_params |= flatten(params)
        self._attempt(None, self._write_params)

    def log_metrics(self, rows: Iterable[Mapping[str, float]], *, model_id: str | None = None) -> None:
        """Log points, each row a `step` (0 if it has none) and values by name.

        Points at or before a metric's last step are left out: a resumed run logged them before. While the server is
        away they wait here.

        Args:
            rows: in any order.
            model_id: MLflow's id of the logged model that the figures belong to.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for row in sorted(rows, key=lambda row: row.get("step", 0)):
            for name, value in row.items():
                if name == "step":
                    continue
                if not _NAME.fullmatch(name):
                    raise ValueError(f"a metric's name is {name!r}; expected letters, digits and _-. :/")
                self._pending.append(Metric(name, float(value), now, int(row.get("step", 0)), model_id=model_id))
        self._attempt(None, self._flush)

    def log_picture(self, png: bytes, name: str, step: int | None = None) -> None:
        """Log a PNG: with a step, in the UI's image grid, once a step; without, as the artifact <name>.png."""
        image = _decode(png)
        if step is None:
            self._attempt("pictures", lambda: self._client.log_image(self.open(), image, f"{name}.png"))
        else:
            self._attempt("pictures", lambda: self._write_picture(image, name, step))

    def _write_picture(self, image: Any, name: str, step: int) -> None:
        run_id = self.open()
        if (name, step) not in self._pictures:
            self._client.log_image(run_id, image, key=name, step=step)
            self._pictures.add((name, step))

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a local file as an artifact, in a folder of the run's artifacts."""
        if not path.is_file():
            raise FileNotFoundError(f"no file at {path}")
        self._attempt("files", lambda: self._client.log_artifact(self.open(), str(path), folder))

    def log_dict(self, data: Mapping[str, Any], name: str) -> None:
        """Log JSON as the artifact `name`."""
        self.log_text(json.dumps(data, indent=2), name)

    def log_html(self, html: str, name: str = "report.html") -> None:
        """Log a page, which the UI shows."""
        self.log_text(html, name)

    def log_text(self, text: str, name: str) -> None:
        """Log a text as the artifact `name`."""
        self._attempt("files", lambda: self._client.log_text(self.open(), text, name))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set facts by which the run is found, replacing those of the same name."""
        self._tags |= {name: str(value) for name, value in tags.items()}
        self._attempt(None, self._write_tags)

    def log_dataset(
        self,
        name: str,
        digest: str,
        uri: str,
        num_train: int,
        num_heldout: int,
        facts: Mapping[str, Any],
        *,
        context: str = "training",
    ) -> None:
        """Say which dataset the run used; the UI shows it beside the run. MLflow keeps 36 characters of the digest;
        the whole of it, the counts and the facts (image size, channels, class names) stand in the dataset's profile."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        columns = [{"name": "png", "type": "binary"}, {"name": "label", "type": "integer"}]
        profile = {"num_train": num_train, "num_heldout": num_heldout, "digest": digest, **facts}
        dataset = Dataset(
            name=name,
            digest=digest[:MAX_DIGEST],
            source_type="s3" if storage.is_s3(uri) else "local",
            source=json.dumps({"uri": uri}),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps(profile),
        )
        given = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self._attempt("datasets", lambda: self._client.log_inputs(self.open(), [given]))

    @property
    def _client(self) -> Any:
        return self._tracker.client

    def _attempt(self, what: str | None, call: Callable[[], Any]) -> None:
        self._tracker.outages.attempt(what, call)

    def open(self) -> str:
        """The run's id; the first call finds the run of this key or makes one. Raises if the server is away."""
        if self.run_id is None:
            parent = {"mlflow.parentRunId": self._parent.open()} if self._parent else {}
            with lock(self._tracker.uri):
                experiment, same_key = self._tracker.experiment_id, f"tags.`{KEY_TAG}` = '{self._key}'"
                found = self._client.search_runs([experiment], same_key, order_by=["attributes.start_time"])
                tags = {KEY_TAG: self._key, **parent, **self._tags}
                run = found[0] if found else self._client.create_run(experiment, None, tags, self.name)
            if found:
                self._resume(run, parent)
            self.run_id = run.info.run_id
            self._write_tags()
            self._write_params()
        return self.run_id

    def _write_rest(self) -> None:
        self._write_tags()
        self._write_params()
        self._flush()

    def _resume(self, run: Any, parent: dict[str, str]) -> None:
        run_id = run.info.run_id
        self._client.update_run(run_id, status="RUNNING", name=self.name)
        self._params = set(run.data.params)
        if "mlflow.parentRunId" not in run.data.tags:
            self._tags |= parent
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        for artifact in self._client.list_artifacts(run_id, "images"):
            # MLflow's own naming; the compressed copy is the last thing that log_image writes.
            shown = re.fullmatch(r"images/(.+)\+step\+(\d+)\+.*\+compressed\.webp", artifact.path)
            if shown:
                self._pictures.add((shown[1].replace("~", "/"), int(shown[2])))

    def _write_tags(self) -> None:
        from mlflow.entities import RunTag

        tags, run_id = self._tags, self.open()
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            self._tags = {}

    def _write_params(self) -> None:
        from mlflow.entities import Param

        run_id = self.open()
        fresh = [Param(name, value) for name, value in self._wanted_params.items() if name not in self._params]
        for first in range(0, len(fresh), MAX_PARAMS):
            chunk = fresh[first : first + MAX_PARAMS]
            self._client.log_batch(run_id, params=chunk)
            self._params |= {param.key for param in chunk}

    def _flush(self) -> None:
        run_id = self.open()
        while self._pending:
            chunk, last = self._pending[:MAX_METRICS], dict(self._last_step)
            fresh = []
            for metric in chunk:
                if metric.key not in last or metric.step > last[metric.key]:
                    fresh.append(metric)
                    last[metric.key] = metric.step
            # If the answer is lost the same points, with the same time, go out again: MLflow drops those that it has.
            if fresh:
                self._client.log_batch(run_id, metrics=fresh)
            self._last_step = last
            del self._pending[:MAX_METRICS]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested names joined by dots; values as text, cut at MLflow's limit."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = json.dumps(value) if isinstance(value, list | tuple | Mapping) else str(value)
            flat[f"{prefix}{name}"] = text[:MAX_VALUE]
    return flat


def _decode(png: bytes) -> Any:
    from PIL import Image

    image = Image.open(io.BytesIO(png))
    image.load()
    return image
