"""What Ray makes of our metrics: each comes out at the node's port under the names and tags that the dashboard asks for."""

import re
import time
import urllib.request
from contextlib import ExitStack

import pytest
import ray

from pipelines.metrics import METRICS, Gauges, tell


def scraped() -> dict[str, set[str]]:
    """The tags of each of this project's series, at this node's port."""
    (node,) = ray.nodes()
    port, found = node["MetricsExportPort"], dict[str, set[str]]()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        for name, tags in re.findall(r"^(ray_ddpm_\w+)\{(.*)\} ", page.read().decode(), flags=re.M):
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', tags))
    return found


@pytest.mark.usefixtures("ray_session")
def test_each_metric_comes_out_and_a_gauge_goes_with_what_it_tells_of() -> None:
    wanted = {name: set(metric.tags) for metric in METRICS for name in metric.series}
    gauges = {name for metric in METRICS if metric.kind == "Gauge" for name in metric.series}
    with ExitStack() as stack:
        for metric in METRICS:
            tags = dict.fromkeys(metric.tags, "a")
            if metric.kind == "Gauge":
                stack.enter_context(Gauges()).set(metric, 1.0, **tags)
            else:
                assert tell(metric, 1.0, **tags)
        found, until = scraped(), time.monotonic() + 60
        while not wanted.keys() <= found.keys() and time.monotonic() < until:
            time.sleep(1)
            found = scraped()
        assert wanted.keys() <= found.keys()
        assert not {name for name, tags in wanted.items() if not tags <= found[name]}
        time.sleep(25)  # longer than Ray keeps a gauge that is not set again
        assert gauges <= scraped().keys()
    until = time.monotonic() + 60
    while gauges & scraped().keys() and time.monotonic() < until:
        time.sleep(1)
    assert not gauges & scraped().keys()
