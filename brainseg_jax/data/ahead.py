"""Calls a function in threads a little ahead of who takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = 2  # threads; decoding and hashing release the interpreter lock
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """The results in the order of the items. No more than two are computed ahead, so memory holds few of them."""
    with ThreadPoolExecutor(READERS) as readers:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                if len(waiting) == READERS:
                    yield waiting.popleft().result()
                waiting.append(readers.submit(function, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
