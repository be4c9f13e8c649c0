"""Charts of a dataset: objects by class, sizes of boxes, objects per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from opendetr.visualize.axes import MARGIN, Frame, Ticks, draw_axes, draw_axis_names, draw_heading
from opendetr.visualize.drawing import contact_sheet
from opendetr.visualize.style import FAINT_INK, INK, PALETTE, PAPER, RULE, Colour, fitted, font_of

_SIZE = (960, 540)
_MOST_CLASSES, _NUM_FREQUENT = 30, 20  # of more classes, only the 20 most frequent and the 10 rarest are drawn
_BAR = 15  # height of the bar of a class in pixels
_SIDES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # ticks of box sizes, as fractions of the image
_CELLS = 48  # cells of box sizes along each axis
_MOST_BINS = 40  # bars of objects per image


class Statistics(Protocol):
    """The statistics of a split that `draw_statistics` uses."""

    @property
    def class_counts(self) -> Mapping[str, int]:
        """Class name -> number of its objects."""

    @property
    def box_sizes(self) -> np.ndarray:
        """(n, 2) width and height of each box as fractions of its image."""

    @property
    def objects_per_image(self) -> np.ndarray:
        """(m,) the number of objects of each image."""


def draw_statistics(splits: Mapping[str, Statistics], *, stacked: bool = False) -> Image.Image:
    """Draw the objects by class, the sizes of boxes and the objects per image of the splits of a dataset.

    Args:
        splits: the statistics of each split by its name; at least one. All have the same classes.
        stacked: put the charts below each other, for a page, instead of in two columns.
    """
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(splits)}
    classes, sizes, counts = (draw(splits, colours) for draw in (_draw_classes, _draw_sizes, _draw_objects_per_image))
    if stacked:
        return contact_sheet([classes, sizes, counts], 1)
    sheet = Image.new("RGB", (2 * _SIZE[0], max(classes.height, sizes.height + counts.height)), PAPER)
    for chart, place in ((classes, (0, 0)), (sizes, (_SIZE[0], 0)), (counts, (_SIZE[0], sizes.height))):
        sheet.paste(chart, place)
    return sheet


# ------------------------------------------------------------------------------------------------------------- classes


def _draw_classes(splits: Mapping[str, Statistics], colours: Mapping[str, Colour]) -> Image.Image:
    """A bar for each class and split: the share of the objects of the split that are of this class."""
    totals = {name: max(sum(split.class_counts.values()), 1) for name, split in splits.items()}
    shares = {name: {key: n / totals[name] for key, n in split.class_counts.items()} for name, split in splits.items()}
    sums = Counter[str]()
    for split in splits.values():
        sums.update(split.class_counts)
    ranked = [name for name, _ in sums.most_common()]
    groups = [ranked]
    if len(ranked) > _MOST_CLASSES:
        groups = [ranked[:_NUM_FREQUENT], ranked[_NUM_FREQUENT - _MOST_CLASSES :]]
    font, title = font_of(14), "objects by class, as shares of all objects of the split"
    row = _BAR * len(splits) + 9
    height = sum(map(len, groups)) * row + 26 * (len(groups) - 1)
    chart = Image.new("RGB", (_SIZE[0], height + 100 + 22 * (len(splits) // 4)), PAPER)  # the legend has a few rows
    draw = ImageDraw.Draw(chart)
    legend = {f"{name}: {sum(split.class_counts.values()):,}": colours[name] for name, split in splits.items()}
    y = draw_heading(draw, title, legend, _SIZE[0])
    shown = [name for group in groups for name in group]
    names = min(max((font.getlength(name) for name in shown), default=0), 260)
    left = MARGIN + names + 12
    longest = max((by_class[name] for by_class in shares.values() for name in shown), default=1) or 1
    space = _SIZE[0] - MARGIN - left - 110  # the texts of the bars take 110
    for number, group in enumerate(groups):
        if number:
            hidden = f"{len(ranked) - _MOST_CLASSES:,} other classes are not shown; the rarest follow"
            draw.text((left, y + 8), hidden, FAINT_INK, font_of(13), anchor="lm")
            y += 26
        for name in group:
            centre = y + row / 2
            draw.text((left - 12, centre), fitted(name, font, names + 1), INK, font, anchor="rm")
            top = y + 4
            for split_name, split in splits.items():
                share = shares[split_name][name]
                end = left + max(space * share / longest, 1)
                if share:
                    draw.rectangle((left, top + 1, end, top + _BAR - 2), colours[split_name])
                text = f"{split.class_counts[name]:,} ({share:.1%})"
                draw.text((end + 8, top + _BAR / 2), text, FAINT_INK, font_of(12), anchor="lm")
                top += _BAR
            y += row
    return chart


# --------------------------------------------------------------------------------------------------------------- sizes


def _draw_sizes(splits: Mapping[str, Statistics], colours: Mapping[str, Colour]) -> Image.Image:
    """The width and height of boxes relative to the image: a panel for each split, with darker cells for more boxes."""
    chart = Image.new("RGB", _SIZE, PAPER)
    draw = ImageDraw.Draw(chart)
    y = draw_heading(draw, "width and height of boxes, as fractions of the image; darker: more boxes", {}, _SIZE[0])
    y = draw_axis_names(draw, "width", "height", y, _SIZE)
    known = [split.box_sizes for split in splits.values() if len(split.box_sizes)]
    smallest = min((float(sizes.min()) for sizes in known), default=1.0)
    first = max((index for index, side in enumerate(_SIDES[:-1]) if side <= smallest), default=0)
    sides = np.array(_SIDES[first:])
    ticks = Ticks(np.log10(sides), [f"{side:g}" for side in sides], (float(np.log10(sides[0])), 0.0))
    width = (_SIZE[0] - 2 * MARGIN + 16) / len(splits)
    for index, (name, split) in enumerate(splits.items()):
        left = MARGIN + index * width
        area = (left, y + 30, left + width - 16, _SIZE[1] - 56)
        frame = draw_axes(draw, area, ticks, ticks, vertical=True)
        _draw_cells(draw, frame, np.log10(split.box_sizes.clip(sides[0], 1.0)), colours[name])
        heading = fitted(f"{name}: {_middle_size(split.box_sizes)}", font_of(13), frame.right - frame.left)
        draw.text((frame.left, y + 12), heading, INK, font_of(13), anchor="lm")
    return chart


def _middle_size(sizes: np.ndarray) -> str:
    if not len(sizes):
        return "no boxes"
    width, height = np.median(sizes, 0)
    return f"median {width:.2g} x {height:.2g}"


def _draw_cells(draw: ImageDraw.ImageDraw, frame: Frame, points: np.ndarray, colour: Colour) -> None:
    """Draw the density of points (n, 2) in cells. The shade is that of the logarithm of the count."""
    edges = [np.linspace(low, high, _CELLS + 1) for low, high in (frame.x_range, frame.y_range)]
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], edges)
    most = max(counts.max(), 1)
    corners = frame.place(np.stack(edges, 1)).round()
    for column, row in zip(*np.nonzero(counts), strict=True):
        strength = 0.2 + 0.8 * np.log1p(counts[column, row]) / np.log1p(most)
        shade = tuple(round(255 + strength * (value - 255)) for value in colour)
        x0, x1 = corners[column, 0], corners[column + 1, 0]
        y1, y0 = corners[row, 1], corners[row + 1, 1]
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), shade)


# --------------------------------------------------------------------------------------------------- objects per image


def _draw_objects_per_image(splits: Mapping[str, Statistics], colours: Mapping[str, Colour]) -> Image.Image:
    """The share of the images of each split that have a number of objects."""
    counts = {name: split.objects_per_image for name, split in splits.items() if len(split.objects_per_image)}
    most = max((int(values.max()) for values in counts.values()), default=0)
    num_bins = min(2 * max((len(values) for values in counts.values()), default=1) ** 0.5, _MOST_BINS)
    wide = int(np.ceil((most + 1) / num_bins))  # numbers of objects in one bin
    edges = np.arange(0, most + wide + 1, wide)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in counts.items()}
    chart = Image.new("RGB", _SIZE, PAPER)
    draw = ImageDraw.Draw(chart)
    legend = {
        f"{name}: median {np.median(values):g}, at most {values.max():,}": colours[name]
        for name, values in counts.items()
    }
    y = draw_heading(draw, "objects per image", legend, _SIZE[0])
    x_label = "objects" if wide == 1 else f"objects, {wide} numbers in one bar"
    y = draw_axis_names(draw, x_label, "share of the images of each split", y, _SIZE)
    highest = max((float(share.max()) for share in shares.values()), default=1.0)
    x_ticks = Ticks.linear(0, float(edges[-1]), 10, integers=True)
    # A tick is in the middle of the bar of one number, and at the start of a bar of several.
    x_ticks = Ticks(x_ticks.values, x_ticks.texts, (-0.5, edges[-1] - 0.5) if wide == 1 else (0, float(edges[-1])))
    area = (MARGIN, y + 10, _SIZE[0] - MARGIN - 6, _SIZE[1] - 56)
    frame = draw_axes(draw, area, x_ticks, Ticks.linear(0, highest, 5, whole=True))
    offset = frame.x_range[0]
    for index, (name, share) in enumerate(shares.items()):
        for start, value in zip(edges[:-1], share, strict=True):
            if not value:
                continue
            own = wide * 0.86 / len(shares)
            low = start + offset + 0.07 * wide + index * own
            (x0, y0), (x1, y1) = frame.place(np.array(((low, value), (low + own, 0.0)))).round().tolist()
            draw.rectangle((x0, min(y0, y1 - 1), max(x1 - 1, x0), y1 - 1), colours[name])
    draw.line((frame.left, frame.bottom, frame.right, frame.bottom), RULE, 1)
    return chart
