"""Placed shapes and their pixels: scan conversion in integer arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Geometry is in fixed point: a pixel is SAMPLES x SAMPLES samples, a sample is SAMPLE_UNITS x SAMPLE_UNITS units.
SAMPLES = 3
_SAMPLE_UNITS = 64
PIXEL_UNITS = SAMPLES * _SAMPLE_UNITS
_MAJORITY = SAMPLES * SAMPLES // 2 + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """A placed object: loops of (N, 2) int64 (x, y) in fixed-point units, ``angle`` in radians, ``side`` in pixels."""

    category_id: int
    loops: list[np.ndarray]
    angle: float
    side: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A rasterised object: ``coverage`` (h, w) uint8 in samples, in the window at row ``top`` and column ``left``."""

    shape: Shape
    coverage: np.ndarray
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Slices that cut the layer's window out of an (H, W) array."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def mask(self) -> np.ndarray:
        """(h, w) bool: the object owns a pixel if it covers the majority of its samples."""
        return self.coverage >= _MAJORITY


def rasterise(shape: Shape, size: int) -> Layer:
    """Scan-convert a shape by the even-odd rule in integer arithmetic, within the part of its box inside the image."""
    points = np.concatenate(shape.loops)
    left, top = np.clip(points.min(axis=0) // PIXEL_UNITS, 0, size - 1)
    right, bottom = np.clip(-(-points.max(axis=0) // PIXEL_UNITS), (left + 1, top + 1), size)
    rows, columns = _crossings(shape.loops, top * SAMPLES, bottom * SAMPLES)
    height, width = (bottom - top) * SAMPLES, (right - left) * SAMPLES
    flips = np.zeros((height, width + 1), np.uint8)
    places = (rows - top * SAMPLES) * (width + 1) + np.clip(columns - left * SAMPLES, 0, width)
    np.add.at(flips.reshape(-1), places, np.uint8(1))
    inside = np.cumsum(flips[:, :-1], axis=1, dtype=np.uint8) & 1
    blocks = [inside[row::SAMPLES, column::SAMPLES] for row in range(SAMPLES) for column in range(SAMPLES)]
    coverage = np.add.reduce(blocks, dtype=np.uint8)
    return Layer(shape=shape, coverage=coverage, top=int(top), left=int(left))


def _crossings(loops: list[np.ndarray], top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
    """Crossings of the loops with the centre lines of the sample rows in [top, bottom).

    Returns:
        (N,) sample rows and (N,) columns of the first sample to the right of each crossing.
    """
    starts = np.concatenate(loops)
    ends = np.concatenate([np.roll(loop, -1, axis=0) for loop in loops])
    falling = (starts[:, 1] <= ends[:, 1])[:, None]
    upper, lower = np.where(falling, starts, ends), np.where(falling, ends, starts)
    half = _SAMPLE_UNITS // 2
    first = np.clip((upper[:, 1] + half - 1) // _SAMPLE_UNITS, top, bottom)
    last = np.clip((lower[:, 1] + half - 1) // _SAMPLE_UNITS, top, bottom)
    edges = np.repeat(np.arange(len(starts)), last - first)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(last - first) - last, last - first)
    (x, y), (run, drop) = upper[edges].T, (lower - upper)[edges].T
    crossing = x + (rows * _SAMPLE_UNITS + half - y) * run // drop
    return rows, (crossing + half) // _SAMPLE_UNITS
