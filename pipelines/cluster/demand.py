"""Read from Ray: what waits for a place on the cluster, and what its autoscaler says, of either of Ray's two versions."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Demand:
    """What Ray says of all that asked for a place on the cluster, and its autoscaler's last word."""

    pending: list[dict[str, float]] = field(default_factory=list)
    """Requests that have no place."""
    grows: bool = False
    """Whether there is an autoscaler."""
    coming: frozenset[str] = frozenset()
    """The types of the nodes that it is starting."""
    impossible: list[dict[str, float]] = field(default_factory=list)
    """Requests that no node type of its can hold; its first version does not tell."""


def read_demand() -> Demand:
    """Of the attached cluster."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    # ray.autoscaler.v2.sdk reads the same reply, and leaves out what is impossible.
    address = ray.get_runtime_context().gcs_address
    status = GetClusterStatusReply.FromString(GcsClient(address).get_cluster_status(timeout_s=10))
    scaling, state = status.autoscaling_state, status.cluster_resource_state
    one = [each.request for each in state.pending_resource_requests]
    pending = _bundles(one, state.pending_gang_resource_requests)
    if not is_autoscaler_v2():
        return Demand(pending, *_first_version())
    coming = {each.ray_node_type_name for each in (*scaling.pending_instance_requests, *scaling.pending_instances)}
    impossible = _bundles(scaling.infeasible_resource_requests, scaling.infeasible_gang_resource_requests)
    kinds = {each.ray_node_type_name for each in state.node_states}
    return Demand(pending, _configured(kinds), frozenset(coming), impossible)


def _configured(kinds: Iterable[str]) -> bool:
    """Whether nodes have types: where nobody configured an autoscaler, Ray calls each by a type of its own."""
    return not all(kind.startswith("node_") for kind in kinds)


def _bundles(requests: Any, gangs: Any) -> list[dict[str, float]]:
    return [dict(each.resources_bundle) for each in (*requests, *(each for gang in gangs for each in gang.requests))]


def _first_version() -> tuple[bool, frozenset[str]]:
    """Whether there is one, and what it starts."""
    from ray.experimental.internal_kv import _internal_kv_get

    told: Any = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report")
    if not told:
        return False, frozenset()
    return _configured(told["active_nodes"]), frozenset(
        {kind for _, kind, _ in told["pending_nodes"]} | set(told["pending_launches"])
    )
