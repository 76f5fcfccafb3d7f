"""The dashboard in infra/grafana asks for metrics that there are, and Grafana's own types read all of it."""

import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from beartype.door import is_bearable

from pipelines.metrics import METRICS

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "infra/grafana/ddpm.json"


def queries(dashboard: dict[str, Any]) -> list[str]:
    """Of its panels and its variables."""
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return asked + [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]


def unknown(dashboard: dict[str, Any]) -> set[str]:
    """Metrics that it asks for and that nothing tells."""
    asked = {name for query in queries(dashboard) for name in re.findall(r"\bray_\w+", query)}
    return asked - {name for metric in METRICS for name in metric.series}


def unknown_labels(dashboard: dict[str, Any]) -> set[str]:
    """Labels by which it sorts what it is told, and that nothing has."""
    sorted_by = {
        name
        for query in queries(dashboard)
        for group in re.findall(r"by \(([^)]*)\)", query)
        for name in group.split(", ")
    }
    return sorted_by - {"le"} - {tag for metric in METRICS for tag in metric.tags}


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert len(queries(dashboard)) > 10
    assert not unknown(dashboard)
    assert not unknown_labels(dashboard)
    shown = {name for query in queries(dashboard) for name in re.findall(r"\bray_\w+", query)}
    assert not [metric.name for metric in METRICS if not shown & set(metric.series)], "nobody sees these"


def test_the_page_names_each_metric_and_no_other() -> None:
    named = set(re.findall(r"`(ray_ddpm_\w+)`", (ROOT / "docs/cluster.md").read_text()))
    assert named == {f"ray_{metric.name}" for metric in METRICS}


def test_a_wrong_name_in_the_dashboard_is_noticed() -> None:
    text = DASHBOARD.read_text()
    assert unknown(json.loads(text.replace("ddpm_train_loss", "ddpm_train_los"))) == {"ray_ddpm_train_los"}
    assert unknown_labels(json.loads(text.replace("(run, host)", "(run, node)"))) == {"node"}


def test_the_dashboard_is_laid_out() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    covered: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not covered & cells, f"{panel['title']} lies over another"
        assert max(x for x, _ in cells) < 24
        covered |= cells
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(refs)) == len(refs)


def differences(given: Any, read: Any, at: str = "") -> Iterator[str]:
    """Where what Grafana's own types read differs from what is given; fields that they add are none."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from differences(value, read.get(key, "no such field"), f"{at}.{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for number, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from differences(one, other, f"{at}[{number}]")
    elif given != read:
        yield f"{at}: {given!r} is read as {read!r}"


def ill_typed(read: Any, at: str = "") -> Iterator[str]:
    """Values that are not of the type that Grafana's classes name for them."""
    if isinstance(read, list):
        for number, each in enumerate(read):
            yield from ill_typed(each, f"{at}[{number}]")
    elif type(read).__module__.startswith("grafana_foundation_sdk"):
        for name, hint in get_type_hints(type(read)).items():
            value = getattr(read, name, None)
            if value is not None and not _fits(value, hint):
                yield f"{at}.{name}: {value!r} is no {hint}"
            yield from ill_typed(value, f"{at}.{name}")


def _fits(value: Any, hint: Any) -> bool:
    """Whole numbers are numbers; of a word or number from an enum those classes keep what the file has."""
    kinds = [each for each in get_args(hint) or (hint,) if isinstance(each, type) and issubclass(each, Enum)]
    plain = float(value) if type(value) is int else value
    return is_bearable(value, hint) or is_bearable(plain, hint) or any(value in set(kind) for kind in kinds)


def read_by_grafana(dashboard: dict[str, Any]) -> list[str]:
    """What Grafana's own types do not take as it stands."""
    plugins = pytest.importorskip(
        "grafana_foundation_sdk.cog.plugins", reason="of the extra `test`: make test installs it"
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    read = Dashboard.from_json(dashboard)
    return [*differences(dashboard, json.loads(json.dumps(read, cls=JSONEncoder))), *ill_typed(read)]


def test_grafanas_own_types_read_all_of_the_dashboard() -> None:
    assert not read_by_grafana(json.loads(DASHBOARD.read_text()))
    text = DASHBOARD.read_text()
    for right, wrong in (
        ('"legendFormat"', '"legend_format"'),
        ('"unit": "s"', '"unit": 1.5'),
        ('"list"', '"lists"'),
        ('"h": 8', '"h": "8"'),
    ):
        assert read_by_grafana(json.loads(text.replace(right, wrong))), wrong


def test_prometheus_reads_what_ray_writes() -> None:
    config = yaml.safe_load((ROOT / "infra/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
