"""Bar charts, panels of points, and matrices of shaded cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from opendetr.visualize.axes import MARGIN, Ticks, draw_axes, draw_axis_names, draw_heading
from opendetr.visualize.style import FAINT_INK, INK, PALETTE, PAPER, RULE, SMOOTH, Colour, fitted, font_of

_WIDTH = 960
_BAR = 17  # height of a bar in pixels
_LONGEST_NAME = 300  # pixels
_POINT = 2.2  # radius of a point in pixels
_COLUMNS = 5  # panels in a row
_MOST_NUMBERED = 24  # rows of a matrix whose cells show their numbers


def draw_bars(
    series: Mapping[str, Mapping[str, float | None]],
    title: str = "",
    *,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    limit: float | None = None,
    width: int = _WIDTH,
) -> Image.Image:
    """Draw horizontal bars: a group for each name, with a bar for each series, and its value behind it.

    Args:
        series: the values of each series, by the name of the group. None and negative values have no bar.
        title: text above the chart.
        intervals: for some values the ends of an interval, which is drawn over the bar.
        limit: the value of a bar of full length. Default: the largest value.
        width: width of the image in pixels.
    """
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(series)}
    intervals = intervals or {}
    font, small = font_of(14), font_of(12)
    left = MARGIN + min(max((font.getlength(name) for name in names), default=0.0), _LONGEST_NAME) + 12
    known = [value for values in series.values() for value in values.values() if value is not None]
    known += [high for ends in intervals.values() for _, high in ends.values()]
    longest = max([*known, 0.0]) if limit is None else limit
    scale = (width - MARGIN - 110 - left) / (longest or 1.0)
    row = _BAR * len(series) + 10
    chart = Image.new("RGB", (width, row * len(names) + 200), PAPER)
    draw = ImageDraw.Draw(chart)
    y = draw_heading(draw, title, colours if len(series) > 1 else {}, width)
    for name in names:
        draw.text((left - 12, y + row / 2), fitted(name, font, _LONGEST_NAME), INK, font, anchor="rm")
        top = y + 5
        for label, values in series.items():
            value, ends = values.get(name), intervals.get(label, {}).get(name)
            end = left + max(scale * (value or 0.0), 0.0)
            if value is not None and value > 0:
                draw.rectangle((left, top + 1, max(end, left + 1), top + _BAR - 3), colours[label])
            if ends is not None:
                _draw_interval(draw, [left + max(scale * side, 0.0) for side in ends], top + _BAR / 2 - 1)
                end = max(end, left + scale * ends[1])
            if name in values:
                text = "-" if value is None else f"{value:,.3f}"
                draw.text((end + 8, top + _BAR / 2), text, FAINT_INK, small, anchor="lm")
            top += _BAR
        y += row
    draw.line((left - 1, y, left - 1, y - row * len(names)), RULE, 1)
    return chart.crop((0, 0, width, round(y) + MARGIN))


def _draw_interval(draw: ImageDraw.ImageDraw, ends: Sequence[float], y: float) -> None:
    """A line between two x coordinates with an upright line at each end, with a pale border."""
    low, high = (round(end) for end in ends)
    for colour, wide in ((PAPER, 3), (INK, 1)):
        draw.line((low, y, high, y), colour, wide)
        for x in (low, high):
            draw.line((x, y - 4, x, y + 4), colour, wide)


def draw_points(
    panels: Mapping[str, Sequence[tuple[np.ndarray, Colour]]],
    title: str = "",
    *,
    legend: Mapping[str, Colour] | None = None,
    x_label: str = "",
    y_label: str = "",
    width: int = _WIDTH,
) -> Image.Image:
    """Draw square panels of points in 0..1, with y pointing down as in an image.

    Args:
        panels: for each panel, by its name, the points (n, 2) of each colour. Later colours are drawn on top.
        title: text above the panels.
        legend: the meaning of the colours.
        x_label: what x is, the same in all panels.
        y_label: likewise.
        width: width of the image in pixels.
    """
    columns = max(1, min(_COLUMNS, len(panels)))
    side = (width - 2 * MARGIN - 12 * (columns - 1)) // columns
    rows = -(-len(panels) // columns)
    chart = Image.new("RGB", (width, 160 + rows * (side + 34)), PAPER)
    draw = ImageDraw.Draw(chart)
    y = draw_heading(draw, title, legend or {}, width)
    if x_label or y_label:
        draw.text((MARGIN, y), f"right: {x_label}; down: {y_label}", FAINT_INK, font_of(13))
        y += 24
    for index, (name, groups) in enumerate(panels.items()):
        left = MARGIN + (index % columns) * (side + 12)
        top = round(y) + (index // columns) * (side + 34)
        draw.text((left, top + 10), fitted(name, font_of(13), side), INK, font_of(13), anchor="lm")
        chart.paste(_panel(groups, side), (left, top + 22))
    return chart.crop((0, 0, width, round(y) + rows * (side + 34) + MARGIN // 2))


def _panel(groups: Sequence[tuple[np.ndarray, Colour]], side: int) -> Image.Image:
    large = Image.new("RGB", (side * SMOOTH, side * SMOOTH), PAPER)
    draw = ImageDraw.Draw(large)
    radius = _POINT * SMOOTH
    for points, colour in groups:
        for x, y in (points.clip(0, 1) * (large.width - 1)).tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    draw.rectangle((0, 0, large.width - 1, large.height - 1), outline=RULE, width=SMOOTH)
    return large.reduce(SMOOTH)


def draw_matrix(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    *,
    x_label: str = "",
    y_label: str = "",
    texts: Sequence[Sequence[str]] | None = None,
    width: int = _WIDTH,
) -> Image.Image:
    """Draw a matrix of cells that are darker for larger values.

    Args:
        values: (n, m) in 0..1, the shades.
        rows: n names, written to the left.
        columns: m names, written upright above the cells.
        title: text above the matrix.
        x_label: what the columns are.
        y_label: what the rows are.
        texts: n x m texts of the cells. They are left out if there are too many.
        width: width of the image in pixels.
    """
    font = font_of(13)
    longest = [max((min(font.getlength(name), 150.0) for name in names), default=0.0) for names in (rows, columns)]
    left = MARGIN + round(longest[0]) + 10
    cell = max(8, min(64, (width - MARGIN - left) // max(len(columns), 1)))
    step = -(-15 // cell)  # of many rows, only some have room for their names
    high = min(cell, 36)
    chart = Image.new("RGB", (width, 170 + round(longest[1]) + high * len(rows)), PAPER)
    draw = ImageDraw.Draw(chart)
    y = draw_heading(draw, title, {}, width)
    if x_label or y_label:
        draw.text((MARGIN, y), f"across: {x_label}; down: {y_label}", FAINT_INK, font)
        y += 24
    top = round(y + longest[1] + 8)
    for index in range(0, len(columns), step):
        _write_upright(chart, fitted(columns[index], font, 150), (left + index * cell + cell // 2, top - 6))
    for index in range(0, len(rows), -(-15 // high)):
        place = (left - 8, top + index * high + high / 2)
        draw.text(place, fitted(rows[index], font, 150), INK, font, anchor="rm")
    has_texts = texts is not None and max(len(rows), len(columns)) <= _MOST_NUMBERED
    for row, column in np.ndindex(*values.shape):
        x0, y0 = left + column * cell, top + row * high
        strength = float(np.clip(values[row, column], 0, 1)) if np.isfinite(values[row, column]) else 0.0
        red, green, blue = (round(255 + strength * (value - 255)) for value in PALETTE[0])
        draw.rectangle((x0, y0, x0 + cell - 2, y0 + high - 2), (red, green, blue), RULE)
        if has_texts:
            assert texts is not None
            ink = PAPER if strength > 0.5 else INK
            place = (x0 + cell / 2 - 1, y0 + high / 2 - 1)
            draw.text(place, fitted(texts[row][column], font_of(12), cell - 4), ink, font_of(12), anchor="mm")
    return chart.crop((0, 0, width, top + high * len(rows) + MARGIN))


def _write_upright(chart: Image.Image, text: str, place: tuple[int, int]) -> None:
    """Write a text that is turned to the left; its end is above `place`."""
    font = font_of(13)
    box = font.getbbox(text)
    label = Image.new("RGB", (max(round(box[2]), 1) + 2, round(box[3]) + 4), PAPER)
    ImageDraw.Draw(label).text((0, 0), text, INK, font)
    turned = label.rotate(90, expand=True)
    chart.paste(turned, (place[0] - turned.width // 2, place[1] - turned.height))


def draw_histogram(
    counts: np.ndarray, edges: np.ndarray, title: str = "", *, x_label: str = "", y_label: str = "", width: int = _WIDTH
) -> Image.Image:
    """Draw the counts (n,) between n + 1 edges as upright bars."""
    size = (width, 420)
    chart = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(chart)
    y = draw_heading(draw, title, {}, width)
    y = draw_axis_names(draw, x_label, y_label, y, size)
    integers = bool(np.all(edges % 0.5 == 0))
    x_ticks = Ticks.linear(float(edges[0]), float(edges[-1]), 10, integers=integers)
    y_ticks = Ticks.linear(0, max(float(counts.max(initial=0)), 1.0), 5, whole=True, integers=True)
    frame = draw_axes(draw, (MARGIN, y + 10, width - MARGIN - 6, size[1] - 56), x_ticks, y_ticks)
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        (x0, y0), (x1, y1) = frame.place(np.array(((low, count), (high, 0.0)))).round().tolist()
        if count:
            draw.rectangle((x0 + 1, min(y0, y1 - 1), max(x1 - 1, x0 + 1), y1 - 1), PALETTE[0])
    draw.line((frame.left, frame.bottom, frame.right, frame.bottom), RULE, 1)
    return chart
