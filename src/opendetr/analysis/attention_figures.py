"""Static figures of attention for papers: those of the DETR paper (figures 3 and 6), for any member of the family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from opendetr.analysis.attention import DenseAttention, ImageAttention, SampledAttention, encoder_level
from opendetr.visualize import (
    LEVELS,
    PALETTE,
    contact_sheet,
    draw_boxes,
    draw_colours,
    draw_heat,
    draw_rings,
    draw_weighted_points,
    save_image,
)

_NUM_POINTS = 4  # from which the encoder's attention is drawn, as in the paper
_MAX_CELLS = 1024  # of the level from which deformable attention is drawn
_NUM_DETECTIONS = 8  # of which the decoder's attention is drawn
_COLUMNS = 3
_COLOURS = PALETTE[6:7] + PALETTE[5:6] + PALETTE[2:4] + PALETTE[1:2] + PALETTE[0:1]  # bright on a darkened image


def write_figures(folder: Path, attentions: Sequence[ImageAttention]) -> list[Path]:
    """Write the figures of each image as PNG: `encoder-000.png`, `decoder-000.png`, ...

    Args:
        folder: where to write; missing folders are created.
        attentions: see `attention_of`. An image without detections has no figure of the decoder, and a model without
            encoder layers none of the encoder.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, attention in enumerate(attentions):
        drawn = {"encoder": encoder_figure(attention), "decoder": decoder_figure(attention)}
        for name, figure in drawn.items():
            if figure is not None:
                path = folder / f"{name}-{number:03}.png"
                save_image(figure, path)
                files.append(path)
    return files


def encoder_figure(
    attention: ImageAttention, points: Sequence[tuple[float, float]] | None = None
) -> Image.Image | None:
    """The self-attention of the last encoder layer from some points, as in figure 3 of the paper.

    Args:
        attention: see `attention_of`.
        points: x and y in 0..1 of the image; by default the centres of the best detections.

    Returns:
        The image with its points, and one image per point; None without encoder layers.
    """
    if attention.encoder is None:
        return None
    height, width = attention.detections.size
    if points is None:
        boxes = attention.detections.boxes[:_NUM_POINTS] / torch.tensor([width, height] * 2)
        points = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in boxes.clamp(0, 1).tolist()]
        points = points or [(0.5, 0.5)]
    image = attention.detections.image
    colours = [_COLOURS[index % len(_COLOURS)] for index in range(len(points))]
    images = [draw_rings(image, np.array(points), colours)]
    level, cells = encoder_level(attention, _MAX_CELLS)
    grid = attention.grids[level]
    for (x, y), colour in zip(points, colours, strict=True):
        row, column = min(int(y * grid[0]), grid[0] - 1), min(int(x * grid[1]), grid[1] - 1)
        one = attention.encoder.of_rows(torch.tensor([cells.start + row * grid[1] + column]))
        drawn = _drawn(image, one, 0, 0)
        images.append(draw_rings(drawn, np.array([(x, y)]), [colour]))
    titles = ["image", *(f"from point {number + 1}" for number in range(len(points)))]
    return contact_sheet(images, min(_COLUMNS, len(images)), titles)


def decoder_figure(attention: ImageAttention, layer: int = -1) -> Image.Image | None:
    """The attention of a decoder layer for the eight best detections, as in figure 6 of the paper.

    The first image shows the detections together: each has its colour, and dense attention is drawn in the same one. An
    image per detection follows. Of Conditional DETR, the spatial part is drawn.

    Args:
        attention: see `attention_of`.
        layer: index of the decoder layer; by default the last one.

    Returns:
        The images; None if there are no detections.
    """
    detections = attention.detections[:_NUM_DETECTIONS]
    if not len(detections):
        return None
    decoder = attention.decoder if attention.spatial is None else attention.spatial
    colours = [_COLOURS[index % len(_COLOURS)] for index in range(len(detections))]
    boxes, captions = detections.boxes.numpy(), detections.names
    canvas = detections.image
    if isinstance(decoder, DenseAttention):
        maps = [decoder.maps[layer, :, index].mean(0).numpy() for index in range(len(detections))]
        canvas = draw_colours(canvas, maps, colours, scale=1)
    images = [draw_boxes(canvas, boxes, captions, colours)]
    for index in range(len(detections)):
        drawn = _drawn(detections.image, decoder, layer, index)
        scale = drawn.width / detections.size[1]
        images.append(draw_boxes(drawn, boxes[index : index + 1] * scale, [""], [(255, 255, 255)], scale=1))
    scores = detections.scores.tolist()
    titles = ["detections", *(f"{name} {score:.2f}" for name, score in zip(captions, scores, strict=True))]
    return contact_sheet(images, _COLUMNS, titles)


def _drawn(image: np.ndarray, attention: DenseAttention | SampledAttention, layer: int, row: int) -> Image.Image:
    """The attention of one row: the mean of the heads as a heat map, or the points of all heads."""
    if isinstance(attention, DenseAttention):
        return draw_heat(image, attention.maps[layer, :, row].mean(0).numpy())
    weights = attention.weights[layer, :, row]  # (H, S, P)
    levels = torch.arange(weights.shape[1])[None, :, None].expand_as(weights).flatten().tolist()
    colours = [LEVELS[level % len(LEVELS)] for level in levels]
    points = attention.points[layer, :, row].flatten(0, 2).numpy()
    return draw_weighted_points(image, points, weights.flatten().numpy(), colours)
