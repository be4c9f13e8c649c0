"""The look of an object that a caption describes: a named colour and a named texture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opendetr.synthetic.random_numbers import uniform
from opendetr.synthetic.textures import NAMED_TEXTURES, Texture

# Hue in turns, saturation and value, each from and to. Hues between two names are not drawn.
_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-0.02, 0.01), (0.85, 1.0), (0.75, 0.95)),
    "orange": ((0.07, 0.09), (0.9, 1.0), (0.9, 1.0)),
    "yellow": ((0.145, 0.165), (0.8, 1.0), (0.9, 1.0)),
    "green": ((0.32, 0.38), (0.8, 1.0), (0.5, 0.75)),
    "blue": ((0.61, 0.65), (0.8, 1.0), (0.7, 0.95)),
    "purple": ((0.76, 0.79), (0.7, 0.95), (0.5, 0.75)),
    "white": ((0.0, 1.0), (0.0, 0.06), (0.92, 1.0)),
}
COLOURS = tuple(_RANGES)
"""Names of the colours of described objects."""


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """The colour (3,) in [0, 1] of a hue in turns, a saturation and a value."""
    wheel = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - wheel))


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an object is painted.

    Attributes:
        colour: one of `COLOURS`.
        texture: one of `NAMED_TEXTURES`. Stripes, checks and dots alternate between the colour and a near-black one, or
            a near-white one if the colour is dark.
    """

    colour: str
    texture: str

    @property
    def paint(self) -> Texture:
        """The texture's function."""
        return NAMED_TEXTURES[self.texture]

    def colours(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A random shade (3,) of the colour and the other colour of the texture, in [0, 255]."""
        first = rgb(*(uniform(rng, *limits) for limits in _RANGES[self.colour]))
        dark = 0.2 * rng.random(3)
        second = dark if 2 * first.mean() > 1 else 1 - dark
        return (255 * first).astype(np.float32), (255 * second).astype(np.float32)
