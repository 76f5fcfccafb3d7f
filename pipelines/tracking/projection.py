"""A record's entries in an MLflow run: what the run has is left out, so that any of it may come again."""

import io
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import MissingError
from pipelines.tracking.record import Entry, counting

logger = logging.getLogger(__name__)

DESCRIPTION = "mlflow.note.content"

# MLflow's limits, of a call.
MAX_METRICS, MAX_NAMED = 1000, 100
# MLflow's own naming of pictures; the compressed copy is the last thing that log_image writes.
_PICTURE = re.compile(r"images/(.+)\+step\+(\d+)\+.*\+compressed\.webp")


def project(client: Any, run: Any, entries: list[Entry], where: Callable[[str], str]) -> None:
    """Bring a run to what its entries say, in any number of attempts.

    Args:
        client: an MlflowClient.
        run: the run as the server has it now.
        entries: as RunHandle records them.
        where: the URI of a file that an entry names.
    """
    of_kind: defaultdict[str, list[Entry]] = defaultdict(list)
    for kind, *rest in counting(entries):
        of_kind[kind].append(rest)
    _write_facts(client, run, of_kind["tag"], of_kind["param"], of_kind["dataset"])
    _write_points(client, run, of_kind["metric"])
    for name, value, step, at in of_kind["figure"]:
        if run.data.metrics.get(name) != value:
            client.log_metric(run.info.run_id, name, value, at, step)
    _write_pictures(client, run, of_kind["picture"], where)
    for place, name in of_kind["file"]:
        if (data := _found(where(place))) is not None:
            client.log_text(run.info.run_id, data.decode(), name)
    statuses = sorted(of_kind["status"], key=lambda entry: entry[1])  # of several jobs, one beside the other
    for status, at in statuses[-1:]:
        if status == "RUNNING" and at >= (run.info.end_time or 0):  # else it has ended elsewhere since
            client.update_run(run.info.run_id, status)
        elif status != "RUNNING":
            client.set_terminated(run.info.run_id, status, at)


def _write_facts(client: Any, run: Any, tags: list[Entry], params: list[Entry], datasets: list[Entry]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    run_id, values = run.info.run_id, dict(tags)
    if DESCRIPTION in values:
        described = values[DESCRIPTION].replace("{run_id}", run_id)
        values[DESCRIPTION] = described.replace("{experiment_id}", run.info.experiment_id)
    _log_all(client, run_id, MAX_NAMED, tags=[RunTag(*each) for each in values.items()])
    fresh = [Param(name, value) for name, value in params if name not in run.data.params]
    _log_all(client, run_id, MAX_NAMED, params=fresh)
    for dataset, context in datasets:  # MLflow itself keeps one of each
        given = DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", context)])
        client.log_inputs(run_id, [given])


def _write_points(client: Any, run: Any, points: list[Entry]) -> None:
    from mlflow.entities import Metric

    run_id, last = run.info.run_id, {metric.key: metric.step for metric in run.data.to_proto().metrics}
    # Only a point that does not come after its metric's last one can be there already.
    unsure = {name for name, _, step, _ in points if step <= last.get(name, -math.inf)}
    there = {(name, point.step) for name in unsure for point in client.get_metric_history(run_id, name)}
    fresh = [Metric(name, value, at, step) for name, value, step, at in points if (name, step) not in there]
    _log_all(client, run_id, MAX_METRICS, metrics=fresh)


def _log_all(client: Any, run_id: str, at_once: int, **items: list[Any]) -> None:
    """Tags, params or metrics, no more in a call than MLflow takes."""
    for kind, each in items.items():
        for first in range(0, len(each), at_once):
            client.log_batch(run_id, **{kind: each[first : first + at_once]})


def _write_pictures(client: Any, run: Any, pictures: list[Entry], where: Callable[[str], str]) -> None:
    run_id = run.info.run_id
    listed = client.list_artifacts(run_id, "images") if any(step is not None for _, _, step in pictures) else []
    names = (_PICTURE.fullmatch(each.path) for each in listed)
    there = {(found[1].replace("~", "/"), int(found[2])) for found in names if found}
    for place, name, step in pictures:
        if (name, step) not in there and (picture := _picture(where(place))) is not None:
            shown_as = {"artifact_file": f"{name}.png"} if step is None else {"key": name, "step": step}
            client.log_image(run_id, picture, **shown_as)


def _found(uri: str) -> bytes | None:
    """A file; None if it was deleted since, of which a line is said."""
    try:
        return storage.read_bytes(uri)
    except MissingError:
        logger.warning("%s is gone; MLflow will not show it", uri)
        return None


def _picture(uri: str) -> Any:
    from PIL import Image

    if (png := _found(uri)) is None:
        return None
    try:
        image = Image.open(io.BytesIO(png))
        image.load()
    except OSError as error:
        logger.warning("%s is no picture (%s); MLflow will not show it", uri, error)
        return None
    return image
