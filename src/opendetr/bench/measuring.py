"""Seconds and bytes, measured so that they compare on a noisy machine: interleaved, or in a process of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def interleaved(contestants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contestant, in `repeats` rounds of all of them in turn; a round that warms up comes before."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, contestant in contestants.items():
            began = time.perf_counter()
            contestant()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def in_fresh_process(function: Callable[_P, _T], *positional: _P.args, **named: _P.kwargs) -> _T:
    """What a function returns in a new process, in which glibc hands freed memory back at once.

    By itself glibc keeps blocks of up to 32 MiB, and a peak would be that of its habits.
    """
    with _environment("MALLOC_MMAP_THRESHOLD_", "262144"), ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *positional, **named).result()


def peak_bytes_above(work: Callable[[], Any]) -> int:
    """By how many bytes this process grows over what it holds now while `work` is done; Linux alone."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _resident_bytes("VmRSS")
    kept = work()
    peak = _resident_bytes("VmHWM") - before
    del kept
    return peak


def _resident_bytes(field: str) -> int:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
