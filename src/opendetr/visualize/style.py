"""Colours, fonts and anti-aliasing for drawings and charts."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont

Colour = tuple[int, int, int]

# The palette of Okabe and Ito, which people with a colour vision deficiency can tell apart, with brown for yellow.
PALETTE: tuple[Colour, ...] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167),
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (120, 60, 20),
)  # fmt: skip
INK, FAINT_INK, RULE, PAPER = (17, 24, 39), (107, 114, 128), (229, 231, 235), (255, 255, 255)
SMOOTH = 4  # anti-aliasing: curves and rounded corners are drawn this many times larger and then reduced


@cache
def font_of(size: float) -> ImageFont.FreeTypeFont:
    """The default font of Pillow in `size` pixels."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which draws text; reinstall it: pip install -U pillow")
    return font


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, shortened with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
