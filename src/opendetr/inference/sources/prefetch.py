"""Work that is done ahead of its use, in threads, in order, and never more of it than is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Future[Result]]:
    """The result of `function` for each item, as futures in the order of the items.

    Args:
        pool: runs the function.
        function: called with one item.
        items: read in the caller's thread, only as far as needed.
        ahead: results that are worked on while the caller is busy with one.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for future in pending:
            future.cancel()


def read_ahead(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """The items themselves, read by a thread up to `ahead` of them before they are asked for."""
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        pending: deque[Future[object]] = deque()
        try:
            while True:
                while len(pending) <= ahead:
                    pending.append(pool.submit(next, items, _END))
                item = pending.popleft().result()
                if item is _END:
                    return
                yield item  # type: ignore[misc]
        finally:
            for future in pending:
                future.cancel()
