"""What fits where: by single nodes, never by their sum."""

import re

import pytest

from pipelines.cluster import placement
from pipelines.cluster.demand import Demand
from pipelines.cluster.placement import (
    SHARE,
    Ask,
    Node,
    Waiting,
    check_placement,
    for_sampling,
    for_training,
    for_trials,
    for_workers_of_trials,
)
from pipelines.recipes.config import SampleStage, SweepStage, TrainStage

ONE = {"CPU": 1.0}
H100 = {"ray.io/accelerator-type": "H100"}


def node(cpus: float, gpus: float = 0, name: str = "10.0.0.2", labels: dict[str, str] | None = None) -> Node:
    return Node(name, {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}, labels or {})


@pytest.mark.parametrize(
    ("nodes", "fit"),
    [
        ([node(2), node(2)], 4),
        ([node(1), node(3)], 4),
        ([node(0), node(2)], 2),  # a head that computes nothing
        ([node(0.5), node(0.5)], 0),
        ([], 0),
    ],
)
def test_workers_of_one_thread_fit_one_a_cpu(nodes: list[Node], fit: int) -> None:
    ask = for_training(TrainStage())
    assert sum(each.holds(ask) for each in nodes) == fit


def test_threads_are_held_by_one_node_or_by_none() -> None:
    ask = for_training(TrainStage(threads=3))
    assert [node(2).holds(ask), node(3).holds(ask), node(8).holds(ask)] == [0, 1, 2]
    with pytest.raises(
        ValueError, match=r"is 1; there are 4 CPUs on 2 nodes, the largest is .*, and each asks for 3 CPUs"
    ):
        check_placement(ask, [node(2), node(2)])


def test_a_node_full_of_workers_keeps_a_share_for_others() -> None:
    """Two workers on two CPUs leave two shares: enough for the tasks of two other commands."""
    worker, cpus = for_training(TrainStage()), 2
    left = cpus - node(cpus).holds(worker) * worker.cpus
    assert left / placement.SHARE == 2


def test_gpus_need_cpus_beside_them() -> None:
    ask = for_training(TrainStage(num_workers=4, use_gpu=True))
    check_placement(ask, [node(1), node(4, 2), node(4, 2)])
    with pytest.raises(
        ValueError, match=r"train.num-workers is 4; there are 4 GPUs and 3 CPUs on 2 nodes.*: 3 fit\. Lower"
    ):
        check_placement(ask, [node(1, 2), node(2, 2)])


def test_where_there_is_no_gpu_at_all_the_flag_that_leaves_it_out_is_named() -> None:
    stage = SampleStage(use_gpu=True)
    for ask, flag in ((for_training(TrainStage(use_gpu=True)), "train"), (for_sampling(stage), "sample")):
        with pytest.raises(
            ValueError, match=rf"0 fit\. Leave GPUs out by --{flag}\.no-use-gpu, see what `doctor` says"
        ):
            check_placement(ask, [node(2)])


def test_a_gpu_is_whole() -> None:
    with pytest.raises(ValueError, match=r"node 10.0.0.2 declares 0.5 GPUs; train.num-workers takes whole ones"):
        check_placement(for_training(TrainStage(use_gpu=True)), [node(8, 0.5)])


def test_one_kind_of_node_of_several() -> None:
    ask = for_sampling(SampleStage(use_gpu=True, node_labels=("ray.io/accelerator-type=H100",)))
    check_placement(ask, [node(8, 8), node(8, 1, labels=H100)])
    with pytest.raises(ValueError, match=r"1 GPU of a node with ray.io/accelerator-type=H100: 0 fit"):
        check_placement(ask, [node(8, 8), node(8, 1, labels={"ray.io/accelerator-type": "T4"})])


@pytest.mark.parametrize("label", ["H100", "=H100", "type=", "type=in(a,b)", "a=b c"])
def test_a_label_is_a_key_and_a_value(label: str) -> None:
    with pytest.raises(ValueError, match=rf"node-labels has {re.escape(repr(label))}; expected KEY=VALUE"):
        SampleStage(node_labels=(label,))


def test_an_elastic_run_needs_its_fewest_and_a_sweep_all_that_run_together() -> None:
    stage = TrainStage(num_workers=4, min_workers=2)
    check_placement(for_training(stage), [node(2)])
    assert for_trials(SweepStage(max_concurrent=3), stage).count == 3


def test_a_trial_asks_for_what_its_worker_does_or_leaves_that_to_its_workers() -> None:
    stage = TrainStage(num_workers=4, threads=2)
    assert for_trials(SweepStage(), stage).cpus == for_training(stage).cpus
    several = SweepStage(num_workers=2, max_concurrent=3)
    assert for_trials(several, stage).cpus == SHARE
    workers = for_workers_of_trials(several, stage)
    assert (workers.count, workers.cpus) == (6, for_training(stage).cpus)
    with pytest.raises(ValueError, match=r"sweep.num-workers is 6; there are 8 CPUs"):
        check_placement(workers, [node(4), node(4)])


@pytest.mark.parametrize(
    ("nodes", "demand", "said"),
    [
        (
            [node(2)],
            Demand([ONE]),
            "waiting for 1 CPU of one node, all that fit it are busy, the largest is 10.0.0.2 with 2 CPUs",
        ),
        (
            [node(0)],
            Demand([ONE]),
            "no node is large enough, the largest is 10.0.0.2 with 0 CPUs: it starts when one joins",
        ),
        ([node(0)], Demand([ONE], True, frozenset({"big"})), "the autoscaler is starting a node of type big"),
        ([node(2)], Demand([{"CPU": placement.SHARE}]), "waiting for 1 CPU of one node"),
        ([node(2)], Demand([{"CPU": 9.0}]), "its processes are being started"),
    ],
)
def test_a_wait_is_told_soon_and_then_ever_more_seldom(
    nodes: list[Node], demand: Demand, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(placement, "read_demand", lambda: demand)
    clock, lines = [100.0], list[str]()
    waiting = Waiting(Ask(what="sample"), lines.append, now=lambda: clock[0])
    told = []
    for second in range(200):
        clock[0] = 100.0 + second
        waiting.tick()
        if len(lines) > len(told):
            told.append(second)
    assert told == [15, 30, 60, 120, 180]
    assert lines[1].startswith("sample: ")
    assert lines[1].endswith(f", {told[1]} s so far")
    assert said in lines[1]
    waiting.started()
    waiting.tick()
    assert len(lines) == 5


def test_what_the_autoscaler_can_never_hold_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "cluster_nodes", lambda: [node(1)])
    monkeypatch.setattr(placement, "read_demand", lambda: Demand(grows=True, impossible=[{"CPU": 64.0}]))
    clock = [0.0]
    waiting = Waiting(Ask(what="sample", cpus=64), print, now=lambda: clock[0])
    waiting.tick()
    clock[0] = 6.0
    with pytest.raises(ValueError, match=r"no node type of the cluster's autoscaler has 64 CPUs of one node"):
        waiting.tick()
