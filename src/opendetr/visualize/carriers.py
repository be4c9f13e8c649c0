"""A chart of the queries that carry the objects of a video, over its frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from opendetr.visualize.axes import MARGIN, Frame, Ticks, draw_axes, draw_axis_names, draw_title
from opendetr.visualize.style import INK, PAPER, SMOOTH, Colour, font_of
from opendetr.visualize.trails import track_colour

_LINE, _POINT, _MARK = 3.0, 2.2, 6.0  # width of lines, radius of points and of marks in pixels
_UNMATCHED: Colour = (190, 194, 201)
_NUM_NAMED = 24  # objects in the legend
# Corners of the marks of the first, second and third reason, in units of the radius.
_SHAPES = (
    ((0, 1.3), (-1.2, -0.8), (1.2, -0.8)),
    ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    ((0, -1.4), (1.2, 0), (0, 1.4), (-1.2, 0)),
)


def draw_carriers(
    points: Mapping[int, np.ndarray],
    unmatched: np.ndarray,
    switches: Iterable[tuple[float, float, int, str]],
    reasons: Mapping[str, str],
    title: str = "",
    *,
    y_label: str = "query",
    size: tuple[int, int] = (1200, 640),
) -> Image.Image:
    """Draw which query carries which object in each frame, one colour per object.

    Args:
        points: id of an object -> (n, 2), the frames in ascending order and the query that carries it in each.
        unmatched: (m, 2), frames and queries of predictions without an object, in grey.
        switches: frame, query, object and reason of each change of an id. The mark is at the new query.
        reasons: at most three reasons -> their texts in the legend.
        title: text above the chart.
        y_label: what carries the objects.
        size: width and height of the image in pixels.
    """
    chart = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(chart)
    top = draw_title(draw, title, size[0])
    switches = list(switches)
    top, samples = _draw_legend(draw, list(points), switches, reasons, top, size[0])
    top = draw_axis_names(draw, "frame", y_label, top, size)
    every = np.concatenate([*points.values(), unmatched, np.zeros((0, 2))])
    low, high = (every.min(0), every.max(0)) if len(every) else (np.zeros(2), np.ones(2))
    x = Ticks.linear(low[0], max(high[0], low[0] + 1), 10, integers=True)
    y = Ticks.linear(low[1] - 0.5, max(high[1], low[1]) + 0.5, 8, integers=True)
    frame = draw_axes(draw, (MARGIN, top + 10, size[0] - MARGIN - 6, size[1] - 56), x, y)
    large = chart.resize((chart.width * SMOOTH, chart.height * SMOOTH), Image.Resampling.NEAREST)
    _draw_points(ImageDraw.Draw(large), frame, points, unmatched)
    pen = ImageDraw.Draw(large)
    for column, row, number, reason in switches:
        ((mark_x, mark_y),) = frame.place(np.array(((column, row),)))
        _draw_mark(pen, list(reasons).index(reason), mark_x, mark_y, track_colour(number))
    for reason, (sample_x, sample_y) in samples.items():
        _draw_mark(pen, list(reasons).index(reason), sample_x, sample_y, PAPER)
    return large.reduce(SMOOTH)


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    objects: Sequence[int],
    switches: Sequence[tuple[float, float, int, str]],
    reasons: Mapping[str, str],
    top: int,
    width: int,
) -> tuple[int, dict[str, tuple[float, float]]]:
    """Write the objects in their colours, then the reasons with their counts.

    Returns:
        The y coordinate of the legend's end, and the places of the marks of the reasons.
    """
    font = font_of(14)
    x: float = MARGIN
    for number in objects[:_NUM_NAMED]:
        text = f"object {number}"
        length = 22 + font.getlength(text)
        if x > MARGIN and x + length > width - MARGIN:
            x, top = MARGIN, top + 22
        draw.rectangle((x, top + 3, x + 14, top + 13), track_colour(number))
        draw.text((x + 20, top + 8), text, INK, font, anchor="lm")
        x += length + 18
    if len(objects) > _NUM_NAMED:
        draw.text((x, top + 8), f"and {len(objects) - _NUM_NAMED} more", INK, font, anchor="lm")
    top, x, samples = top + 26, MARGIN, {}
    draw.text((x, top + 8), f"switches: {len(switches)}", INK, font, anchor="lm")
    x += font.getlength(f"switches: {len(switches)}") + 24
    for reason, text in reasons.items():
        count = sum(each == reason for *_, each in switches)
        samples[reason] = (x + 6, top + 8.0)
        draw.text((x + 18, top + 8), f"{text}: {count}", INK, font, anchor="lm")
        x += font.getlength(f"{text}: {count}") + 42
    return top + 28, samples


def _draw_points(
    draw: ImageDraw.ImageDraw, frame: Frame, points: Mapping[int, np.ndarray], unmatched: np.ndarray
) -> None:
    """Draw the points, and lines between those of neighbouring frames; thin where the query changes."""
    for column, row in (frame.place(unmatched) + 0.5) * SMOOTH if len(unmatched) else ():
        _draw_dot(draw, column, row, 0.7 * _POINT, _UNMATCHED)
    for number, rows in points.items():
        colour = track_colour(number)
        pixels = (frame.place(rows) + 0.5) * SMOOTH
        for index in range(len(rows) - 1):
            if rows[index + 1, 0] - rows[index, 0] == 1:
                width = _LINE if rows[index + 1, 1] == rows[index, 1] else 0.4 * _LINE
                draw.line([*map(tuple, pixels[index : index + 2])], colour, round(width * SMOOTH))
        for column, row in pixels:
            _draw_dot(draw, column, row, 0.5 * _LINE, colour)


def _draw_dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    reach = radius * SMOOTH
    draw.ellipse((x - reach, y - reach, x + reach, y + reach), colour)


def _draw_mark(draw: ImageDraw.ImageDraw, shape: int, x: float, y: float, colour: Colour) -> None:
    corners = (np.array(_SHAPES[shape]) * _MARK + (x + 0.5, y + 0.5)) * SMOOTH
    draw.polygon([*map(tuple, corners)], colour, INK, round(1.4 * SMOOTH))
