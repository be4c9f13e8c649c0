"""Prefetch: threads compute the next items, in order and up to a limit."""

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
    """Yield a future of `function(item)` for each item, in the order of the items.

    Args:
        pool: the threads that call the function.
        function: called with one item.
        items: iterated in the caller's thread, only as far as needed.
        ahead: number of results to prefetch while the caller processes one.
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
    """Yield the items. A thread prefetches up to `ahead` of them."""
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
