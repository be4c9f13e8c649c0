"""Benchmarks: our figures beside those of others, measured in one run on the same machine.

Each module named here is one; `measure(repeats)` yields its figures.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from opendetr.bench.figure import Benchmark, Figure

__all__ = ["BENCHMARKS", "Benchmark", "Figure", "load_benchmark"]

BENCHMARKS = ("panoptic", "panoptic-quality", "deformable-attention", "training-step")


def load_benchmark(name: str) -> Benchmark:
    """The module of a benchmark."""
    return cast("Benchmark", import_module(f"opendetr.bench.{name.replace('-', '_')}"))
