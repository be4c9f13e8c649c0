"""An image in memory with where it came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SourceImage:
    """An image in memory.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        source: where it came from (a path, an address, "camera 0"), or None.
        frame: its number in a video, from 0, or None.
        time: seconds from the video's start, or None.
    """

    pixels: np.ndarray
    source: str | None = None
    frame: int | None = None
    time: float | None = None
