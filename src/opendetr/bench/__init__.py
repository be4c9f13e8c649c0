"""Benchmarks compare OpenDETR with other implementations, in one run on the same machine.

`BENCHMARKS` names the modules; the function `measure(repeats)` of each yields its figures.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from opendetr.bench.figure import Benchmark, Figure

__all__ = ["BENCHMARKS", "Benchmark", "Figure", "load_benchmark"]

BENCHMARKS = ("panoptic", "panoptic-quality", "deformable-attention", "training-step", "mdetr", "track", "evaluation")


def load_benchmark(name: str) -> Benchmark:
    """The module of a benchmark."""
    return cast("Benchmark", import_module(f"opendetr.bench.{name.replace('-', '_')}"))
