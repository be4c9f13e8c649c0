"""Handlers of Ctrl-C and SIGTERM for work that saves its state before it stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class AbandonedError(BaseException):
    """A stop signal interrupted work inside `StopSignal.abandoning`.

    Like KeyboardInterrupt, it is not an `Exception`, because torch's loader catches exceptions and raises others.
    """


class StopSignal:
    """A context in which the first Ctrl-C or SIGTERM only sets `requested`; a second one raises KeyboardInterrupt.

    The earlier handlers are restored at the end. Python allows signal handlers only in the main thread; in another
    thread the context has no effect.

    Attributes:
        requested: whether a signal requested a stop.
    """

    def __init__(self) -> None:
        self.requested = False
        self._abandonable = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._abandonable and os.getpid() == self._process:  # forked loader processes inherit this handler
            raise AbandonedError

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Within it, a signal raises AbandonedError. Use it for work that changes no state and can be repeated."""
        self._abandonable = True
        try:
            yield
        finally:
            self._abandonable = False
