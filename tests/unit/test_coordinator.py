"""Who is waited for, and who saves when all have to leave."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ddpm_core.errors import InputError
from pipelines.training.coordinator import SILENT_S, STUCK_S, Coordinator, Watch, post, take


def state(*doing: str, seconds: float, silent: tuple[int, ...] = (), step: int = 7) -> list[str]:
    """What is said of workers that came to a step and have been there for so long."""
    watch, now = Watch(), 0.0
    for rank, what in enumerate(doing):
        watch.beat(rank, f"node-{rank}", step - 1, what, 0.0)
    while now <= seconds:
        now += 5.0
        for rank, what in enumerate(doing):
            if rank not in silent or now <= 5.0:
                watch.beat(rank, f"node-{rank}", step, what, now)
    return watch.stalled(now)


def test_workers_that_move_are_not_spoken_of() -> None:
    watch = Watch()
    for step in range(100):
        for rank in range(3):
            watch.beat(rank, "node", step, "computing", 5.0 * step)
        assert watch.stalled(5.0 * step + 4.0) == []


def test_a_worker_that_says_nothing_is_named_and_those_that_wait_for_it_are_not() -> None:
    (line,) = state("computing", "computing", "computing", seconds=STUCK_S + 60, silent=(1,))
    assert line.startswith("worker 1 (node-1) has said nothing for")
    assert line.endswith("at step 7")
    assert state("computing", "computing", seconds=SILENT_S - 10, silent=(1,)) == []


def test_a_worker_that_reads_is_what_the_others_wait_for() -> None:
    (line,) = state("computing", "reading", "computing", seconds=STUCK_S + 60)
    assert line.startswith("worker 1 (node-1) has been reading for")


def test_where_all_compute_all_are_named() -> None:
    assert len(state("computing", "computing", seconds=STUCK_S + 60)) == 2
    assert state("computing", "computing", seconds=STUCK_S - 20) == []


def test_long_steps_are_waited_for_longer_and_each_stall_is_told_once() -> None:
    watch = Watch()
    watch.beat(0, "node", 1, "computing", 0.0)
    watch.beat(0, "node", 2, "computing", 100.0)  # a step takes 100 s here
    for now in range(105, 1100, 5):
        watch.beat(0, "node", 2, "computing", float(now))
        assert watch.stalled(float(now)) == []
    watch.beat(0, "node", 2, "computing", 1105.0)
    assert len(watch.stalled(1105.0)) == 1
    assert watch.stalled(1106.0) == []


def test_how_far_all_have_come_is_told_with_what_was_posted() -> None:
    async def told() -> list[object]:
        coordinator, events = Coordinator(), list[object]()
        for steps in ((0, 0), (7, 6), (9, 9)):
            for rank, step in enumerate(steps):
                await coordinator.beat(rank, "node", step, "computing")
            await coordinator.post("logged", steps)
            events += await coordinator.take()
        return events

    assert asyncio.run(told()) == [
        ("logged", (0, 0)), ("logged", (7, 6)), ("at", 6), ("logged", (9, 9)), ("at", 9)]  # fmt: skip


def test_what_is_posted_is_opened_by_who_takes_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[str, Any]] = [("at", 6)]  # by the coordinator itself
    actor = SimpleNamespace(
        post=SimpleNamespace(remote=lambda *event: kept.append(event)), take=SimpleNamespace(remote=lambda: kept)
    )
    monkeypatch.setattr("ray.get", lambda reference: reference)
    post(actor, "refused", InputError("too few"))
    assert isinstance(kept[1][1], bytes)
    (at, (kind, error)) = take(actor)
    assert (at, kind, str(error)) == (("at", 6), "refused", "too few")


async def _leaving(workers: int, dead: int = 0, saves: bool = True, timeout_s: float = 5.0) -> tuple[int | None, int]:
    """What leave() returns, and how many of the workers were told to save. The dead wait for the order first, and for ever."""
    coordinator, told = Coordinator(), []

    async def worker(step: int, alive: bool) -> None:
        order = await coordinator.ordered()
        if alive and await coordinator.claim(order):
            told.append(step)
            if saves:
                await coordinator.left(order, step)

    tasks = [asyncio.create_task(worker(40 + i - dead, alive=i >= dead)) for i in range(workers + dead)]
    await asyncio.sleep(0)
    step = await coordinator.leave(timeout_s)
    for task in tasks:
        task.cancel()
    return step, len(told)


@pytest.mark.parametrize("workers", [1, 3])
def test_one_of_the_workers_saves(workers: int) -> None:
    assert asyncio.run(_leaving(workers)) == (40, 1)
    assert asyncio.run(_leaving(workers, dead=2)) == (40, 1)


def test_leaving_ends_at_once_if_the_last_step_cannot_be_saved() -> None:
    async def leave() -> int | None:
        coordinator = Coordinator()

        async def worker() -> None:
            order = await coordinator.ordered()
            assert await coordinator.claim(order)
            await coordinator.left(order, None)

        task = asyncio.create_task(worker())
        await asyncio.sleep(0)
        found = await asyncio.wait_for(coordinator.leave(60.0), timeout=5.0)
        await task
        return found

    assert asyncio.run(leave()) is None


def test_leaving_waits_neither_for_the_dead_nor_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.training.coordinator._CLAIM_S", 0.05)
    assert asyncio.run(_leaving(0)) == (None, 0)
    assert asyncio.run(_leaving(1, saves=False, timeout_s=0.1)) == (None, 1)


def test_who_is_done_has_nothing_to_save() -> None:
    async def leave_after_the_end() -> int | None:
        coordinator = Coordinator()
        await coordinator.finish()
        return await coordinator.leave(60.0)

    assert asyncio.run(leave_after_the_end()) is None


def test_the_next_group_of_workers_is_told_anew() -> None:
    async def twice() -> list[int | None]:
        coordinator, found = Coordinator(), []
        for step in (5, 9):

            async def worker(step: int = step) -> None:
                order = await coordinator.ordered()
                if await coordinator.claim(order):
                    await coordinator.left(order, step)
                assert not await coordinator.claim(order - 1)  # one that comes too late

            task = asyncio.create_task(worker())
            await asyncio.sleep(0)
            found.append(await coordinator.leave(5.0))
            await task
        return found

    assert asyncio.run(twice()) == [5, 9]
