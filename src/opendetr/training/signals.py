"""How Ctrl-C and SIGTERM are heard by work that wants to save first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class AbandonedError(BaseException):
    """Leaves work that a stop was asked for.

    It is no `Exception`, as KeyboardInterrupt is none: torch's loader, which catches those, would raise another one.
    """


class StopSignal:
    """While it is open, the first Ctrl-C or SIGTERM only asks for a stop; a second one stops at once.

    The handlers of before are back when it closes. Outside the main thread, where Python allows no handlers, it listens
    to nothing.

    Attributes:
        requested: whether a stop was asked for.
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
        if self._abandonable and os.getpid() == self._process:  # a forked loader process has this handler, too
            raise AbandonedError

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Within it the request raises AbandonedError: for work that changes nothing and can be done again."""
        self._abandonable = True
        try:
            yield
        finally:
            self._abandonable = False
