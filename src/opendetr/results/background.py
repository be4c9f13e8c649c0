"""Threads that write while the model is at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self


class Background:
    """Work that threads do meanwhile, a bounded number of pieces at a time; the first error ends it.

    What is to be done with the results is done in the order of submission, in the submitting thread.
    """

    def __init__(self, workers: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(workers, "write")
        self._waiting = waiting
        self._pending: deque[tuple[Future[Any], Callable[[Any], None] | None]] = deque()

    def submit(self, work: Callable[[], Any], then: Callable[[Any], None] | None = None) -> None:
        """Have `work` done; waits while too much is undone already. `then` is called with its result."""
        while len(self._pending) >= self._waiting:
            self._finish_one()
        self._pending.append((self._pool.submit(work), then))

    def _finish_one(self) -> None:
        future, then = self._pending.popleft()
        result = future.result()
        if then is not None:
            then(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            while kind is None and self._pending:
                self._finish_one()
        finally:
            self._pool.shutdown(cancel_futures=True)
