"""Images of 16 bits per channel, as (H, W) or (H, W, C) integers and scaled to 8 bits.

Cameras of 10 to 14 bits and thermal cameras write 16-bit files of which they use a small part of the range. Their upper
8 bits would be nearly black. So the values from the darkest to the brightest one of an image become 0 to 255.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from PIL import Image, ImageFile

_WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_MAX_16_BIT = 65535
_MAX_8_BIT = 255
# Images that use less than a fourth of the range are reported: of their upper 8 bits, fewer than 64 values differ.
_LOW_CONTRAST = _MAX_16_BIT // 4
# Pillow keeps the upper 8 bits of colours. With the other order of bytes it decodes the lower 8 bits.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}

Opener = Callable[[], AbstractContextManager[ImageFile.ImageFile]]


def deep_pixels(image: Image.Image, reopen: Opener | None = None) -> np.ndarray | None:
    """The values of an image of 16 bits per channel, (H, W) or (H, W, 3 or 4); None for other images.

    Args:
        image: the image.
        reopen: opens the same file again. Without it, colours that Pillow has reduced to 8 bits stay so.

    Raises:
        ValueError: the values have more than 16 bits.
    """
    if image.mode in _WIDE_MODES:
        values = np.asarray(image)
        if values.size and int(values.max()) - int(values.min()) > _MAX_16_BIT:
            raise ValueError("32-bit values; save the image with 8 or 16 bits")
        return values
    if reopen is None or image.mode not in ("RGB", "RGBA") or image.format not in ("PNG", "TIFF"):
        return None
    with reopen() as other:
        if not any(_is_deep(tile) for tile in other.tile):
            return None
        other.tile = [_other_byte(tile) for tile in other.tile]
        low = np.asarray(other)
    return np.asarray(image).astype(np.uint16) << 8 | low


def uses_few_values(values: np.ndarray) -> bool:
    """Whether the values of an image of 16 bits span less than a fourth of the range."""
    return bool(values.size) and _span(values) < _LOW_CONTRAST


def describe_range(values: np.ndarray) -> str:
    """The range of the values in words, such as "values from 0 to 4,095 of 65,535"."""
    colours = _colours(values)
    return f"values from {int(colours.min()):,} to {int(colours.max()):,} of {_MAX_16_BIT:,}"


def scaled(values: np.ndarray) -> Image.Image:
    """Scale the values of an image of 16 bits to 8 bits: L, RGB or RGBA.

    The darkest value becomes 0 and the brightest 255, in all channels alike. Differences are never enlarged beyond one
    step of 8 bits. A transparency keeps its upper 8 bits.
    """
    if not values.size:
        return Image.fromarray(values.astype(np.uint8))
    colours = _colours(values).astype(np.int64)
    shifted = colours - colours.min()
    pixels = np.rint(shifted * (_MAX_8_BIT / max(_span(values), _MAX_8_BIT))).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 4:
        pixels = np.dstack([pixels, (values[..., 3] >> 8).astype(np.uint8)])
    return Image.fromarray(pixels)


def _colours(values: np.ndarray) -> np.ndarray:
    return values[..., :3] if values.ndim == 3 else values


def _span(values: np.ndarray) -> int:
    colours = _colours(values)
    return int(colours.max()) - int(colours.min())


def _raw_mode(tile: Any) -> str:
    """How Pillow unpacks the pixels of a tile, such as "RGB;16B"."""
    arguments = tile[3]
    first = arguments if isinstance(arguments, str) or not arguments else arguments[0]
    return first if isinstance(first, str) else ""


def _is_deep(tile: Any) -> bool:
    return _raw_mode(tile).partition(";")[2] in _OTHER_BYTE


def _other_byte(tile: Any) -> Any:
    """The tile, unpacked with the other order of bytes."""
    codec, extents, offset, arguments = tile
    mode, _, order = _raw_mode(tile).partition(";")
    swapped = f"{mode};{_OTHER_BYTE[order]}" if order in _OTHER_BYTE else _raw_mode(tile)
    arguments = swapped if isinstance(arguments, str) else (swapped, *arguments[1:])
    other = (codec, extents, offset, arguments)
    return type(tile)(*other) if hasattr(tile, "_fields") else other  # a plain tuple in older versions of Pillow
