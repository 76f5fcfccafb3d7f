"""A journal's entries to an MLflow run, in batches: what the run has is left out, so that any of it may come again."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.tracking.journal import Entry

KnownSteps = defaultdict[str, set[int]]
"""Steps at which a metric is known to have a point, by the metric's name."""

# MLflow's limits, of a call.
MAX_METRICS, MAX_NAMED = 1000, 100


def write(client: Any, run: Any, entries: list[Entry], steps: KnownSteps) -> None:
    """Write entries, in any number of attempts.

    Args:
        client: an MlflowClient.
        run: the run as the server has it now.
        entries: what a RunHandle journals.
        steps: of the run's points; what must be asked of the server is remembered there.
    """
    of_kind: defaultdict[str, list[Entry]] = defaultdict(list)
    for kind, *rest in entries:
        of_kind[kind].append(rest)
    _write_facts(client, run, of_kind["tag"], of_kind["param"], of_kind["dataset"])
    _write_points(client, run, of_kind["metric"], steps)
    for status, at in of_kind["status"][-1:]:
        if status == "RUNNING" and at >= (run.info.end_time or 0):  # else it has ended elsewhere since
            client.update_run(run.info.run_id, status)
        elif status != "RUNNING":
            client.set_terminated(run.info.run_id, status, at)


def _write_facts(client: Any, run: Any, tags: list[Entry], params: list[Entry], datasets: list[Entry]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    run_id, last_tags, first_params = run.info.run_id, dict(tags), dict(reversed(params))
    for tag_batch in _batches([RunTag(*each) for each in last_tags.items()], MAX_NAMED):
        client.log_batch(run_id, tags=tag_batch)
    fresh = [Param(name, value) for name, value in first_params.items() if name not in run.data.params]
    for param_batch in _batches(fresh, MAX_NAMED):
        client.log_batch(run_id, params=param_batch)
    for dataset, context in datasets:  # MLflow itself keeps one of each
        given = DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", context)])
        client.log_inputs(run_id, [given])


def _write_points(client: Any, run: Any, points: list[Entry], steps: KnownSteps) -> None:
    from mlflow.entities import Metric

    unique: dict[tuple[str, int], Any] = {}
    for name, value, step, at, model in points:
        unique.setdefault((name, step), Metric(name, value, at, step, model_id=model))
    last = defaultdict(lambda: -math.inf, {metric.key: metric.step for metric in run.data.to_proto().metrics})
    # Only a point that does not come after its metric's last one can be there already.
    for name in {name for name, step in unique if step <= last[name] and step not in steps[name]}:
        steps[name] = {point.step for point in client.get_metric_history(run.info.run_id, name)}
    fresh = [metric for (name, step), metric in unique.items() if step > last[name] or step not in steps[name]]
    for batch in _batches(fresh, MAX_METRICS):
        client.log_batch(run.info.run_id, metrics=batch)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
