"""What a command asks of single nodes: whether any can hold it, how much fits at once, and what is waited for.

A request is held by one node or by none; what all nodes have together says little. Every worker, trial and task of a stage asks by
this module; `training/trainer.py`, `cluster/tasks.py` and `stages/sweep.py` hand what is asked to Ray.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ddpm_core.errors import InputError
from pipelines.cluster.address import cluster_address
from pipelines.cluster.demand import read_demand
from pipelines.recipes.config import SampleStage, SweepStage, TrainStage

SHARE = 0.125
"""Of a CPU: so much each training worker leaves of those that it asks for, and so much asks one task at a time of each command.
So sampling, evaluation and scheduled jobs get on beside a training that holds the cluster."""
_FIRST_S, _AGAIN_S = 15.0, 60.0
"""When a wait is told first, and then again."""
_LOOK_S = 5.0
"""How often it is asked whether the wait is in vain."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one worker or task asks of one node, and how many of them there must be at once."""

    what: str
    """In words; the flag that says how many, where there is one."""
    count: int = 1
    cpus: float = 1.0
    gpus: int = 0
    """Whole ones."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the node, as ray.io/accelerator-type: H100."""

    @property
    def resources(self) -> dict[str, float]:
        """In Ray's words."""
        return {"CPU": self.cpus, **({"GPU": float(self.gpus)} if self.gpus else {})}

    def __str__(self) -> str:
        labels = "".join(f" {key}={value}" for key, value in self.labels.items())
        return _counted(self.resources) + (f" of a node with{labels}" if labels else " of one node")


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def holds(self, ask: Ask) -> int:
        """How many of these it holds at once, if it does nothing else."""
        if any(self.labels.get(key) != value for key, value in ask.labels.items()):
            return 0
        return min(int(self.resources.get(kind, 0) / wanted) for kind, wanted in ask.resources.items() if wanted)


def for_training(stage: TrainStage) -> Ask:
    """What each training worker asks for; as many as the run cannot do without."""
    return Ask(
        what="train.num-workers",
        count=stage.min_workers or stage.num_workers,
        cpus=stage.threads - SHARE,
        gpus=int(stage.use_gpu),
        labels=_labels(stage),
    )


def for_trials(sweep: SweepStage, stage: TrainStage) -> Ask:
    """What each trial of a sweep asks for, and how many are to run at the same time.

    As a training worker, which it is itself; if it has several, they ask for their own, and it for a share of a CPU.
    """
    if sweep.num_workers > 1:
        return Ask(what="sweep.max-concurrent", count=sweep.max_concurrent or 1, cpus=SHARE)
    return replace(for_workers_of_trials(sweep, stage), what="sweep.max-concurrent")


def for_workers_of_trials(sweep: SweepStage, stage: TrainStage) -> Ask:
    """What each worker of a sweep's trials asks for, and how many there are at the same time."""
    workers = for_training(replace(stage, num_workers=sweep.num_workers, min_workers=None))
    return replace(workers, what="sweep.num-workers", count=sweep.num_workers * (sweep.max_concurrent or 1))


def trials_at_once(sweep: SweepStage, stage: TrainStage) -> int:
    """As many as are asked for, else as many as the attached cluster holds if it does nothing else."""
    return sweep.max_concurrent or max(1, slots(for_workers_of_trials(sweep, stage)) // sweep.num_workers)


def trials_here(sweep: SweepStage, stage: TrainStage) -> int:
    """As many as are asked for, else as many as this machine holds."""
    return sweep.max_concurrent or max(1, num_here(for_workers_of_trials(sweep, stage)) // sweep.num_workers)


def for_sampling(stage: SampleStage) -> Ask:
    """What each task asks for that generates images, or measures their likelihood."""
    return Ask(
        what="sample",
        cpus=stage.threads,
        gpus=int(stage.use_gpu),
        labels=_labels(stage),
    )


def _labels(stage: TrainStage | SampleStage) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in stage.node_labels)


def for_a_cpu(what: str) -> Ask:
    """What a task asks for that computes on one CPU."""
    return Ask(what=what)


def this_machine() -> list[Node]:
    """This machine as the node that a Ray of its own will have."""
    import torch

    resources = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return [Node("this machine", resources)]


def num_here(ask: Ask) -> int:
    """How many of these this machine holds at once."""
    return sum(node.holds(ask) for node in this_machine())


def cluster_nodes() -> list[Node]:
    """The nodes of the attached cluster that are alive."""
    import ray

    return [
        Node(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]


def check_here(ask: Ask) -> None:
    """Refuse what this machine can never hold, where a command will start a Ray of its own on it.

    Raises:
        InputError: as `check_placement`.
    """
    try:
        check_placement(ask, this_machine())
    except ValueError:
        if cluster_address() is None:  # Ray is imported only now: no command that is right waits for that
            raise


def check_cluster(ask: Ask) -> None:
    """Refuse what the attached cluster can never hold; one that grows may yet.

    Raises:
        InputError: as `check_placement`.
    """
    try:
        check_placement(ask, cluster_nodes())
    except ValueError:
        if not read_demand().grows:
            raise


def check_placement(ask: Ask, nodes: Sequence[Node]) -> None:
    """Refuse what these nodes can never hold.

    Raises:
        InputError: in one line: what was asked, what there is, the largest node, the remedy.
    """
    if ask.gpus:
        for node in nodes:
            if node.resources.get("GPU", 0) % 1:
                raise InputError(
                    f"node {node.name} declares {node.resources['GPU']:g} GPUs; {ask.what} takes whole ones: "
                    "start that node with a whole --num-gpus"
                )
    fit = sum(node.holds(ask) for node in nodes)
    if fit < ask.count:
        none = ask.gpus and not any(node.resources.get("GPU", 0) for node in nodes)
        flag = "--sample.no-use-gpu" if ask.what == "sample" else "--train.no-use-gpu"
        remedy = (
            f"Leave GPUs out by {flag}, see what `doctor` says of this machine's" if none else "Lower what is asked for"
        )
        raise InputError(
            f"{f'{ask.what} is {ask.count}' if '.' in ask.what else f'{ask.what} cannot run'}; there {_all_of(ask, nodes)}, "
            f"{_largest(ask, nodes)}, and each asks for {ask}: {fit} fit. {remedy}, or attach to a larger cluster with "
            "RAY_ADDRESS"
        )


def slots(ask: Ask) -> int:
    """How many of these the attached cluster holds at once, if it does nothing else; 0 if it has to grow first."""
    return sum(node.holds(ask) for node in cluster_nodes())


def _all_of(ask: Ask, nodes: Sequence[Node]) -> str:
    kinds = ["GPU", "CPU"] if ask.gpus else ["CPU"]
    total = {kind: sum(node.resources.get(kind, 0) for node in nodes) for kind in kinds}
    verb = "is" if sum(total.values()) == 1 else "are"
    return f"{verb} {_counted(total)} on {len(nodes)} node{'s' if len(nodes) > 1 else ''}"


def _largest(ask: Ask, nodes: Sequence[Node]) -> str:
    if not nodes:
        return "no node at all"
    node = max(nodes, key=lambda node: (node.holds(ask), node.resources.get("GPU", 0) if ask.gpus else 0, _cpus(node)))
    labels = "".join(f" {key}={node.labels[key]}" for key in ask.labels if key in node.labels)
    has = {"CPU": _cpus(node), **({"GPU": node.resources.get("GPU", 0)} if ask.gpus else {})}
    return f"the largest is {node.name} with {_counted(has)}{labels}"


def _cpus(node: Node) -> float:
    return node.resources.get("CPU", 0)


def _counted(resources: Mapping[str, float]) -> str:
    """3 CPUs and 1 GPU; a share of a CPU is one that is shared."""
    whole = {kind: math.ceil(count) for kind, count in resources.items()}
    return " and ".join(f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in whole.items())


class Waiting:
    """Tells, after 15 s and then ever more seldom, to once a minute, that what was asked for has not started, and why."""

    def __init__(self, ask: Ask, say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._say, self._now = ask, say, now
        self.started()

    def started(self) -> None:
        """Something of it runs, or has just ended."""
        self._since, self._due = self._now(), self._now() + _FIRST_S
        self._look = self._now() + _LOOK_S

    def tick(self) -> None:
        """Nothing of it runs now.

        Raises:
            InputError: if the autoscaler says that no node of its can ever hold it.
        """
        now = self._now()
        if now < min(self._look, self._due):
            return
        self._look = now + _LOOK_S
        why = self._why()
        if now >= self._due:
            self._due = now + min(_AGAIN_S, now - self._since)  # after 15 s, 30, a minute, two, and then each minute
            self._say(f"{self._ask.what}: {why}, {now - self._since:.0f} s so far")

    def _why(self) -> str:
        demand, nodes = read_demand(), cluster_nodes()
        if self._is_in(demand.impossible):
            raise InputError(
                f"{self._ask.what}: no node type of the cluster's autoscaler has {self._ask}; {_largest(self._ask, nodes)}. "
                "Lower what is asked for, or add a node type"
            )
        if not self._is_in(demand.pending):
            return "its processes are being started"
        waits = f"waiting for {self._ask}"
        if demand.coming:
            return f"{waits}; the autoscaler is starting a node of type {', '.join(sorted(demand.coming))}"
        if any(node.holds(self._ask) for node in nodes):
            return f"{waits}, all that fit it are busy, {_largest(self._ask, nodes)}: it starts when others end"
        return f"{waits}, no node is large enough, {_largest(self._ask, nodes)}: it starts when one joins the cluster"

    def _is_in(self, requests: Sequence[Mapping[str, float]]) -> bool:
        asked = self._ask.resources
        return any(each in (asked, {**asked, "CPU": SHARE}) for each in requests)
