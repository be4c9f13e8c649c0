"""Axes of charts: ticks, grid lines, and the conversion of values to pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from opendetr.visualize.style import FAINT_INK, INK, RULE, Colour, fitted, font_of

MARGIN = 24
_FONT_SIZE = 13


@dataclass(frozen=True)
class Ticks:
    """The ticks of an axis.

    Attributes:
        values: (n,) the positions of the ticks on the axis.
        texts: their n texts.
        range: the lowest and the highest value of the axis.
    """

    values: np.ndarray
    texts: list[str]
    range: tuple[float, float]

    @classmethod
    def linear(cls, low: float, high: float, count: int, *, integers: bool = False, whole: bool = False) -> Ticks:
        """About `count` ticks at multiples of 1, 2 or 5 times a power of ten.

        Args:
            low: the lowest value of the axis.
            high: the highest value of the axis, above `low`.
            count: wanted number of ticks.
            integers: put ticks only at integers.
            whole: extend the axis to the next ticks.
        """
        step = _nice_step(high - low, count)
        step = max(1.0, step) if integers else step
        low_step, high_step = np.round(np.array((low, high)) / step, 9)  # 1 / 0.2 is not quite 5
        first, last = (np.floor(low_step), np.ceil(high_step)) if whole else (np.ceil(low_step), np.floor(high_step))
        values = np.arange(first, last + 1) * step
        return cls(values, [_tick_text(value, step) for value in values], _ends(values) if whole else (low, high))


@dataclass(frozen=True)
class Frame:
    """The area of a chart that holds the data: its borders in pixels, and the range of values that it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def place(self, points: np.ndarray) -> np.ndarray:
        """Convert values (n, 2) to pixels (n, 2). Values above or below the y range are moved to its limit."""
        low, high = np.array((self.x_range, self.y_range)).T
        share = (points - low) / (high - low)
        x = self.left + share[:, 0] * (self.right - self.left)
        y = self.bottom - share[:, 1].clip(0, 1) * (self.bottom - self.top)
        return np.stack((x, y), 1)


def draw_axes(
    draw: ImageDraw.ImageDraw, area: tuple[float, float, float, float], x: Ticks, y: Ticks, *, vertical: bool = False
) -> Frame:
    """Draw the ticks of both axes and horizontal grid lines. Returns the frame for the data.

    Args:
        draw: the image to draw on.
        area: left, top, right and bottom in pixels. The texts of the y axis are inside, those of the x axis below.
        x: the ticks of the x axis.
        y: the ticks of the y axis.
        vertical: also draw vertical grid lines.
    """
    font = font_of(_FONT_SIZE)
    left = area[0] + max(font.getlength(text) for text in y.texts) + 10
    frame = Frame(left, *area[1:], x.range, y.range)
    rows = frame.place(np.stack((np.full_like(y.values, x.range[0]), y.values), 1))[:, 1]
    columns = frame.place(np.stack((x.values, np.full_like(x.values, y.range[0])), 1))[:, 0]
    for row, text in zip(rows, y.texts, strict=True):
        draw.line((left, round(row), frame.right, round(row)), RULE, 1)
        draw.text((left - 10, row), text, FAINT_INK, font, anchor="rm")
    for column, text in zip(columns, x.texts, strict=True):
        if vertical:
            draw.line((round(column), frame.top, round(column), frame.bottom), RULE, 1)
        draw.text((column, frame.bottom + 10), text, FAINT_INK, font, anchor="ma")
    return frame


def draw_title(draw: ImageDraw.ImageDraw, title: str, width: int) -> int:
    """Write the title of a chart, shortened to its width. Returns the y coordinate of its end."""
    if not title:
        return MARGIN
    draw.text((MARGIN, MARGIN), fitted(title, font_of(20), width - 2 * MARGIN), INK, font_of(20))
    return MARGIN + 34


def draw_heading(draw: ImageDraw.ImageDraw, title: str, legend: Mapping[str, Colour], width: int) -> int:
    """Write a title and, below it, the names of colours. Returns the y coordinate of the end."""
    font = font_of(14)
    draw.text((MARGIN, MARGIN), fitted(title, font_of(16), width - 2 * MARGIN), INK, font_of(16))
    x, y = float(MARGIN), MARGIN + 40
    for name, colour in legend.items():
        length = 20 + font.getlength(name)
        if x > MARGIN and x + length > width - MARGIN:
            x, y = float(MARGIN), y + 22
        draw.rectangle((x, y - 6, x + 12, y + 6), colour)
        draw.text((x + 20, y), name, INK, font, anchor="lm")
        x += length + 24
    return y + 18 if legend else MARGIN + 34


def draw_axis_names(draw: ImageDraw.ImageDraw, x_label: str, y_label: str, top: int, size: tuple[int, int]) -> int:
    """Write the name of the y axis below `top` and that of the x axis at the bottom.

    Returns:
        The y coordinate of the end of the first.
    """
    font = font_of(_FONT_SIZE)
    if x_label:
        draw.text((size[0] / 2, size[1] - 12), x_label, FAINT_INK, font, anchor="mb")
    if not y_label:
        return top
    draw.text((MARGIN, top), y_label, FAINT_INK, font)
    return top + 20


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[-1])


def _nice_step(span: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` into about `count` parts."""
    magnitude = 10.0 ** np.floor(np.log10(span / count))
    return float(magnitude * next(factor for factor in (1, 2, 5, 10) if span / count <= factor * magnitude))


def _tick_text(value: float, step: float) -> str:
    """A tick's number with as many decimals as the step between ticks needs."""
    decimals = max(0, -int(np.floor(np.log10(step))))
    value = 0.0 if abs(value) < step / 2 else value  # no minus sign before zero
    return f"{value:,.{decimals}f}" if decimals <= 4 else f"{value:.3g}"
