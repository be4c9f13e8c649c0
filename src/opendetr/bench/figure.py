"""What a benchmark finds: a figure of ours beside that of another."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Unit = Literal["s", "MiB"]


@dataclass(frozen=True)
class Figure:
    """Seconds or memory, less is better.

    Attributes:
        what: what was measured.
        unit: of `ours` and `theirs`.
        ours: our figure.
        peer: whose the other one is.
        theirs: the other figure.
        factor: how many times as much theirs is; of seconds the median over rounds in which both took turns.
        expected: the least factor that we promise.
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
        """From what `measuring.interleaved` gives of us, who come first, and of one other."""
        (_, ours), (peer, theirs) = seconds.items()
        factor = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        return cls(what, "s", statistics.median(ours), peer, statistics.median(theirs), factor, expected)

    @classmethod
    def of_bytes(cls, what: str, ours: int, peer: str, theirs: int, expected: float) -> Figure:
        """From two peaks."""
        return cls(what, "MiB", ours / 2**20, peer, theirs / 2**20, theirs / ours, expected)


class Benchmark(Protocol):
    """A module of this package: its first docstring line says what it measures."""

    def measure(self, repeats: int) -> Iterator[Figure]:
        """The figures, one after another as they are there."""
        ...
