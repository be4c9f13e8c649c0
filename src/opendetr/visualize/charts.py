"""Line charts, for example of training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from opendetr.visualize.axes import MARGIN, Frame, Ticks, draw_axes, draw_axis_names, draw_title
from opendetr.visualize.style import FAINT_INK, INK, PALETTE, PAPER, SMOOTH, Colour, fitted, font_of

_FEW_POINTS, _MANY_POINTS = 40, 200  # at most 40 points each have a marker; more than 200 get a moving average
_NUM_MARKERS = 10  # about as many markers on a longer line, if there are several lines
_LINE, _PALE_LINE, _MARKER = 2.4, 1.2, 4.4  # widths of lines and radius of markers in pixels
_SAMPLE = 36  # width of a line in the legend
_DASHES: tuple[tuple[float, ...], ...] = ((), (9, 5), (2, 4), (14, 4, 2, 4))  # lengths of line and gap by turns


class _Style(NamedTuple):
    """The look of one line: lines of one colour differ in dashes, lines of neighbouring numbers also in markers."""

    colour: Colour
    dashes: tuple[float, ...]
    marker: str

    @classmethod
    def of(cls, index: int) -> _Style:
        repetition, position = divmod(index, len(PALETTE))
        markers = tuple(_MARKERS)
        marker = markers[(position + repetition) % len(markers)]
        return cls(PALETTE[position], _DASHES[repetition % len(_DASHES)], marker)


# The corners of markers in units of their radius; none is a circle.
_MARKERS: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.25), (1.15, 0.8), (-1.15, 0.8)),
    "diamond": ((0, -1.35), (1.1, 0), (0, 1.35), (-1.1, 0)),
    "triangle down": ((0, 1.25), (1.15, -0.8), (-1.15, -0.8)),
}


@dataclass(frozen=True)
class _Curve:
    """One line of a chart: `points`, and `trend` drawn over them, both (n, 2). With few points both are equal."""

    points: np.ndarray
    trend: np.ndarray

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]], *, smooth: bool) -> _Curve:
        """A curve. With `smooth`, its trend is a moving average over a fiftieth of the points if there are over 200."""
        array = np.array(points, dtype=np.float64).reshape(-1, 2)
        array[~np.isfinite(array).all(1), 1] = np.nan
        if len(array) <= _MANY_POINTS or not smooth:
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


def draw_curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str = "",
    *,
    x_label: str = "",
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
    smooth: bool = True,
    last_values: bool = True,
    size: tuple[int, int] = (960, 540),
) -> Image.Image:
    """Draw a line chart with a legend.

    Up to 32 lines differ in their colours and dashes, and all of up to 40 points also have markers of different shapes.
    Values that are not finite leave a gap.

    Args:
        series: the (x, y) points of each line by its name, sorted by x.
        title: text above the chart.
        x_label: text below the horizontal axis.
        y_label: text above the vertical axis.
        x_range: the first and the last x of the axis. Default: those of the points.
        mark: a value of x to mark with a vertical line, and its name. Points of short lines at this x get a ring.
        smooth: draw a line of more than 200 points as a moving average over a fiftieth of them, with the points
            themselves behind it in a pale shade.
        last_values: show the last value of each line in the legend.
        size: width and height of the image in pixels.
    """
    curves = {name: _Curve.of(points, smooth=smooth) for name, points in series.items()}
    chart = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(chart)
    top = draw_title(draw, title, size[0])
    samples, top = _draw_legend(draw, curves, top, size[0], last_values=last_values)
    top = draw_axis_names(draw, x_label, y_label, top, size)
    frame = _draw_axes(draw, list(curves.values()), (top + 10, size[1] - (56 if x_label else 40)), size[0], x_range)
    chart = _with_curves(chart, frame, list(curves.values()), samples, None if mark is None else mark[0])
    if mark is not None:
        _draw_mark_name(ImageDraw.Draw(chart), frame, *mark)
    return chart


def _draw_legend(
    draw: ImageDraw.ImageDraw, curves: Mapping[str, _Curve], top: int, width: int, *, last_values: bool
) -> tuple[list[tuple[int, int]], int]:
    """Write the name and, if wanted, the last value of each line in rows below `top`.

    Returns:
        The left end of the sample of each line, x and y, and the y coordinate of the legend's end.
    """
    font = font_of(14)
    x = MARGIN
    samples = []
    for name, curve in curves.items():
        value = _value_text(curve.last) if last_values and curve.last is not None else ""
        longest = width - 2 * MARGIN - _SAMPLE - 12 - font.getlength(value)
        shown = fitted(name, font, longest)
        length = _SAMPLE + 8 + font.getlength(f"{shown} {value}") + 4
        if x > MARGIN and x + length > width - MARGIN:
            x, top = MARGIN, top + 22
        samples.append((x, top + 8))
        draw.text((x + _SAMPLE + 8, top + 8), shown, INK, font, anchor="lm")
        draw.text((x + length, top + 8), value, FAINT_INK, font, anchor="rm")
        x += round(length) + 24
    return samples, top + 28 if curves else top


def _draw_axes(
    draw: ImageDraw.ImageDraw,
    curves: Sequence[_Curve],
    rows: tuple[int, int],
    width: int,
    x_range: tuple[float, float] | None,
) -> Frame:
    """Draw grid and ticks between the two y coordinates `rows`. Returns the frame for the curves."""
    x_low, x_high, y_low, y_high = _ranges(curves)
    x_low, x_high = (x_low, x_high) if x_range is None else _widened(*x_range)
    integers = all(np.all(curve.points[:, 0] % 1 == 0) for curve in curves)
    x = Ticks.linear(x_low, x_high, 8, integers=integers)
    y = Ticks.linear(y_low, y_high, 5, whole=True)
    return draw_axes(draw, (MARGIN, rows[0], width - MARGIN - 6, rows[1]), x, y)


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
    if 0 <= y_low < 0.5 * y_high or y_low == y_high > 0:
        y_low = 0.0
    return *_widened(x.min(), x.max()), *_widened(y_low, y_high)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, or a range of length 1 around it if it is empty."""
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _value_text(value: float) -> str:
    """A number with about four digits, without an exponent if it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _draw_mark_name(draw: ImageDraw.ImageDraw, frame: Frame, x: float, name: str) -> None:
    """Write the name of a marked x at the top of its line, on the side with more space."""
    font = font_of(13)
    ((column, _),) = frame.place(np.array(((x, frame.y_range[0]),)))
    is_left = column < (frame.left + frame.right) / 2
    place = (column + 6 if is_left else column - 6, frame.top + 2)
    anchor = "la" if is_left else "ra"
    left, top, right, bottom = draw.textbbox(place, name, font, anchor=anchor)
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), PAPER)
    draw.text(place, name, INK, font, anchor=anchor)


def _with_curves(
    chart: Image.Image,
    frame: Frame,
    curves: Sequence[_Curve],
    samples: Sequence[tuple[int, int]],
    mark: float | None,
) -> Image.Image:
    """The chart with the curves, pale points first, and with samples of the lines in the legend.

    Only these are anti-aliased; text keeps its pixels.
    """
    large = chart.resize((chart.width * SMOOTH, chart.height * SMOOTH), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    styles = [_Style.of(index) for index in range(len(curves))]
    for curve, style in zip(curves, styles, strict=True):
        if curve.trend is not curve.points:
            red, green, blue = (round(0.25 * value + 0.75 * 255) for value in style.colour)
            _draw_curve(draw, frame.place(curve.points), _Style((red, green, blue), (), ""), _PALE_LINE)
    if mark is not None:
        ends = np.array(((mark, frame.y_range[0]), (mark, frame.y_range[1])))
        _draw_curve(draw, frame.place(ends), _Style(FAINT_INK, (5, 4), ""), _PALE_LINE)
    for curve, style in zip(curves, styles, strict=True):
        pixels = frame.place(curve.trend)
        _draw_curve(draw, pixels, style, _LINE)
        _draw_markers(draw, _with_markers(pixels, len(curves)), style)
        for point in pixels[curve.trend[:, 0] == mark] if len(pixels) <= _MANY_POINTS else ():
            _draw_ring(draw, point, style.colour)
    for (x, y), style in zip(samples, styles, strict=True):
        _draw_curve(draw, np.array(((x, y), (x + _SAMPLE, y)), dtype=np.float64), style, _LINE)
        _draw_markers(draw, np.array(((x + _SAMPLE / 2, y),)), style)
    return large.reduce(SMOOTH)


def _with_markers(pixels: np.ndarray, num_curves: int) -> np.ndarray:
    """The points of a line that have a marker: all of a short line, some of a longer one if there are several lines."""
    if len(pixels) <= _FEW_POINTS:
        return pixels
    return pixels[:: len(pixels) // _NUM_MARKERS] if num_curves > 1 else pixels[:0]


def _draw_curve(draw: ImageDraw.ImageDraw, pixels: np.ndarray, style: _Style, width: float) -> None:
    """Draw lines through the finite runs of the points, (n, 2) in pixels."""
    large = (pixels + 0.5) * SMOOTH
    gaps = np.flatnonzero(~np.isfinite(large[:, 1]))
    for start, end in pairwise([-1, *gaps.tolist(), len(large)]):
        run = large[start + 1 : end]
        for part in _dashed(run, style.dashes) if style.dashes else (run,):
            if len(part) > 1:
                draw.line([(x, y) for x, y in part.tolist()], style.colour, round(width * SMOOTH), joint="curve")


def _dashed(points: np.ndarray, dashes: tuple[float, ...]) -> list[np.ndarray]:
    """The dashes of a line through the points (n, 2), each an array of points."""
    lengths = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate(((0.0,), np.cumsum(lengths)))  # distance of each point from the start of the line
    count = int(2 * along[-1] / (min(dashes) * SMOOTH)) + 2
    borders = list(accumulate((length * SMOOTH for length, _ in zip(cycle(dashes), range(count))), initial=0.0))
    parts = []
    for start, end in list(pairwise(borders))[::2]:
        if start >= along[-1]:
            break
        inner = points[(along > start) & (along < end)]
        ends = [[np.interp(at, along, points[:, axis]) for axis in (0, 1)] for at in (start, min(end, along[-1]))]
        parts.append(np.concatenate((ends[:1], inner, ends[1:])))
    return parts


def _draw_markers(draw: ImageDraw.ImageDraw, pixels: np.ndarray, style: _Style) -> None:
    """Draw a marker on each finite point of (n, 2) pixels, with a pale border where lines cross."""
    for x, y in ((pixels[np.isfinite(pixels[:, 1])] + 0.5) * SMOOTH).tolist():
        for radius, colour in ((_MARKER + 1, PAPER), (_MARKER, style.colour)):
            _draw_marker(draw, x, y, radius * SMOOTH, style.marker, colour)


def _draw_marker(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, marker: str, colour: Colour) -> None:
    corners = _MARKERS[marker]
    if corners:
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in corners], colour)
    else:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


def _draw_ring(draw: ImageDraw.ImageDraw, pixel: np.ndarray, colour: Colour) -> None:
    """Draw a ring around a point, if it is finite."""
    if not np.isfinite(pixel).all():
        return
    (x, y), radius = ((pixel + 0.5) * SMOOTH).tolist(), (_MARKER + 4) * SMOOTH
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), None, colour, round(2 * SMOOTH))
