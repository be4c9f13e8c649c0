"""Line charts, for example of training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from opendetr.visualize.style import FAINT_INK, INK, PALETTE, PAPER, RULE, SMOOTH, fitted, font_of

_MARGIN = 24
_FEW_POINTS, _MANY_POINTS = 40, 200  # lines of at most 40 points have markers, lines of more than 200 a moving average


@dataclass(frozen=True)
class _Curve:
    """One line of a chart: `points`, and `trend` drawn over them, both (n, 2). With few points both are equal."""

    points: np.ndarray
    trend: np.ndarray

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> _Curve:
        """A curve whose trend is a moving average over a fiftieth of the points if there are more than 200."""
        array = np.array(points, dtype=np.float64).reshape(-1, 2)
        array[~np.isfinite(array).all(1), 1] = np.nan
        if len(array) <= _MANY_POINTS:
            return cls(array, array)
        known = np.isfinite(array[:, 1])
        window = np.ones(2 * (len(array) // 100) + 1)
        total = np.convolve(np.where(known, array[:, 1], 0.0), window, "same")
        count = np.convolve(known, window, "same")
        mean = np.where(known, total / np.maximum(count, 1), np.nan)
        return cls(array, np.stack((array[:, 0], mean), 1))

    @property
    def last(self) -> float | None:
        """The last finite value, None if there is none."""
        known = self.trend[np.isfinite(self.trend[:, 1]), 1]
        return float(known[-1]) if len(known) else None


@dataclass(frozen=True)
class _Frame:
    """The area of a chart that holds the curves: its borders in pixels, and the range of values that it shows."""

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


def draw_curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str = "",
    *,
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (960, 540),
) -> Image.Image:
    """Draw a line chart. The legend shows the last value of each line.

    A line of more than 200 points is drawn as a moving average over a fiftieth of them, with the points themselves
    behind it in a pale shade. Values that are not finite leave a gap.

    Args:
        series: the (x, y) points of each line by its name, sorted by x.
        title: text above the chart.
        x_label: text below the horizontal axis.
        y_label: text above the vertical axis.
        size: width and height of the image in pixels.
    """
    curves = {name: _Curve.of(points) for name, points in series.items()}
    chart = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(chart)
    top = _MARGIN
    if title:
        draw.text((_MARGIN, top), fitted(title, font_of(20), size[0] - 2 * _MARGIN), INK, font_of(20))
        top += 34
    top = _draw_legend(draw, curves, top, size[0])
    if y_label:
        draw.text((_MARGIN, top), y_label, FAINT_INK, font_of(13))
        top += 20
    if x_label:
        draw.text((size[0] / 2, size[1] - 12), x_label, FAINT_INK, font_of(13), anchor="mb")
    frame = _draw_axes(draw, list(curves.values()), (top + 10, size[1] - (56 if x_label else 40)), size[0])
    return _with_curves(chart, frame, list(curves.values()))


def _draw_legend(draw: ImageDraw.ImageDraw, curves: Mapping[str, _Curve], top: int, width: int) -> int:
    """Draw the colour, name and last value of each line in rows below `top`. Returns the y coordinate of their end."""
    font = font_of(14)
    x = _MARGIN
    for index, (name, curve) in enumerate(curves.items()):
        value = "" if curve.last is None else _value_text(curve.last)
        length = 26 + font.getlength(f"{name} {value}") + 4
        if x > _MARGIN and x + length > width - _MARGIN:
            x, top = _MARGIN, top + 22
        draw.rounded_rectangle((x, top + 6, x + 18, top + 10), 2, PALETTE[index % len(PALETTE)])
        draw.text((x + 26, top + 8), name, INK, font, anchor="lm")
        draw.text((x + length, top + 8), value, FAINT_INK, font, anchor="rm")
        x += round(length) + 24
    return top + 28 if curves else top


def _draw_axes(draw: ImageDraw.ImageDraw, curves: Sequence[_Curve], rows: tuple[int, int], width: int) -> _Frame:
    """Draw grid and ticks between the two y coordinates `rows`. Returns the frame for the curves."""
    font = font_of(13)
    x_low, x_high, y_low, y_high = _ranges(curves)
    integers = all(np.all(curve.points[:, 0] % 1 == 0) for curve in curves)
    x_step = _nice_step(x_high - x_low, 8)
    x_step = max(1.0, x_step) if integers else x_step
    y_step = _nice_step(y_high - y_low, 5)
    y_ticks = np.arange(np.floor(y_low / y_step), np.ceil(y_high / y_step) + 1) * y_step
    x_ticks = np.arange(np.ceil(x_low / x_step), np.floor(x_high / x_step) + 1) * x_step
    texts = [_tick_text(tick, y_step) for tick in y_ticks]
    left = _MARGIN + max(font.getlength(text) for text in texts) + 10
    right = width - _MARGIN - 6
    frame = _Frame(left, rows[0], right, rows[1], (x_low, x_high), (y_ticks[0], y_ticks[-1]))
    for (_, y), text in zip(frame.place(np.stack((np.full_like(y_ticks, x_low), y_ticks), 1)), texts, strict=True):
        draw.line((left, round(y), right, round(y)), RULE, 1)
        draw.text((left - 10, y), text, FAINT_INK, font, anchor="rm")
    for tick, (x, _) in zip(x_ticks, frame.place(np.stack((x_ticks, np.full_like(x_ticks, y_low)), 1)), strict=True):
        draw.text((x, rows[1] + 10), _tick_text(tick, x_step), FAINT_INK, font, anchor="ma")
    return frame


def _ranges(curves: Sequence[_Curve]) -> tuple[float, float, float, float]:
    """The x range and y range to show: x low, x high, y low, y high. Among many points, outliers are not shown."""
    known = [curve.points[np.isfinite(curve.points[:, 1])] for curve in curves]
    trends = [curve.trend[np.isfinite(curve.trend[:, 1])] for curve in curves]
    x = np.concatenate([points[:, 0] for points in known] or [np.zeros(0)])
    if not len(x):
        return 0.0, 1.0, 0.0, 1.0
    y = np.concatenate([trend[:, 1] for trend in trends])
    many = [points[:, 1] for points in known if len(points) > _MANY_POINTS]
    bulk = np.concatenate([np.percentile(values, (1, 99)) for values in many] or [y])
    y_low, y_high = min(y.min(), bulk.min()), max(y.max(), bulk.max())
    if 0 <= y_low < 0.5 * y_high:
        y_low = 0.0
    return *_widened(x.min(), x.max()), *_widened(y_low, y_high)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, or a range of length 1 around it if it is empty."""
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _nice_step(span: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` into about `count` parts."""
    magnitude = 10.0 ** np.floor(np.log10(span / count))
    return float(magnitude * next(factor for factor in (1, 2, 5, 10) if span / count <= factor * magnitude))


def _tick_text(value: float, step: float) -> str:
    """A tick's number with as many decimals as the step between ticks needs."""
    decimals = max(0, -int(np.floor(np.log10(step))))
    value = 0.0 if abs(value) < step / 2 else value  # no minus sign before zero
    return f"{value:,.{decimals}f}" if decimals <= 4 else f"{value:.3g}"


def _value_text(value: float) -> str:
    """A number with about four digits, without an exponent if it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _with_curves(chart: Image.Image, frame: _Frame, curves: Sequence[_Curve]) -> Image.Image:
    """The chart with the curves, pale points first. Only the curves are anti-aliased; text keeps its pixels."""
    large = chart.resize((chart.width * SMOOTH, chart.height * SMOOTH), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    colours = [PALETTE[index % len(PALETTE)] for index in range(len(curves))]
    for curve, colour in zip(curves, colours, strict=True):
        if curve.trend is not curve.points:
            pale = tuple(round(0.25 * value + 0.75 * 255) for value in colour)
            _draw_curve(draw, frame.place(curve.points), pale, 1.2)
    for curve, colour in zip(curves, colours, strict=True):
        _draw_curve(draw, frame.place(curve.trend), colour, 2.4)
    return large.resize(chart.size, Image.Resampling.BOX)


def _draw_curve(draw: ImageDraw.ImageDraw, pixels: np.ndarray, colour: tuple[int, ...], width: float) -> None:
    """Draw the finite runs of the points, (n, 2) in pixels. Points of short lines also get markers."""
    large = (pixels + 0.5) * SMOOTH
    gaps = np.flatnonzero(~np.isfinite(large[:, 1]))
    for start, end in pairwise([-1, *gaps.tolist(), len(large)]):
        run = [(x, y) for x, y in large[start + 1 : end].tolist()]
        if not run:
            continue
        draw.line(run, colour, round(width * SMOOTH), joint="curve")
        radius = width * SMOOTH * 1.3
        for x, y in run if len(large) <= _FEW_POINTS else ():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
