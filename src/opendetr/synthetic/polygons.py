"""Converts masks to COCO annotations: RLE, and polygons that reproduce the mask exactly."""

from __future__ import annotations

from typing import Any

import numpy as np


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask as uncompressed COCO RLE (run-length encoding).

    Args:
        mask: (H, W) bool.

    Returns:
        ``{"size": [H, W], "counts": [...]}``: lengths of runs of 0, 1, 0, ... down the columns, from the left.
    """
    pixels = np.asarray(mask, bool).reshape(-1, order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = np.concatenate([[0], changes, [pixels.size]])
    leading = [0] if pixels[0] else []
    return {"size": [*mask.shape], "counts": leading + np.diff(bounds).tolist()}


def mask_to_polygons(mask: np.ndarray, *, origin: tuple[int, int] = (0, 0)) -> list[list[int]]:
    """Convert a mask to polygons along its pixel edges. Rasterised with pycocotools, they reproduce the mask exactly.

    There is one polygon for each part that is connected through pixel sides. A part with a hole is cut through the hole
    into parts without holes.

    Args:
        mask: (h, w) bool.
        origin: (x, y) of the mask's top left corner, added to the polygons.

    Returns:
        COCO polygons ``[x0, y0, x1, y1, ...]`` in pixel edges; no polygon has a hole.
    """
    x, y, filled = _corners(mask)
    polygons: list[list[int]] = []
    for loop in _trace(x, y, filled):
        columns = x[loop]
        if not filled[loop[0]]:
            # The loop encloses a hole. Each side of a cut through the hole has at least one hole less.
            cut = int(columns.min() + columns.max()) // 2
            right = mask_to_polygons(mask[:, cut:], origin=(origin[0] + cut, origin[1]))
            return mask_to_polygons(mask[:, :cut], origin=origin) + right
        polygons.append(np.stack([columns + origin[0], y[loop] + origin[1]], axis=1).reshape(-1).tolist())
    return polygons


def _corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners of the outlines of a mask (h, w), row by row.

    Where two pixels touch only diagonally, two outlines touch, and the corner is listed twice.

    Returns:
        (N,) x and (N,) y in pixel edges, and (N,) bool: whether the pixel to the lower right is in the mask.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    above, below = padded[:-1], padded[1:]
    turns = above[:, :-1] ^ above[:, 1:] ^ below[:, :-1] ^ below[:, 1:]
    touches = (above[:, :-1] == below[:, 1:]) & (above[:, 1:] == below[:, :-1]) & (above[:, :-1] != above[:, 1:])
    y, x = np.nonzero(turns | touches)
    times = 1 + touches[y, x]
    y, x = np.repeat(y, times), np.repeat(x, times)
    return x, y, below[y, x + 1]


def _trace(x: np.ndarray, y: np.ndarray, filled: np.ndarray) -> list[list[int]]:
    """Link the corners from :func:`_corners` to closed loops that start with a step to the right.

    Pairs of corners along a row form horizontal edges, and pairs along a column form vertical edges. Corners that are
    listed twice are ordered such that the two diagonal pixels stay separate. So every loop encloses a part that is
    connected through pixel sides.
    """
    number = np.arange(len(x))
    below = np.lexsort((np.where(filled, number, -number), y, x))
    vertical = np.empty_like(number)
    vertical[below[0::2]], vertical[below[1::2]] = below[1::2], below[0::2]
    following = vertical.tolist()
    loops: list[list[int]] = []
    visited = [False] * len(following)
    for start in range(0, len(following), 2):
        loop: list[int] = []
        corner = start
        while not visited[corner]:
            loop += (corner, corner ^ 1)
            visited[corner] = visited[corner ^ 1] = True
            corner = following[corner ^ 1]
        if loop:
            loops.append(loop)
    return loops
