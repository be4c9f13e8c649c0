"""Textures: a weight in [0, 1] between two colours for every pixel, (h, w) float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from opendetr.synthetic.random_numbers import log_uniform, uniform
from opendetr.synthetic.shapes import SAMPLES, Layer


@lru_cache(maxsize=256)
def _interpolation(length: int, knots: int) -> np.ndarray:
    """(length, knots) float32: smooth interpolation from equally spaced knots to pixels."""
    position = np.linspace(0, knots - 1, length)
    knot = np.minimum(position.astype(int), knots - 2)
    fraction = position - knot
    fraction = fraction * fraction * (3 - 2 * fraction)
    matrix = np.zeros((length, knots), np.float32)
    matrix[np.arange(length), knot] = 1 - fraction
    matrix[np.arange(length), knot + 1] = fraction
    return matrix


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], knots: tuple[int, int]) -> np.ndarray:
    """Float32 noise of the given shape (h, w) in [0, 1], interpolated from a random grid of rows x columns knots."""
    grid = rng.random(knots, dtype=np.float32)
    return _interpolation(shape[0], knots[0]) @ grid @ _interpolation(shape[1], knots[1]).T


# ---------------------------------------------------------------------------------------------------------------- stuff

_CLOUDS = ((0.8, 6), (0.45, 13), (0.22, 29), (0.1, 61))  # weights and rows of knots of increasingly fine noise


def _sky(rng: np.random.Generator, grain: np.ndarray) -> np.ndarray:
    """Brighter towards the horizon, with clouds."""
    size = len(grain)
    clouds = np.zeros_like(grain)
    for weight, rows in _CLOUDS:
        clouds += weight * _smooth_noise(rng, grain.shape, (rows, rows - 2))
    height = np.linspace(0, 0.45, size, dtype=np.float32)[:, None]
    return height + np.clip(clouds * 2.2 - 1.6, 0, 0.6) + 0.03 * grain


def _grass(rng: np.random.Generator, grain: np.ndarray) -> np.ndarray:
    """Vertical blades on light and dark patches."""
    blades = np.repeat(grain[::4], 4, axis=0)[: len(grain)]
    return 0.6 * _smooth_noise(rng, grain.shape, (9, 9)) + 0.4 * blades


def _water(rng: np.random.Generator, grain: np.ndarray) -> np.ndarray:
    """Irregular horizontal ripples."""
    size = len(grain)
    rows = np.arange(size, dtype=np.float32)[:, None]
    phase = rows * np.float32(uniform(rng, 0.25, 0.7)) + 14 * _smooth_noise(rng, grain.shape, (9, 5))
    return 0.45 + 0.3 * np.sin(phase) + 0.12 * grain


def _sand(rng: np.random.Generator, grain: np.ndarray) -> np.ndarray:
    """Fine grain on low dunes."""
    return 0.55 * _smooth_noise(rng, grain.shape, (5, 4)) + 0.45 * grain


GROUNDS: dict[str, tuple[Callable[[np.random.Generator, np.ndarray], np.ndarray], tuple[tuple[int, ...], ...]]] = {
    "sky": (_sky, ((90, 140, 205), (235, 240, 248))),
    "grass": (_grass, ((38, 78, 30), (128, 168, 72))),
    "water": (_water, ((22, 70, 104), (104, 170, 190))),
    "sand": (_sand, ((170, 144, 106), (234, 216, 180))),
}


# --------------------------------------------------------------------------------------------------------------- things

Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray, Layer], np.ndarray]


_MOST_PERIODS = 12.0  # of a texture over the window of an object


def _frequency(rng: np.random.Generator, layer: Layer, most: float) -> float:
    """A random frequency in radians per unit of the object frame.

    The window has 2 to ``most`` periods, each of at least 5 pixels unless the window is small.
    """
    finest = max(2.5, max(layer.coverage.shape) / 5)
    return math.pi * log_uniform(rng, 2.0, min(most, finest))


def _sharpen(wave: np.ndarray, layer: Layer, frequency: float) -> np.ndarray:
    """Convert a wave in [-1, 1] to bands whose edges are about one pixel wide."""
    slope = max(layer.coverage.shape) / (2 * frequency)
    return np.clip(wave * slope + 0.5, 0, 1)


def _plain(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: Layer) -> np.ndarray:
    return np.zeros_like(across)


def _stripes(
    rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: Layer, most: float = _MOST_PERIODS
) -> np.ndarray:
    frequency = _frequency(rng, layer, most)
    return _sharpen(np.sin(across * frequency), layer, frequency)


def _checker(
    rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: Layer, most: float = _MOST_PERIODS
) -> np.ndarray:
    frequency = _frequency(rng, layer, most)
    return _sharpen(np.sin(across * frequency) * np.sin(along * frequency), layer, frequency)


def _dots(
    rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: Layer, most: float = _MOST_PERIODS
) -> np.ndarray:
    frequency = _frequency(rng, layer, most)
    return _sharpen(np.cos(across * frequency) + np.cos(along * frequency) - 0.8, layer, frequency)


def _gradient(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: Layer) -> np.ndarray:
    return np.clip(0.5 + 0.6 * along, 0, 1)


def _marble(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: Layer) -> np.ndarray:
    warp = _smooth_noise(rng, across.shape, (6, 6))
    return 0.5 + 0.5 * np.sin(np.float32(uniform(rng, 3, 9)) * across + 9 * warp)


def _speckle(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: Layer) -> np.ndarray:
    return rng.random(across.shape, dtype=np.float32) * np.float32(0.7)


def _outline(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: Layer) -> np.ndarray:
    """The first colour inside, the second along the rim."""
    rim = max(1, round(uniform(rng, 0.02, 0.05) * layer.shape.side))
    padded = np.pad(layer.coverage, rim)
    height, width = layer.coverage.shape
    diagonal = round(0.7 * rim)
    steps = [(0, rim), (rim, 0), (diagonal, diagonal), (diagonal, -diagonal)]
    inner = layer.coverage
    for dy, dx in steps + [(-dy, -dx) for dy, dx in steps]:
        inner = np.minimum(inner, padded[rim + dy : rim + dy + height, rim + dx : rim + dx + width])
    return 1 - inner * np.float32(1 / SAMPLES**2)


_FEW_PERIODS = 5.0  # coarse enough to be named in a small image

NAMED_TEXTURES: dict[str, Texture] = {
    "plain": _plain,
    "striped": partial(_stripes, most=_FEW_PERIODS),
    "checkered": partial(_checker, most=_FEW_PERIODS),
    "dotted": partial(_dots, most=_FEW_PERIODS),
}
"""Textures that captions name."""

TEXTURES: tuple[Texture, ...] = (_plain, _stripes, _checker, _dots, _gradient, _marble, _speckle, _outline)
