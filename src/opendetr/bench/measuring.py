"""Measures seconds in turns and memory in a fresh process, to compare implementations on a noisy machine."""

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
    """Return the seconds of every contestant in each of `repeats` rounds, in which all run in turn.

    A round that warms up comes first and is not measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, contestant in contestants.items():
            began = time.perf_counter()
            contestant()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def in_fresh_process(function: Callable[_P, _T], *positional: _P.args, **named: _P.kwargs) -> _T:
    """Return the result of a function that runs in a new process, in which glibc returns freed memory at once.

    By default glibc keeps freed blocks of up to 32 MiB, and a measured peak would include them.
    """
    with _environment("MALLOC_MMAP_THRESHOLD_", "262144"), ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *positional, **named).result()


def peak_bytes_above(work: Callable[[], Any]) -> int:
    """Return by how many bytes the memory of this process grows while `work` runs. Needs Linux."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _resident_bytes("VmRSS")
    kept = work()
    peak = _resident_bytes("VmHWM") - before
    del kept
    return peak


def _resident_bytes(field: str) -> int:
    """The resident memory (`field` "VmRSS") or its peak ("VmHWM")."""
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
