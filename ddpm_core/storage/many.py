"""Many files read in order, several requests under way at once where they come from S3."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def in_order(reads: Iterable[tuple[Callable[[], bytes], bool]], at_once: int) -> Iterator[bytes | OSError]:
    """What the calls return, or the error that each ended with, in their order.

    Args:
        reads: calls, and whether each waits for a server: those are made in threads and ahead of their turn, the others when their
            turn has come. Taken from the iterator as they are needed.
        at_once: how many calls are under way or hold what they returned.
    """
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="read")
    window: deque[Callable[[], bytes]] = deque()
    try:
        for read, waits in reads:
            window.append(threads.submit(read).result if waits else read)
            if len(window) >= at_once:
                yield _outcome(window.popleft())
        while window:
            yield _outcome(window.popleft())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _outcome(call: Callable[[], bytes]) -> bytes | OSError:
    try:
        return call()
    except OSError as error:
        return error
