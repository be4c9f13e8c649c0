"""Threads that write files while the model runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from opendetr.distributed import usable_cpus

_MAX_BYTES = 2**28
_MAX_WORKERS, _PENDING_PER_WORKER = 4, 4


class _Job(NamedTuple):
    """Submitted work, the function called with its result, and the bytes that it holds."""

    future: Future[Any]
    then: Callable[[Any], None] | None
    size: int


class Background:
    """Runs work in threads, a bounded number of jobs at a time. The first error ends it.

    The functions that take the results run in the submitting thread, in the order of submission.

    Args:
        workers: number of threads; by default one for each usable CPU core, at most four.
        max_pending: number of unfinished jobs above which `submit` waits; by default four for each thread.
    """

    def __init__(self, workers: int | None = None, max_pending: int | None = None) -> None:
        workers = workers or min(_MAX_WORKERS, usable_cpus())
        self._pool = ThreadPoolExecutor(workers, "write")
        self._max_pending = max_pending or _PENDING_PER_WORKER * workers
        self._pending: deque[_Job] = deque()
        self._held = 0

    def submit(self, work: Callable[[], Any], then: Callable[[Any], None] | None = None, *, size: int = 0) -> None:
        """Run `work` in a thread and call `then` with its result. Waits while too many jobs are unfinished.

        Args:
            work: called in a thread.
            then: called with the return value of `work`.
            size: bytes that the work holds in memory. Unfinished jobs hold at most 256 MiB together, or one larger job.
        """
        while self._pending and (len(self._pending) >= self._max_pending or self._held + size > _MAX_BYTES):
            self._finish_one()
        self._pending.append(_Job(self._pool.submit(work), then, size))
        self._held += size

    def _finish_one(self) -> None:
        job = self._pending.popleft()
        result = job.future.result()
        self._held -= job.size
        if job.then is not None:
            job.then(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            while kind is None and self._pending:
                self._finish_one()
        finally:
            self._pool.shutdown(cancel_futures=True)
