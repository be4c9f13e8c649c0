"""Handlers of Ctrl-C and SIGTERM for work that saves its state before it stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequestedError(BaseException):
    """A stop signal ended work that may be interrupted; see `StopSignal.interruptible`.

    Like KeyboardInterrupt, it is not an `Exception`, because torch's DataLoader replaces an `Exception` by another one.
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
        self._is_interruptible = False
        self._process = os.getpid()
        self._earlier_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._earlier_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._is_interruptible and os.getpid() == self._process:  # forked loader processes inherit this handler
            raise StopRequestedError

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A context in which a stop signal raises StopRequestedError. Use it for work without side effects."""
        self._is_interruptible = True
        try:
            yield
        finally:
            self._is_interruptible = False
