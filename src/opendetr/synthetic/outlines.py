"""Outlines of the things, one function per class.

An outline is a list of closed loops of (N, 2) float64 (x, y) points in any unit, filled by the even-odd rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from opendetr.synthetic.random_numbers import integer, uniform

Outline = list[np.ndarray]


def polar(radii: np.ndarray, start: float = 0.0) -> np.ndarray:
    """Points at equally spaced angles from ``start`` at the given radii (N,)."""
    angles = start + np.arange(len(radii)) * (2 * math.pi / len(radii))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _disc(rng: np.random.Generator) -> Outline:
    return [polar(np.ones(56))]


def _ring(rng: np.random.Generator) -> Outline:
    return [polar(np.ones(56)), polar(np.full(48, uniform(rng, 0.45, 0.74)))]


def _crescent(rng: np.random.Generator) -> Outline:
    tip, depth = uniform(rng, 0.5, 1.1), uniform(rng, 0.1, 0.5)
    outer = np.linspace(tip, 2 * math.pi - tip, 44)
    inner = np.linspace(0, math.pi, 28)[1:-1]
    back = math.cos(tip) - (math.cos(tip) + depth) * np.sin(inner), -math.sin(tip) * np.cos(inner)
    return [np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), np.stack(back, axis=1)])]


def _drop(rng: np.random.Generator) -> Outline:
    angles = np.arange(56) * (2 * math.pi / 56)
    taper = np.sin(angles / 2) ** uniform(rng, 1.2, 2.2)
    return [np.stack([0.8 * np.sin(angles) * taper, -np.cos(angles)], axis=1)]


def _triangle(rng: np.random.Generator) -> Outline:
    return [np.array([(uniform(rng, -0.5, 0.5), -0.9), (1.0, 0.8), (-1.0, 0.8)])]


def _square(rng: np.random.Generator) -> Outline:
    return [polar(np.ones(4), start=math.pi / 4)]


def _hexagon(rng: np.random.Generator) -> Outline:
    return [polar(np.ones(6))]


def _cross(rng: np.random.Generator) -> Outline:
    arm = uniform(rng, 0.24, 0.42)
    corner = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
    turns = [corner, corner[:, ::-1] * (-1, 1), -corner, corner[:, ::-1] * (1, -1)]
    return [np.concatenate(turns)]


def _star(rng: np.random.Generator) -> Outline:
    tips, inner = integer(rng, 5, 7), uniform(rng, 0.4, 0.58)
    return [polar(np.tile([1.0, inner], tips))]


def _heart(rng: np.random.Generator) -> Outline:
    angles = np.arange(60) * (2 * math.pi / 60)
    notch = uniform(rng, 4.0, 6.0)
    height = 13 * np.cos(angles) - notch * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return [np.stack([16 * np.sin(angles) ** 3, -height], axis=1)]


def _arrow(rng: np.random.Generator) -> Outline:
    shaft, neck, barb = uniform(rng, 0.14, 0.34), uniform(rng, -0.2, 0.3), uniform(rng, 0.0, 0.15)
    upper = np.array([(-1.0, shaft), (neck, shaft), (neck - barb, 0.75), (1.0, 0.0)])
    return [np.concatenate([upper, upper[-2::-1] * (1, -1)])]


def _gear(rng: np.random.Generator) -> Outline:
    teeth, root, bore = integer(rng, 8, 12), uniform(rng, 0.7, 0.8), uniform(rng, 0.22, 0.42)
    return [polar(np.tile([1.0, 1.0, root, root], teeth)), polar(np.full(32, bore))]


OUTLINES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "disc": _disc,
    "ring": _ring,
    "crescent": _crescent,
    "drop": _drop,
    "triangle": _triangle,
    "square": _square,
    "hexagon": _hexagon,
    "cross": _cross,
    "star": _star,
    "heart": _heart,
    "arrow": _arrow,
    "gear": _gear,
}
