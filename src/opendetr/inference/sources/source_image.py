"""A loaded image and its origin, and a frame that is not loaded yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class SourceImage:
    """A loaded image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        source: its origin (a path, a URL, "camera 0"), or None.
        frame: its index in a video, from 0, or None.
        time: seconds since the start of the video, or None.
    """

    pixels: np.ndarray
    source: str | None = None
    frame: int | None = None
    time: float | None = None


@dataclass(frozen=True)
class FrameFile:
    """An image file that is a frame of a video.

    Attributes:
        path: the file.
        frame: its index in the video, from 0.
        time: seconds since the start of the video.
    """

    path: Path
    frame: int
    time: float
