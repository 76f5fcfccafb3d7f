"""Work shared over the cluster's nodes: items in, results out as they come, by plain tasks; nothing is reserved.

Every command's tasks stand in Ray's one queue with everyone else's, and end in seconds to minutes, so several commands get on side
by side. One task at a time of each command asks for a share of a CPU only (see placement.SHARE): it runs where all else is held by
training.
"""

import ctypes
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from ddpm_core import storage
from ddpm_core.errors import InputError
from pipelines.cluster.placement import SHARE, Ask, Waiting, slots
from pipelines.progress import say

T = TypeVar("T")
R = TypeVar("R")

_LOOK_S = 1.0
_AHEAD = 2
"""Tasks under way for each that can run, so that none waits for the driver."""
_TURN_S = 120.0
"""A task that has a GPU goes from item to item for so long: its process ends with it, and the next one takes seconds to load.
Then it makes room for whoever waits; what is left is asked for anew."""


@dataclass
class _Task:
    """One task under way."""

    items: Sequence[Any]
    shared: bool
    """It asks for a share of a CPU."""
    started: bool = False
    num_done: int = 0


@dataclass(frozen=True)
class _Refused:
    """A user's mistake that came to light in a task, in one line."""

    why: str


def share(
    work: Callable[..., R],
    items: Sequence[T],
    ask: Ask,
    *args: Any,
    at_once: int | None = None,
    on_look: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, R]]:
    """Call work(item, *args) for each item, somewhere; yields each with its result, in the order in which they are done.

    A task whose process or node is lost is done again, and so is one that could not reach the store: work must be such that
    doing it twice changes nothing.

    Args:
        work: a function of a module that workers can import.
        items: what to do.
        ask: what a task asks of a node.
        args: the same for all items; an ObjectRef comes as its value.
        at_once: at most so many tasks; none: as many as there is room for.
        on_look: called each second while some of it runs.

    Raises:
        InputError: a user's mistake that a task told, or what can never be placed.
        StorageError: if a task could not reach the store, again and again.
    """
    waiting, under_way, cancelled = deque(_groups(items, ask, at_once)), dict[Any, _Task](), list[Any]()
    waited = Waiting(ask, say)
    run = _run_on_gpu if ask.gpus else _run
    options: dict[str, Any] = {
        "name": ask.what,
        "num_gpus": ask.gpus,
        "label_selector": dict(ask.labels) or None,
        "num_returns": "streaming",
        "retry_exceptions": [storage.StorageError],
    }

    def submit(group: Sequence[T]) -> None:
        shared = not any(task.shared for task in under_way.values())
        reference = run.options(**options, num_cpus=SHARE if shared else ask.cpus).remote(work, group, *args)
        under_way[reference] = _Task(group, shared)

    try:
        while True:
            limit = at_once or max(1, slots(ask)) * _AHEAD
            while len(under_way) < limit and waiting:
                submit(waiting.popleft())
            if not under_way:
                return
            cancelled = [*filter(_goes_on, cancelled), *_share_what_waits(under_way, submit)]
            ready, _ = ray.wait(list(under_way), timeout=_LOOK_S)
            for reference in ready:
                yield from _results(reference, under_way, waiting)
            if any(task.started for task in under_way.values()) or ready:
                waited.started()
                on_look()
            else:
                waited.tick()
    finally:
        for reference in under_way:
            ray.cancel(reference)
        for reference in (*cancelled, *under_way):
            _goes_on(reference)


def gather(
    work: Callable[..., R], items: Sequence[T], ask: Ask, *args: Any, on_done: Callable[[int], None] | None = None
) -> list[R]:
    """As `share`, but all results, in the items' order: what is summed does not depend on who was first.

    Args:
        on_done: called with the number of items done.
    """
    results: dict[int, R] = {}
    for (number, _), result in share(_numbered, list(enumerate(items)), ask, work, *args):
        results[number] = result
        if on_done is not None:
            on_done(len(results))
    return [results[number] for number in range(len(items))]


def merged(
    work: Callable[..., R],
    items: Sequence[T],
    ask: Ask,
    merge: Callable[[R, R], R],
    *args: Any,
    on_done: Callable[[int], None] | None = None,
) -> R:
    """As `share`, but all results merged in the items' order, along a tree that does not depend on who was first.

    A result is merged as soon as that of its neighbour is there, so that few are held, however many items there are.

    Args:
        items: one or more.
        merge: of two results whose items are neighbours, the earlier one first.
        on_done: called with the number of items done.
    """
    sums = MergeTree(len(items), merge)
    results = share(_numbered, list(enumerate(items)), ask, work, *args)
    for num_done, ((number, _), result) in enumerate(results, 1):
        sums.add(number, result)
        if on_done is not None:
            on_done(num_done)
    return sums.total()


class MergeTree(Generic[R]):
    """Merges numbered results, which come in any order, two neighbours at a time: always the same pairs."""

    def __init__(self, size: int, merge: Callable[[R, R], R]) -> None:
        self._size, self._merge = size, merge
        self.waiting: dict[tuple[int, int], R] = {}
        """Merged so far, by level and place in it."""

    def add(self, place: int, value: R) -> None:
        """The result of one item."""
        level, size = 0, self._size
        while size > 1:
            sibling = place ^ 1
            if sibling < size:  # else it is the last of an odd number, and goes up as it is
                if (level, sibling) not in self.waiting:
                    break
                other = self.waiting.pop((level, sibling))
                value = self._merge(other, value) if sibling < place else self._merge(value, other)
            level, place, size = level + 1, place // 2, (size + 1) // 2
        self.waiting[level, place] = value

    def total(self) -> R:
        """All of them; every one must have come."""
        (total,) = self.waiting.values()
        return total


def _numbered(item: tuple[int, Any], work: Callable[..., R], *args: Any) -> R:
    return work(item[1], *args)


def _groups(items: Sequence[T], ask: Ask, at_once: int | None) -> Iterable[Sequence[T]]:
    """An item a task; with a GPU, as many as there are for each GPU."""
    places = min(max(1, slots(ask)), at_once or len(items) or 1)
    size = -(-len(items) // places) if ask.gpus else 1
    return (items[first : first + size] for first in range(0, len(items), size or 1))


def _share_what_waits(under_way: dict[Any, _Task], submit: Callable[[Sequence[Any]], None]) -> list[Any]:
    """If no task asks for a share only, the last of those that have not begun is asked for anew, so; the one that was cancelled."""
    queued = [reference for reference, task in under_way.items() if not task.started]
    if not queued or any(task.shared for task in under_way.values()):
        return []
    ray.cancel(queued[-1])  # if it begins this very moment, it is done twice, which changes nothing
    submit(under_way.pop(queued[-1]).items)
    return queued[-1:]


def _goes_on(reference: Any) -> bool:
    """Whether a cancelled task has still to end; what it gave is taken, for Ray prints an error that nobody asked for."""
    try:
        while ray.wait([reference], timeout=0)[0]:
            ray.get(next(reference))
    except (StopIteration, ray.exceptions.RayError):
        return False
    return True


def _results(reference: Any, under_way: dict[Any, _Task], waiting: deque[Sequence[Any]]) -> Iterator[tuple[Any, Any]]:
    """The next of a task: that it has begun, a result, or its end, after which what is left of it waits again."""
    task = under_way[reference]
    try:
        value = ray.get(next(reference))
    except StopIteration:
        del under_way[reference]
        if task.num_done < len(task.items):
            waiting.append(task.items[task.num_done :])
        return
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, storage.StorageError):  # worded for a user, there
            raise error.cause from None
        raise
    if isinstance(value, _Refused):
        raise InputError(value.why)
    if task.started:
        task.num_done += 1
        yield task.items[task.num_done - 1], value
    task.started = True


def _work(work: Callable[..., Any], items: Sequence[Any], *args: Any) -> Iterator[Any]:
    """In the task: first a word that it has begun, then a result an item, until its turn is over."""
    began = time.monotonic()
    yield None
    try:
        for item in items:
            try:
                result = work(item, *args)
            except InputError as error:
                result = _Refused(str(error))
            yield result
            if time.monotonic() - began > _TURN_S:
                return
    finally:
        give_memory_back()


def give_memory_back() -> None:
    """What the process keeps from step to step (see session.py) goes back to the system: idle, it would be lost to all others."""
    with suppress(AttributeError):  # of another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


_run = ray.remote(_work)
_run_on_gpu = ray.remote(max_calls=1)(_work)
"""A process keeps the GPU that it saw first, so it must not be given another task's."""
