"""The interactive part of the analysis page that shows what a detector attends to.

The fragment contains its styles, data and script, and loads nothing. The numbers of an image are a JSON object in a
separate `<script>`. Its arrays are compressed and in base64: `weights` are shares of the largest weight of a row,
in 8 bits; `largest` are these weights, float32; `points` are 16-bit places between `_PLACES`. The script that reads
them is `assets/attention.js`.

Shape letters: L layers, H heads, n rows, N keys, S levels, P points per head and level.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from opendetr.analysis.attention import Attention, DenseAttention, ImageAttention, attention_of
from opendetr.data import DetectionData, ImageRecord
from opendetr.inference import Predictor
from opendetr.visualize import COVER, HEAT, LEVELS, POINT_RADIUS

IMAGE_BYTES = 1_150_000
"""Largest size of an image in the page with all its numbers, which keeps 20 images below 25 MB."""

_PIXEL_BYTES = 200_000  # of the image itself
_DECODER_BYTES = 550_000  # that the encoder leaves to the decoder, if it needs them
_LONGEST_SIDE = 800  # of an image in the page, in pixels
_PLACES = (-1.0, 2.0)  # points further outside of the image are moved to its surroundings
_COMPRESSION = 6

_INTRODUCTION = (
    "Move the mouse over a detection, or tab to it, to see what the decoder attends to for it. Click anywhere in the "
    "image, or focus it and use the arrow keys, to see the self-attention of the encoder from that point."
)
_STAGE = (
    "Image with its detections. Click, or use the arrow keys, to see the self-attention of the encoder from a point. "
    "Escape returns to the detections."
)


def attention_section(detector: Predictor, data: DetectionData, records: Sequence[ImageRecord]) -> str:
    """The HTML fragment of the attention of a detector in some images of a dataset; see `attention_of`."""
    return attention_fragment(attention_of(detector, data, records))


def attention_fragment(attentions: Iterable[ImageAttention]) -> str:
    """The HTML fragment of captured attention; a note if there are no images. A page may contain several fragments."""
    packed = [pack(attention) for attention in attentions]
    if not packed:
        return '<p class="note">No image could be read.</p>'
    settings = {
        "heat": HEAT,
        "levels": [f"rgb{colour}" for colour in LEVELS],
        "cover": COVER,
        "radius": POINT_RADIUS,
        "places": _PLACES,
    }
    scripts = (_json_script("data", image) for image in packed)
    return f"""<section class="attention" aria-label="Attention">
<style>
{_asset("attention.css")}</style>
<noscript><p>This part of the page needs JavaScript.</p></noscript>
<p>{_INTRODUCTION}</p>
<div class="attention-strip" role="group" aria-label="Images"></div>
<div class="attention-columns">
<div>
<div class="attention-stage" tabindex="0" role="application" aria-label="{_STAGE}">
<img alt=""><canvas aria-hidden="true"></canvas><div class="attention-point" hidden></div>
</div>
</div>
<div>
<div class="attention-detections" role="group" aria-label="Detections"></div>
<p class="attention-none" hidden>The detector found nothing in this image.</p>
<label class="attention-slider attention-layer"><span>Layer</span><input type="range" min="1" step="1"><output></output>
</label>
<label class="attention-slider attention-head"><span>Head</span><input type="range" min="0" step="1" value="0"><output>
</output></label>
{_parts()}
<div class="attention-status" role="status"></div>
<div class="attention-legend"></div>
<div class="attention-words"></div>
</div>
</div>
{_json_script("settings", settings)}
{"".join(scripts)}<script>
{_asset("attention.js")}</script>
</section>
"""


def _parts() -> str:
    """The choice between the whole attention and its spatial part, for a model that separates them."""
    buttons = (
        f'<label><input type="radio" name="part" value="{value}"{checked}>{text}</label>'
        for value, checked, text in (
            ("spatial", " checked", "position only"),
            ("decoder", "", "content and position"),
        )
    )
    # Buttons exclude each other only inside their form, so several fragments of a page do not interfere.
    return f'<form><fieldset hidden aria-label="Part of the attention">{"".join(buttons)}</fieldset></form>'


def _asset(name: str) -> str:
    return (resources.files("opendetr") / "assets" / name).read_text(encoding="utf-8")


def _json_script(name: str, value: Any) -> str:
    # "<" would end the script inside of "</script>".
    content = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" class="attention-{name}">{content}</script>\n'


# ------------------------------------------------------------------------------------------------------- the numbers


def pack(attention: ImageAttention) -> dict[str, Any]:
    """One image with its numbers as plain values, at most `IMAGE_BYTES` as JSON.

    What does not fit is left out: first the resolution of the encoder's attention, then the last detections.
    """
    height, width = attention.detections.size
    pixels = _jpeg(attention.detections.image)
    left = IMAGE_BYTES - len(pixels)
    shown = len(attention.queries)
    decoder = _packed_decoder(attention, shown)
    encoder = _fitting_encoder(attention, left - min(_size(*decoder), _DECODER_BYTES))
    while shown > 1 and _size(*decoder) > left - _size(encoder):
        shown = shown * 5 // 6
        decoder = _packed_decoder(attention, shown)
    detections = attention.detections[:shown]
    edges = detections.boxes / torch.tensor([width, height] * 2)
    boxes = edges.clamp(0, 1).double().numpy().round(4).tolist()
    return {
        "name": attention.name,
        "width": width,
        "height": height,
        "pixels": pixels,
        "detections": [
            {"name": name, "score": f"{score:.2f}", "box": box}
            for name, score, box in zip(detections.names, detections.scores.tolist(), boxes, strict=True)
        ],
        "decoder": decoder[0],
        "spatial": decoder[1],
        "encoder": encoder,
    }


def _packed_decoder(attention: ImageAttention, shown: int) -> tuple[dict[str, Any] | None, ...]:
    """The decoder's attention and its spatial part for the first detections."""
    parts = (attention.decoder, attention.spatial)
    return tuple(
        None if part is None else _packed(part.of_rows(torch.arange(shown)), attention.grids) for part in parts
    )


def _fitting_encoder(attention: ImageAttention, limit: int) -> dict[str, Any] | None:
    """The encoder's attention in the finest resolution that takes at most `limit` bytes."""
    encoder, heads = attention.encoder, attention.decoder.weights.shape[1]
    if encoder is None:
        return None
    for step in range(1, max(attention.grids[-1]) + 1):
        levels = range(len(attention.grids)) if step == 1 else [len(attention.grids) - 1]
        for level in levels:
            grid = _coarser(attention.grids[level], step)
            if isinstance(encoder, DenseAttention):
                packed = _packed(_pooled(encoder, attention.grids[0], step), attention.grids)
            else:
                rows = _rows_of(attention.grids, level, grid)
                if rows.numel() * encoder.weights[0, :, 0].numel() > limit:  # each point takes some bytes
                    continue
                packed = _packed(encoder.of_rows(rows), attention.grids)
            packed |= {"grid": grid, "level": level, "averaged": heads}
            if _size(packed) <= limit:
                return packed
    return packed


def _coarser(grid: tuple[int, int], step: int) -> tuple[int, int]:
    return -(-grid[0] // step), -(-grid[1] // step)


def _rows_of(grids: Sequence[tuple[int, int]], level: int, grid: tuple[int, int]) -> Tensor:
    """The rows of the cells of a level that are nearest to the centres of the cells of a coarser grid."""
    height, width = grids[level]
    y, x = (((torch.arange(few) + 0.5) * many / few).long() for few, many in zip(grid, (height, width), strict=True))
    start = sum(h * w for h, w in grids[:level])
    return (start + y[:, None] * width + x).flatten()


def _pooled(attention: DenseAttention, grid: tuple[int, int], step: int) -> DenseAttention:
    """Self-attention from and to blocks of `step` x `step` cells: the mean of the rows and the sum of the keys."""
    if step == 1:
        return attention
    shape = _coarser(grid, step)
    cells = attention.maps.flatten(0, 2)  # (n, h, w)
    keys = F.interpolate(cells[:, None], shape, mode="area")[:, 0].flatten(1)
    keys *= cells.sum((1, 2))[:, None] / keys.sum(1, keepdim=True).clamp(min=1e-12)
    weights = torch.cat((keys, attention.token_weights.flatten(0, 2)), 1)  # (n, N)
    rows = F.interpolate(weights.T.unflatten(1, grid)[None], shape, mode="area")[0].flatten(1).T
    return DenseAttention(rows[None, None], shape, attention.tokens)


def _packed(attention: Attention, grids: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """An attention as plain values; see the top of the file."""
    layers, heads, rows = attention.weights.shape[:3]
    weights = attention.weights.flatten(3).numpy()
    largest = weights.max(-1, initial=0.0)
    shares = np.round(255 * weights / np.maximum(largest, 1e-30)[..., None]).astype(np.uint8)
    common = {
        "layers": layers,
        "heads": heads,
        "rows": rows,
        "size": weights.shape[-1],
        "weights": _compressed(shares),
        "largest": _compressed(largest.astype("<f4")),
    }
    if isinstance(attention, DenseAttention):
        return common | {"kind": "dense", "shape": attention.shape, "tokens": attention.tokens}
    low, high = _PLACES
    places = (attention.points.flatten(3).numpy().clip(low, high) - low) / (high - low)
    return common | {
        "kind": "sampled",
        "points": _compressed(np.round(65535 * places).astype("<u2")),
        "points_per_level": attention.weights.shape[-1],
        "grids": grids,
    }


def _compressed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), _COMPRESSION)).decode("ascii")


def _size(*parts: dict[str, Any] | None) -> int:
    """The number of bytes as JSON, but for a few short values."""
    return sum(len(value) for packed in parts if packed for value in packed.values() if isinstance(value, str))


def _jpeg(pixels: np.ndarray) -> str:
    """An image (H, W, 3) as the address of a JPEG that contains it."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    for quality in (88, 75, 60, 40):
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality, optimize=True)
        address = "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
        if len(address) <= _PIXEL_BYTES:
            break
    return address
