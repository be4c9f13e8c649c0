"""The result of a benchmark: a figure of OpenDETR and that of another implementation."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Unit = Literal["s", "MiB"]


@dataclass(frozen=True)
class Figure:
    """Seconds or memory; less is better.

    Attributes:
        what: the quantity measured.
        unit: of `ours` and `theirs`.
        ours: the figure of OpenDETR.
        peer: the name of the other implementation.
        theirs: the figure of the other implementation.
        factor: `theirs` divided by `ours`; for seconds, the median over rounds in which both run in turn.
        expected: the smallest factor that OpenDETR promises.
    """

    what: str
    unit: Unit
    ours: float
    peer: str
    theirs: float
    factor: float
    expected: float

    @classmethod
    def of_seconds(cls, what: str, seconds: Mapping[str, list[float]], expected: float) -> Figure:
        """From the seconds of OpenDETR, which come first, and of one peer, as `measuring.interleaved` returns them."""
        (_, ours), (peer, theirs) = seconds.items()
        factor = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        return cls(what, "s", statistics.median(ours), peer, statistics.median(theirs), factor, expected)

    @classmethod
    def of_bytes(cls, what: str, ours: int, peer: str, theirs: int, expected: float) -> Figure:
        """From two peaks of memory in bytes."""
        return cls(what, "MiB", ours / 2**20, peer, theirs / 2**20, theirs / ours, expected)


class Benchmark(Protocol):
    """A module of this package: its first docstring line says what it measures."""

    def measure(self, repeats: int) -> Iterator[Figure]:
        """Yield the figures, each as soon as it is measured."""
        ...
