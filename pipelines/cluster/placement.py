"""What a command asks of the cluster, and whether it has that."""

import os

from ddpm_core import storage


def check_resources(what: str, count: int, use_gpu: bool) -> None:
    """Refuse more workers than this machine can hold; a cluster is asked once it is attached.

    Raises:
        ValueError: naming the flag, the count and what is there.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    kind, have = ("GPUs", _num_gpus()) if use_gpu else ("CPUs", os.cpu_count() or 1)
    _refuse_too_many(what, count, kind, have)


def check_cluster(store: str, what: str, count: int, use_gpu: bool) -> None:
    """Refuse what the attached cluster cannot do: too many workers, or a local store on several nodes.

    Raises:
        ValueError: in one line.
    """
    import ray

    kind = "GPU" if use_gpu else "CPU"
    _refuse_too_many(what, count, f"{kind}s", int(ray.cluster_resources().get(kind, 0)))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and not storage.is_s3(store):
        raise ValueError(
            f"the store is {store}, a folder of one machine, and the cluster has {len(nodes)} nodes; "
            "expected one that all reach: set --store s3://bucket/prefix"
        )


def _refuse_too_many(what: str, count: int, kind: str, have: int) -> None:
    if count > have:
        raise ValueError(
            f"{what} is {count}; there are {have} {kind}: lower it, or attach to a larger cluster with RAY_ADDRESS"
        )


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def cpus_per_worker(num_workers: int) -> int:
    """Whole CPUs for each of so many equal workers, at least one."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)) // num_workers)
