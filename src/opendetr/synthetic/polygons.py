"""Masks as COCO annotations hold them: run lengths, and polygons that give back exactly the mask."""

from __future__ import annotations

from typing import Any

import numpy as np


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed COCO run-length encoding.

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
    """Polygons along the pixel edges of a mask; rasterised with pycocotools they give back exactly the mask.

    There is a polygon for each part that is connected through pixel sides; a part with a hole is cut through the hole
    into parts without.

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
            # The loop runs around a hole: both sides of a cut through it have one hole less.
            cut = int(columns.min() + columns.max()) // 2
            right = mask_to_polygons(mask[:, cut:], origin=(origin[0] + cut, origin[1]))
            return mask_to_polygons(mask[:, :cut], origin=origin) + right
        polygons.append(np.stack([columns + origin[0], y[loop] + origin[1]], axis=1).reshape(-1).tolist())
    return polygons


def _corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners of the outlines of a mask (h, w), row by row.

    Where two pixels touch only diagonally, two outlines touch and the corner is listed once for each.

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
    """Link corners, as :func:`_corners` lists them, to closed loops that start with a step to the right.

    Along a row the corners pair up to horizontal edges, along a column to vertical ones. Corners listed twice are taken
    in the order that keeps the two diagonal pixels apart, so every loop bounds a part connected through pixel sides.
    """
    number = np.arange(len(x))
    below = np.lexsort((np.where(filled, number, -number), y, x))
    vertical = np.empty_like(number)
    vertical[below[0::2]], vertical[below[1::2]] = below[1::2], below[0::2]
    following = vertical.tolist()
    loops: list[list[int]] = []
    seen = [False] * len(following)
    for start in range(0, len(following), 2):
        loop: list[int] = []
        corner = start
        while not seen[corner]:
            loop += (corner, corner ^ 1)
            seen[corner] = seen[corner ^ 1] = True
            corner = following[corner ^ 1]
        if loop:
            loops.append(loop)
    return loops
