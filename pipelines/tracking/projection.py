"""A record's entries in an MLflow run: what the run has is left out, so that any of it may come again."""

import io
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import MissingError
from pipelines.tracking.record import Entry, counting

logger = logging.getLogger(__name__)

_AT_ONCE = {"tags": 100, "params": 100, "metrics": 1000}
"""So many MLflow takes in a call."""


def project(client: Any, run: Any, entries: list[Entry], where: Callable[[str], str]) -> None:
    """Bring a run to what its entries say, in any number of attempts.

    Args:
        client: an MlflowClient.
        run: the run as the server has it now.
        entries: as RunHandle records them.
        where: the URI of a file that an entry names.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    of_kind: defaultdict[str, list[Entry]] = defaultdict(list)
    for kind, *rest in counting(entries):
        of_kind[kind].append(rest)
    run_id = run.info.run_id
    for dataset, context in of_kind["dataset"]:  # MLflow itself keeps one of each
        client.log_inputs(run_id, [DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", context)])])
    figures = (figure for figure in of_kind["figure"] if run.data.metrics.get(figure[0]) != figure[1])
    fresh = [*_missing(client, run, of_kind["metric"]), *figures]
    items = {
        "tags": [RunTag(name, _with_ids(text, run)) for name, text in of_kind["tag"]],
        "params": [Param(name, value) for name, value in of_kind["param"] if name not in run.data.params],
        "metrics": [Metric(name, value, at, step) for name, value, step, at in fresh],
    }
    for kind, at_once in _AT_ONCE.items():
        for first in range(0, len(items[kind]), at_once):
            client.log_batch(run_id, **{kind: items[kind][first : first + at_once]})
    _show_pictures(client, run_id, of_kind["picture"], where)
    for place, name in of_kind["file"]:
        if (data := _found(where(place))) is not None:
            client.log_text(run_id, data.decode(), name)
    statuses = sorted(of_kind["status"], key=lambda entry: entry[1])  # of several jobs, one beside the other
    for status, at in statuses[-1:]:
        if status != "RUNNING":
            client.set_terminated(run_id, status, at)
        elif at >= (run.info.end_time or 0):  # else it has ended elsewhere since
            client.update_run(run_id, status)


def _with_ids(text: str, run: Any) -> str:
    return text.replace("{run_id}", run.info.run_id).replace("{experiment_id}", run.info.experiment_id)


def _missing(client: Any, run: Any, points: list[Entry]) -> list[Entry]:
    """The points that the run does not have."""
    last = {metric.key: metric.step for metric in run.data.to_proto().metrics}
    # Only a point that does not come after its metric's last one can be there already.
    unsure = {name for name, _, step, _ in points if name in last and step <= last[name]}
    there = {(name, point.step) for name in unsure for point in client.get_metric_history(run.info.run_id, name)}
    return [point for point in points if (point[0], point[2]) not in there]


def _show_pictures(client: Any, run_id: str, pictures: list[Entry], where: Callable[[str], str]) -> None:
    listed = [each.path for each in client.list_artifacts(run_id, "images")] if pictures else []
    # By MLflow's own naming of those with a step; the compressed copy is the last thing that log_image writes.
    whole = [path for path in listed if path.endswith("+compressed.webp")]
    for place, name, step in pictures:
        there = any(path.startswith(f"images/{name.replace('/', '~')}+step+{step}+") for path in whole)
        if not there and (picture := _picture(where(place))) is not None:
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
