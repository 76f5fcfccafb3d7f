"""The coordinator of a training run: an actor to which workers post what happens, and which tells them to save and leave."""

import asyncio
import pickle
import time
from dataclasses import dataclass
from typing import Any

import ray

SILENT_S = 30.0
"""Without a sign of life for so long, a worker is named."""
STUCK_S = 120.0
"""At the same step for so long, and for many times longer than any step took so far, the workers are named."""
_PATIENCE = 10
_CLAIM_S = 2.0
"""A worker that is alive takes the order to save in less."""


@dataclass
class _Sign:
    """The last sign of life of a worker."""

    where: str
    step: int
    doing: str
    heard: float
    since: float


class Watch:
    """Tells which worker keeps the others waiting. Times are in seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._signs: dict[int, _Sign] = {}
        self._told: set[tuple[int, int]] = set()
        self._longest_s = 0.0

    def beat(self, rank: int, where: str, step: int, doing: str, now: float) -> None:
        """A sign of life: the worker, its node and process, its step, and `reading` or `computing`."""
        last = self._signs.get(rank)
        if last is None or last.step != step:
            if last is not None and step > last.step:
                self._longest_s = max(self._longest_s, now - last.since)
            self._signs[rank] = _Sign(where, step, doing, now, now)
        else:
            last.doing, last.heard = doing, now

    def stalled(self, now: float) -> list[str]:
        """A line for each worker that keeps the others waiting, once for each step."""
        silent = {rank: s for rank, s in self._signs.items() if now - s.heard > SILENT_S}
        patience = max(STUCK_S, _PATIENCE * self._longest_s)
        stuck = {rank: s for rank, s in self._signs.items() if rank not in silent and now - s.since > patience}
        # Who computes waits for the others' gradients; who reads is waited for.
        reading = {rank: s for rank, s in stuck.items() if s.doing == "reading"}
        lines = []
        for rank, sign in sorted({**silent, **(reading or stuck if not silent else {})}.items()):
            if (rank, sign.step) not in self._told:
                self._told.add((rank, sign.step))
                what = (
                    f"has said nothing for {now - sign.heard:.0f} s"
                    if rank in silent
                    else f"has been {sign.doing} for {now - sign.since:.0f} s"
                )
                lines.append(f"worker {rank} ({sign.where}) {what}, at step {sign.step}")
        return lines

    def step(self) -> int:
        """The step at which the last of them is, as far as it has said; 0 before the first."""
        return min((sign.step for sign in self._signs.values()), default=0)

    def anyone(self) -> bool:
        """Whether a worker of this group has given a sign."""
        return bool(self._signs)

    def clear(self) -> None:
        """Forget the workers: others take their place."""
        self._signs.clear()


class Coordinator:
    """What is posted here, in order, and the one order that workers are given: save the last step, and leave."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []
        self._watch = Watch()
        self._leave, self._left = asyncio.Event(), asyncio.Event()
        self._claimed = self._finished = False
        self._order = 0
        self._step: int | None = None

    async def post(self, kind: str, what: Any) -> None:
        """Tell the driver."""
        self._events.append((kind, what))

    async def take(self) -> list[tuple[str, Any]]:
        """All that was posted since the last time, the step that all workers have come to, and who is waited for."""
        stalled = [("warned", line) for line in self._watch.stalled(time.monotonic())]
        at = [("at", step) for step in [self._watch.step()] if step]
        events, self._events = self._events + at + stalled, []
        return events

    async def beat(self, rank: int, where: str, step: int, doing: str) -> None:
        """See Watch.beat."""
        self._watch.beat(rank, where, step, doing, time.monotonic())

    async def works(self) -> bool:
        """Whether there is a group that has begun."""
        return self._watch.anyone()

    async def begin(self) -> None:
        """Another group of workers is brought together: those before are forgotten."""
        self._watch.clear()

    async def finish(self) -> None:
        """The first worker is done: there is nothing left to save."""
        self._finished = True

    async def ordered(self) -> int:
        """Wait for the order to leave; returns its number."""
        await self._leave.wait()
        return self._order

    async def claim(self, order: int) -> bool:
        """Of the workers that are alive to ask, the first is told to save: all hold the same state."""
        first = order == self._order and not self._claimed
        self._claimed |= first
        return first

    async def left(self, order: int, step: int | None) -> None:
        """The worker that was told to save has done so, or cannot."""
        if order == self._order:
            self._step = step
            self._left.set()

    async def leave(self, timeout_s: float) -> int | None:
        """Order the workers to leave, and wait until the last completed step stands as a checkpoint.

        Returns:
            the step; None if there is nothing to save, no worker is alive, or the one that is could not save in time.
        """
        if self._finished:
            return None
        self._leave.set()
        try:
            deadline = time.monotonic() + timeout_s
            while not self._left.is_set():
                now = time.monotonic()
                if now > deadline or (not self._claimed and now > deadline - timeout_s + _CLAIM_S):
                    return None
                await asyncio.sleep(0.02)
            return self._step
        finally:
            self._leave, self._left, self._claimed = asyncio.Event(), asyncio.Event(), False
            self._order += 1
            self._watch.clear()


class NoMeeting:
    """What stands for the actor in which workers of Ray Train's would meet."""

    def __init__(self, **_: Any) -> None:
        """As that one's settings."""


def post(coordinator: Any, kind: str, what: Any) -> Any:
    """Post it to the coordinator's process, which keeps it as bytes: to know it, it would import torch first, while all wait."""
    return coordinator.post.remote(kind, pickle.dumps(what))


def take(coordinator: Any) -> list[tuple[str, Any]]:
    """What was posted there, and what the coordinator itself has to say."""
    events = ray.get(coordinator.take.remote())
    return [(kind, pickle.loads(what) if isinstance(what, bytes) else what) for kind, what in events]
