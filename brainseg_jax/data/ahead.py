"""Runs a function in background threads, a few items ahead of the consumer."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = 2  # threads; decoding and hashing release the interpreter lock
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yields the results in the order of the items. At most two are computed ahead, to limit memory."""
    with ThreadPoolExecutor(READERS) as readers:
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                if len(pending) == READERS:
                    yield pending.popleft().result()
                pending.append(readers.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
