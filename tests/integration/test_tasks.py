"""Work that is shared over a real Ray: all of it is done, whoever holds the CPUs, whatever dies."""

import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle

from ddpm_core import storage
from ddpm_core.evaluation.frechet import FeatureStats
from ddpm_core.evaluation.kid import kernel_sums
from ddpm_core.evaluation.manifold import manifold
from pipelines.cluster import tasks
from pipelines.cluster.failures import last_words
from pipelines.cluster.placement import SHARE, Ask
from pipelines.cluster.tasks import MergeTree, gather, merged, share
from pipelines.measuring.pairs import measure_pairs
from pipelines.recipes.config import TrainStage

pytestmark = pytest.mark.usefixtures("ray_session")

ASK = Ask(what="test")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests


def square(number: int) -> int:
    return number * number


def dies_once(number: int, folder: Path) -> int:
    """Its process is killed in the middle of the third item, once."""
    mark = folder / "killed"
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_dies(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails(number: int, folder: Path) -> int:
    """The store is away for the first two attempts at one item, and for ever at another."""
    attempts = list(folder.glob(f"{number}-*"))
    (folder / f"{number}-{len(attempts)}").touch()
    if number == 7 or (number == 3 and len(attempts) < 2):
        raise storage.StorageError("the store is away")
    return number


def refuses(number: int) -> int:
    return int("one") if number == 2 else check_workers(number)


def check_workers(number: int) -> int:
    TrainStage(num_workers=number)
    return number


def sleeps(number: int, seconds: float) -> float:
    time.sleep(seconds)
    return time.monotonic()


@contextmanager
def held_but_for_a_share() -> Iterator[None]:
    """All CPUs, as workers of a training hold them."""
    bundles = [{"CPU": 1 - SHARE}] * int(ray.cluster_resources()["CPU"])
    group = ray.util.placement_group(bundles)
    ray.get(group.ready(), timeout=60)
    yield
    ray.util.remove_placement_group(group)


def test_a_ray_of_ones_own_has_no_process_for_nobody() -> None:
    assert set(ray._private.worker._global_node.all_processes) <= {"gcs_server", "raylet", "reaper"}


def test_every_item_once_in_the_items_order() -> None:
    counts: list[int] = []
    assert gather(square, list(range(20)), ASK, on_done=counts.append) == [n * n for n in range(20)]
    assert counts == list(range(1, 21))
    assert gather(square, [], ASK) == []


def test_what_a_lost_process_had_is_done_again(tmp_path: Path) -> None:
    assert sorted(number for number, _ in share(dies_once, range(5), ASK, tmp_path)) == list(range(5))
    assert (tmp_path / "killed").exists()


def test_a_process_that_is_lost_each_time_is_told_in_a_line() -> None:
    with pytest.raises(ray.exceptions.RayError) as told:
        gather(always_dies, [0], ASK)
    words = last_words(told.value)
    assert words is not None
    assert "\n" not in words
    assert re.search(r"worker died unexpectedly while executing this task; the same command goes on", words)


def test_a_store_that_comes_back_is_waited_for_and_one_that_does_not_is_told(tmp_path: Path) -> None:
    assert gather(fails, [1, 3], ASK, tmp_path) == [1, 3]
    with pytest.raises(storage.StorageError, match=r"^the store is away$"):
        gather(fails, [7], ASK, tmp_path)


def test_a_user_s_mistake_is_a_line_and_ours_is_a_traceback() -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="invalid literal") as told:
        gather(refuses, [2], ASK)
    assert last_words(told.value) is None
    with pytest.raises(ValueError, match=r"^train.num-workers is 0; expected 1 or more$"):
        gather(refuses, [0], ASK)


def test_beside_a_training_that_holds_every_cpu_two_commands_end() -> None:
    """Each has four tasks, of which one at a time asks for a share; nothing else is free."""
    with held_but_for_a_share():
        one, other = share(sleeps, range(4), ASK, 0.1), share(sleeps, range(4), ASK, 0.1)
        first = next(one)
        assert len([first, *one]) == 4  # the other one has not begun
        assert len(list(other)) == 4


def test_what_a_turn_leaves_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a task with a GPU, which has all items of its GPU at once."""
    monkeypatch.setattr(tasks, "_groups", lambda items, ask, at_once: [items])
    monkeypatch.setattr(tasks, "_run", ray.remote(short_turns))
    assert gather(square, list(range(7)), ASK) == [n * n for n in range(7)]


def short_turns(work: Callable[..., int], items: list[int], *args: object) -> Iterator[int | None]:
    for number, value in enumerate(tasks._work(work, items, *args)):
        if number == 3:
            return
        yield value


def test_no_more_at_once_than_asked_for() -> None:
    ends = sorted(end for _, end in share(sleeps, range(3), ASK, 0.5, at_once=1))
    assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(ends))


def moments(part: int, folder: Path, mark: str) -> FeatureStats:
    """Of noise; the process of one part is killed, once."""
    if part == 5 and not (folder / mark).exists():
        (folder / mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    generator = torch.Generator().manual_seed(part)
    return FeatureStats.from_features(torch.randn(40 + part, 16, generator=generator))


def test_sums_have_the_same_bits_after_a_killed_worker(tmp_path: Path) -> None:
    (tmp_path / "unharmed").touch()
    sums = [
        merged(moments, range(11), ASK, FeatureStats.merge, tmp_path, mark) for mark in ("unharmed", "killed", "killed")
    ]
    assert (tmp_path / "killed").exists()
    assert {stats.m2.tobytes() for stats in sums} == {sums[0].m2.tobytes()}
    tree = MergeTree(11, FeatureStats.merge)
    for part in reversed(range(11)):  # one worker
        tree.add(part, moments(part, tmp_path, "killed"))
    assert tree.total().m2.tobytes() == sums[0].m2.tobytes()


def test_pairs_are_those_of_one_process() -> None:
    """Three blocks of rows a side, each with its edges."""
    generator = np.random.default_rng(0)
    real, generated = (generator.normal(size=(2500, 8)).astype(np.float32) for _ in range(2))
    generated[:, 0] *= 0.3
    found = measure_pairs(generated, real)
    x, y = torch.from_numpy(generated), torch.from_numpy(real)
    expected = kernel_sums(x, y, block=4096)
    for name in ("x_x", "x_y", "y_y", "y_x"):
        np.testing.assert_allclose(getattr(found.kernel, name), getattr(expected, name), rtol=1e-12)
    assert found.manifold == manifold(y, x, block=4096)
