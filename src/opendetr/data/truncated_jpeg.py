"""JPEG files that lack a few bytes at their end, as after an interrupted copy or from a careless camera."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

_END = b"\xff\xd9"
_OTHER_DATA = bytes((37 * number + 101) % 251 for number in range(512))
_BLOCK = 16  # pixels that are coded together, in both directions
# The largest missing part of an image. A few bytes contain many pixels of a plain colour: small images may lack more.
_MOST_MISSING, _FEW_PIXELS, _MOST_OF_SMALL = 0.1, 4096, 0.4
_START_OF_SCAN = 0xDA
_PROGRESSIVE = 0xC2


def restored(path: Path) -> tuple[Image.Image, float] | None:
    """Decode a JPEG file that breaks off near its end.

    Returns:
        The image, whose last pixels have a plain colour, and the fraction of the pixels that are missing. None for
        other files, and if too much is missing.
    """
    content = path.read_bytes().removesuffix(_END[:1])  # half of the end
    if not content.startswith(b"\xff\xd8"):
        return None
    markers = {marker for marker, _ in _segments(content)}
    if _PROGRESSIVE in markers:
        # The content may end inside a marker or inside the header of a scan, which is then left out.
        ends = (len(content), content.rfind(b"\xff"), content.rfind(b"\xff\xda"))
        whole = next((found for end in ends if (found := _filled(content[:end])) is not None), None)
        return (whole, 0.0) if whole is not None and _is_nearly_refined(content) else None
    image = _filled(content)
    if image is None or _START_OF_SCAN not in markers:
        return None
    missing = _missing_part(content, np.asarray(image))
    most = max(_MOST_MISSING, min(_MOST_OF_SMALL, _FEW_PIXELS / (image.width * image.height)))
    return (image, missing) if missing <= most else None


def _filled(content: bytes) -> Image.Image | None:
    """The image with a plain colour in place of what is missing; None if it cannot be decoded."""
    try:
        image = Image.open(io.BytesIO(content + _END), formats=["JPEG"])
        image.load()
    except OSError:
        return None
    return image


def _missing_part(content: bytes, filled: np.ndarray) -> float:
    """The fraction of the pixels that the content lacks; `filled` has a plain colour in their place."""
    # Other data in place of what is missing changes these pixels only.
    other = _filled(content + _OTHER_DATA)
    if other is None:
        return 1.0
    height, width = filled.shape[:2]
    differs = (np.asarray(other) != filled).reshape(height, width, -1).any(2)
    if not differs.any():
        return 0.0
    top = int(differs.any(1).argmax()) // _BLOCK * _BLOCK
    bottom = min(top + _BLOCK, height)
    left = int(differs[top:bottom].any(0).argmax())
    return ((bottom - top) * (width - left) + (height - bottom) * width) / (height * width)


def _segments(content: bytes) -> list[tuple[int, bytes]]:
    """The marker and the body of each segment of a JPEG file, without the data of the scans."""
    segments, position = [], 2
    while (position := content.find(b"\xff", position)) >= 0 and position + 4 <= len(content):
        marker = content[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # data, filling, restart
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        body = content[position + 4 : position + 2 + length]
        if len(body) != length - 2:
            break
        segments.append((marker, body))
        position += 2 + length
    return segments


def _is_nearly_refined(content: bytes) -> bool:
    """Whether the scans of a progressive JPEG have begun to add the last two bits of every coefficient.

    Later scans refine a complete image. If they are missing, hardly anything is lost.
    """
    components: set[int] = set()
    refined: set[tuple[int, int]] = set()
    for marker, body in _segments(content):
        if marker == _PROGRESSIVE:
            components = set(body[6::3])
        elif marker == _START_OF_SCAN:
            names = body[1 : 1 + 2 * body[0] : 2]
            first, last, precision = body[-3:]
            if precision & 15 <= 1:
                refined |= {(name, number) for name in names for number in range(first, last + 1)}
    return bool(components) and all((name, number) in refined for name in components for number in range(64))
