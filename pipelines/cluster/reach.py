"""Whether every node of the cluster reaches what a command reads and writes."""

import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ddpm_core import storage
from ddpm_core.data.sources import DIGITS
from ddpm_core.errors import InputError
from pipelines.cluster.demand import read_demand
from pipelines.progress import say

_TRY_S = 60.0
"""A node's first worker process starts in less."""
_TELL_S = 15.0


def check_reach(store: str, source: str | None = None) -> None:
    """Refuse a store or a source that not all nodes of the attached cluster reach; each node tries the store.

    A node that is lost meanwhile is none that cannot use it: nothing will be asked of that one.

    Args:
        store: where the command writes.
        source: the raw images, of a command that reads them.

    Raises:
        InputError: in one line, naming the node.
    """
    nodes = _nodes()
    check_places(store, source, len(nodes), grows=read_demand().grows)
    storage.check_store(store)
    if len(nodes) > 1:
        _try_everywhere(store, nodes)


def check_places(store: str, source: str | None, num_nodes: int, grows: bool) -> None:
    """Refuse a place on one machine where there are several.

    Raises:
        InputError: in one line.
    """
    if num_nodes < 2 and not grows:
        return
    has = f"{num_nodes} nodes" if num_nodes > 1 else "an autoscaler that will add others"
    for flag, uri in (("store", store), ("data.source", source)):
        if uri not in (None, DIGITS) and not storage.is_s3(uri):
            raise InputError(
                f"{flag} is {uri}, a place on one machine, and the cluster has {has}; "
                f"expected one that all of them reach: --{flag} s3://bucket/prefix"
            )


def _nodes() -> dict[str, str]:
    """The addresses of those that the cluster takes for alive, by their ids."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _try_everywhere(store: str, nodes: dict[str, str]) -> None:
    tries = {
        _try_store.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(store): node
        for node in nodes
    }
    began, silent = time.monotonic(), list(tries)
    while silent and time.monotonic() - began < _TRY_S:
        done, silent = ray.wait(list(tries), num_returns=len(tries), timeout=_TELL_S)
        if silent:
            say(f"each node tries the store: {len(done)} of {len(tries)} have, {time.monotonic() - began:.0f} s so far")
    still = _nodes()
    for reference in done:
        try:
            refused = ray.get(reference)
        except ray.exceptions.RayError as error:  # no worker starts there, or the node has gone
            refused = str(error).strip().splitlines()[-1] if tries[reference] in still else None
        if refused:
            raise InputError(f"node {nodes[tries[reference]]} cannot use the store: {refused}")
    for node in (tries[reference] for reference in silent):
        if node in still:
            raise InputError(
                f"node {nodes[node]} has not tried the store {store} within {_TRY_S:.0f} s; see that node's logs in /tmp/ray"
            )


def _try_store_here(store: str) -> str | None:
    """In a task: why this node cannot use the store."""
    try:
        storage.check_store(store)
    except ValueError as error:
        return str(error)
    return None


_try_store = ray.remote(num_cpus=0, max_retries=0)(_try_store_here)
