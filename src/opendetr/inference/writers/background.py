"""Threads that write while the model is at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

_MOST_BYTES = 2**28


class _Piece(NamedTuple):
    """Work that is under way, what comes after it, and the bytes that it holds."""

    future: Future[Any]
    then: Callable[[Any], None] | None
    size: int


class Background:
    """Work that threads do meanwhile, a bounded number of pieces at a time; the first error ends it.

    What is to be done with the results is done in the order of submission, in the submitting thread.
    """

    def __init__(self, workers: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(workers, "write")
        self._waiting = waiting
        self._pending: deque[_Piece] = deque()
        self._held = 0

    def submit(self, work: Callable[[], Any], then: Callable[[Any], None] | None = None, *, size: int = 0) -> None:
        """Have `work` done; waits while too much is undone already. `then` is called with its result.

        Args:
            work: called by a thread.
            then: called with what it returns.
            size: bytes that the work holds; all that is undone may hold 256 MiB, unless a single piece holds more.
        """
        while self._pending and (len(self._pending) >= self._waiting or self._held + size > _MOST_BYTES):
            self._finish_one()
        self._pending.append(_Piece(self._pool.submit(work), then, size))
        self._held += size

    def _finish_one(self) -> None:
        piece = self._pending.popleft()
        result = piece.future.result()
        self._held -= piece.size
        if piece.then is not None:
            piece.then(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            while kind is None and self._pending:
                self._finish_one()
        finally:
            self._pool.shutdown(cancel_futures=True)
