"""A record's entries in an MLflow run: what the run has is left out, so that any of it may come again."""

import io
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import MissingError
from pipelines.tracking.record import Entry

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
    for kind, *rest in entries:
        of_kind[kind].append(rest)
    _write_facts(client, run, of_kind["tag"], of_kind["param"], of_kind["dataset"])
    _write_points(client, run, of_kind["metric"])
    for name, value, step, at in {each[0]: each for each in of_kind["figure"]}.values():
        if run.data.metrics.get(name) != value:
            client.log_metric(run.info.run_id, name, value, at, step)
    _write_pictures(client, run, of_kind["picture"], where)
    for place, name in dict.fromkeys(map(tuple, of_kind["file"])):
        if (data := _found(where(place))) is not None:
            client.log_text(run.info.run_id, data.decode(), name)
    for status, at in of_kind["status"][-1:]:
        if status == "RUNNING" and at >= (run.info.end_time or 0):  # else it has ended elsewhere since
            client.update_run(run.info.run_id, status)
        elif status != "RUNNING":
            client.set_terminated(run.info.run_id, status, at)


def _write_facts(client: Any, run: Any, tags: list[Entry], params: list[Entry], datasets: list[Entry]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    run_id, last_tags, first_params = run.info.run_id, dict(tags), dict(reversed(params))
    if DESCRIPTION in last_tags:
        ids = {"{run_id}": run_id, "{experiment_id}": run.info.experiment_id}
        for placeholder, known in ids.items():
            last_tags[DESCRIPTION] = last_tags[DESCRIPTION].replace(placeholder, known)
    for tag_batch in _batches([RunTag(*each) for each in last_tags.items()], MAX_NAMED):
        client.log_batch(run_id, tags=tag_batch)
    fresh = [Param(name, value) for name, value in first_params.items() if name not in run.data.params]
    for param_batch in _batches(fresh, MAX_NAMED):
        client.log_batch(run_id, params=param_batch)
    for dataset, context in datasets:  # MLflow itself keeps one of each
        given = DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", context)])
        client.log_inputs(run_id, [given])


def _write_points(client: Any, run: Any, points: list[Entry]) -> None:
    from mlflow.entities import Metric

    unique: dict[tuple[str, int], Any] = {}
    for name, value, step, at in points:
        unique.setdefault((name, step), Metric(name, value, at, step))
    last = defaultdict(lambda: -math.inf, {metric.key: metric.step for metric in run.data.to_proto().metrics})
    # Only a point that does not come after its metric's last one can be there already.
    there = {
        name: {point.step for point in client.get_metric_history(run.info.run_id, name)}
        for name in {name for name, step in unique if step <= last[name]}
    }
    fresh = [metric for (name, step), metric in unique.items() if step not in there.get(name, ())]
    for batch in _batches(fresh, MAX_METRICS):
        client.log_batch(run.info.run_id, metrics=batch)


def _write_pictures(client: Any, run: Any, pictures: list[Entry], where: Callable[[str], str]) -> None:
    run_id = run.info.run_id
    listed = client.list_artifacts(run_id, "images") if any(step is not None for _, _, step in pictures) else []
    names = (_PICTURE.fullmatch(each.path) for each in listed)
    there = {(found[1].replace("~", "/"), int(found[2])) for found in names if found}
    for place, name, step in pictures:
        if (name, step) in there or (picture := _picture(where(place))) is None:
            continue
        if step is None:
            client.log_image(run_id, picture, f"{name}.png")
        else:
            client.log_image(run_id, picture, key=name, step=step)
        there.add((name, step))


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


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
