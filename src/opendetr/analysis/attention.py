"""Captures what a detector attends to: the decoder for its detections, and the encoder from every cell of an image.

The weights come from `opendetr.nn.collect_attention`, so the outputs of the model stay bit-identical.

Shape letters: B batch, Q queries, L decoder layers, H heads, n rows (detections, or cells that attend), N keys,
S levels, P points per head and level, h w cells of a level.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from opendetr.categories import Categories, located_categories
from opendetr.data import DetectionData, ImageRecord, eval_loader, read_record
from opendetr.files import write_atomically
from opendetr.inference import SHOWN_SCORE, Predictor
from opendetr.models import Detector
from opendetr.nn import AttentionModule, AttentionWeights, collect_attention
from opendetr.postprocess import (
    best_of_patches,
    boxes_in_pixels,
    detect_with_queries,
    locate,
    phrases,
    referred_scores,
)
from opendetr.results import Detections
from opendetr.scoring import ScoreThresholds
from opendetr.structures import Batch, CaptionBatch, FeatureMap, GroundingOutput, Output

MAX_SHOWN = 20  # detections of an image
_FEWEST = 3  # detections that are shown of an image in which none reaches the threshold
_MAX_EXACT = 1024  # cells from which exact deformable attention is written, about as many as DETR has


@dataclass(frozen=True)
class DenseAttention:
    """Attention to all cells of an image, and to the tokens of its caption if the model takes text.

    Attributes:
        weights: (L, H, n, N) float32. Each row sums to 1. The first h w keys are the cells of the unpadded image, row
            by row, and the others are tokens.
        shape: h and w.
        tokens: N - h w texts, the tokens of the caption.
    """

    weights: Tensor
    shape: tuple[int, int]
    tokens: tuple[str, ...] = ()

    @property
    def maps(self) -> Tensor:
        """(L, H, n, h, w), the weights of the cells."""
        return self.weights[..., : self.shape[0] * self.shape[1]].unflatten(-1, self.shape)

    @property
    def token_weights(self) -> Tensor:
        """(L, H, n, N - h w), the weights of the tokens."""
        return self.weights[..., self.shape[0] * self.shape[1] :]

    def of_rows(self, rows: Tensor) -> DenseAttention:
        """The attention of some of the n rows."""
        return replace(self, weights=self.weights[:, :, rows])


@dataclass(frozen=True)
class SampledAttention:
    """Deformable attention: the points of an image that are sampled, and their weights.

    Attributes:
        points: (L, H, n, S, P, 2) float32, x and y in 0..1 of the unpadded image. Points may lie outside of it.
        weights: (L, H, n, S, P) float32. They sum to 1 over the levels and points of a row.
    """

    points: Tensor
    weights: Tensor

    def of_rows(self, rows: Tensor) -> SampledAttention:
        """The attention of some of the n rows."""
        return SampledAttention(self.points[:, :, rows], self.weights[:, :, rows])


Attention = DenseAttention | SampledAttention


@dataclass(frozen=True)
class ImageAttention:
    """What a detector attends to in one image.

    Attributes:
        name: the name of the image in its dataset.
        detections: n detections with their image, best first.
        queries: (n,) int64, the query of each detection.
        decoder: the cross-attention of each decoder layer, with a row for each detection.
        spatial: the part of it that follows from places alone, for a model that separates it (Conditional DETR).
        encoder: the self-attention of the last encoder layer with a row for each cell; None without encoder layers.
            Dense attention is the mean of the heads (L = H = 1). Of deformable attention, all heads are kept (L = 1).
        grids: h and w of the cells of each level, fine to coarse, in the order of the rows of `encoder`.
        caption: the caption of the image, for a model that takes text.
    """

    name: str
    detections: Detections
    queries: Tensor
    decoder: Attention
    spatial: DenseAttention | None
    encoder: Attention | None
    grids: tuple[tuple[int, int], ...]
    caption: str | None = None


# ------------------------------------------------------------------------------------------------------------- capture


@dataclass(frozen=True)
class CapturedAttention:
    """The attention weights of one forward pass, for the whole padded batch.

    Attributes:
        decoder: the cross-attention of each decoder layer, for all queries.
        spatial: its spatial part, (B, H, Q, N) for each layer; empty for a model that does not separate it.
        encoder: the self-attention of the last encoder layer; None without encoder layers.
        output: the model's output.
    """

    decoder: tuple[AttentionWeights, ...]
    spatial: tuple[Tensor, ...]
    encoder: AttentionWeights | None
    output: Output

    def decoder_of(self, image: int, queries: Tensor, tokens: tuple[str, ...] = ()) -> Attention:
        """The decoder attention of some queries (n,) of one image, without the padding."""
        return self._of(self.decoder, image, queries, tokens)

    def spatial_of(self, image: int, queries: Tensor, tokens: tuple[str, ...] = ()) -> DenseAttention | None:
        """The spatial part of `decoder_of`."""
        return cast(DenseAttention, self._of(self.spatial, image, queries, tokens)) if self.spatial else None

    def encoder_of(self, image: int, tokens: tuple[str, ...] = ()) -> Attention | None:
        """The encoder attention from every cell of one image, without the padding; see `ImageAttention.encoder`."""
        if self.encoder is None:
            return None
        # A caption's tokens come after the cells: attention from them is not captured.
        levels = self.output.memory[:1] if isinstance(self.encoder, Tensor) else self.output.memory
        rows = torch.cat([_valid(level, image).flatten() for level in levels]).nonzero()[:, 0]
        # The mean of the heads comes first: copies of all heads would take gigabytes for a fine level.
        layer = self.encoder.mean(1, keepdim=True) if isinstance(self.encoder, Tensor) else self.encoder
        return self._of((layer,), image, rows, tokens)

    def grids_of(self, image: int) -> tuple[tuple[int, int], ...]:
        """See `ImageAttention.grids`."""
        levels = self.output.memory[:1] if isinstance(self.decoder[0], Tensor) else self.output.memory
        return tuple(_size(_valid(level, image)) for level in levels)

    def _of(self, layers: Sequence[AttentionWeights], image: int, rows: Tensor, tokens: tuple[str, ...]) -> Attention:
        memory = self.output.memory
        if isinstance(layers[0], Tensor):
            valid = torch.cat([_valid(level, image).flatten() for level in memory])
            rows, keys = rows.to(valid.device), valid.nonzero()[:, 0]
            weights = [cast(Tensor, layer)[image][:, rows][..., keys] for layer in layers]
            return DenseAttention(torch.stack(weights).cpu(), _size(_valid(memory[0], image)), tokens)
        samples = [cast(Any, layer) for layer in layers]
        rows = rows.to(samples[0].weights.device)
        points = torch.stack([layer.locations[image, rows] for layer in samples])  # (L, n, H, S, P, 2)
        # The model places its points relative to the part of each level that is not padding.
        shares = torch.tensor([_share(_valid(level, image)) for level in memory], device=points.device)
        points = points / shares[:, None]
        shares_of_points = torch.stack([layer.weights[image, rows] for layer in samples])
        return SampledAttention(points.transpose(1, 2).cpu(), shares_of_points.transpose(1, 2).cpu())


def capture(model: Detector, run: Callable[[], Output]) -> CapturedAttention:
    """Run a model and keep its attention weights.

    Args:
        model: any model of the family.
        run: runs the model once on B images and returns its output. If it decodes several times, the first counts.

    Raises:
        Exception: what `run` raises. No hook stays on the model.
    """
    prefix = "" if model.detector_part is None else f"{model.detector_part}."
    modules = {name: module for name, module in model.named_modules() if isinstance(module, AttentionModule)}
    cross = [name for name in modules if name.startswith(f"{prefix}decoder.") and name.endswith(".cross_attention")]
    encoder = [name for name in modules if name.startswith(f"{prefix}encoder.layers.")]
    pattern = f"{prefix}decoder.*.cross_attention"
    with torch.no_grad(), ExitStack() as stack:
        collected = stack.enter_context(collect_attention(model, pattern))
        spatial: dict[str, list[AttentionWeights]] = {}
        if all(hasattr(modules[name], "spatial_weights") for name in cross):
            spatial = stack.enter_context(collect_attention(model, pattern, "spatial_weights"))
        last = stack.enter_context(collect_attention(model, encoder[-1])) if encoder else {}
        output = run()
    return CapturedAttention(
        tuple(collected[name][0] for name in cross),
        tuple(cast(Tensor, spatial[name][0]) for name in cross if spatial),
        last[encoder[-1]][0] if encoder else None,
        output,
    )


def _valid(level: FeatureMap, image: int) -> Tensor:
    """(h, w) bool, the cells of an image that are not padding."""
    if level.padding is None:
        return torch.ones(level.values.shape[-2:], dtype=torch.bool, device=level.values.device)
    return ~level.padding[image]


def _size(valid: Tensor) -> tuple[int, int]:
    """The number of rows and columns with valid cells: padding is at the bottom and at the right."""
    return int(valid.any(1).sum()), int(valid.any(0).sum())


def _share(valid: Tensor) -> tuple[float, float]:
    """The share of the width and of the height of a level without padding."""
    height, width = _size(valid)
    return width / valid.shape[1], height / valid.shape[0]


# ----------------------------------------------------------------------------------------------------------- a dataset


def attention_of(
    detector: Predictor,
    data: DetectionData,
    records: Sequence[ImageRecord],
    *,
    min_score: float | None = None,
    max_detections: int = MAX_SHOWN,
) -> Iterator[ImageAttention]:
    """What a detector attends to in some images of a dataset. Unreadable images are skipped.

    For a model without attention, such as a Faster R-CNN, there is nothing.

    Every image is decoded on its own; a frame of a video as the first one. A model that takes text gets the caption of
    the image, and one that locates patches those of the evaluation.

    Args:
        detector: the detector.
        data: the dataset of the records.
        records: the images, in the order of the result.
        min_score: detections with a lower score are left out. Default: the thresholds stored with the model, or 0.3. Of
            an image without such detections, the best three are kept.
        max_detections: largest number of detections of an image.
    """
    if not any(isinstance(module, AttentionModule) for module in detector.model.modules()):
        return
    config = replace(detector.preset.data, num_workers=0)  # a few images are not worth loader processes
    loader = eval_loader(data.subset(records, data.split), config, batch_size=1, device=detector.device)
    by_id = {record.id: record for record in records}
    found: dict[int, ImageAttention] = {}
    order = [record.id for record in records]
    for group in loader.groups():
        for batch in group:
            record = by_id[batch.targets[0].image_id]
            name = data.file_name(record)
            found[record.id] = _attention_of_batch(detector, batch, record, name, min_score, max_detections)
            while order and order[0] in found:  # the loader groups images by shape
                yield found.pop(order.pop(0))
    for image_id in order:  # after an unreadable one
        if image_id in found:
            yield found[image_id]


@torch.inference_mode()
def _attention_of_batch(
    detector: Predictor, batch: Batch, record: ImageRecord, name: str, min_score: float | None, max_detections: int
) -> ImageAttention:
    """The attention in the only image of a batch, which is that of the record."""
    detector.session.reset()
    images, prompt = batch.images.to(detector.device), detector.preset.prompt(batch)
    captured = capture(detector.model, lambda: detector.session.step(images, prompt))
    caption = batch.captions[0] if isinstance(batch, CaptionBatch) else None
    detections, queries = _detections(detector, captured.output, batch, caption)
    kept = _shown(detector, detections, min_score)[:max_detections]
    detections = replace(detections[kept], image=read_record(record), source=str(record.path))
    queries = queries[kept]
    tokens = _tokens(captured.output, caption)
    return ImageAttention(
        name,
        detections,
        queries,
        captured.decoder_of(0, queries, tokens),
        captured.spatial_of(0, queries, tokens),
        captured.encoder_of(0, tokens),
        captured.grids_of(0),
        caption,
    )


def _detections(detector: Predictor, output: Output, batch: Batch, caption: str | None) -> tuple[Detections, Tensor]:
    """All detections in the only image of a batch, best first, and the query of each, (n,)."""
    original = batch.targets[0].original_size
    sizes = torch.tensor([original])
    if caption is not None:
        grounded = cast(GroundingOutput, output)
        scores = referred_scores(grounded).cpu()[0]
        queries = scores.argsort(descending=True, stable=True)
        boxes = boxes_in_pixels(output.final, sizes).cpu()[0, queries]
        (words,) = phrases(grounded, [caption], [queries])
        labels, categories = torch.zeros(len(queries), dtype=torch.int64), Categories.from_names([caption])
        return Detections(boxes, scores[queries], labels, categories, original, phrases=tuple(words)), queries
    count = detector.model.max_patches
    if count:
        (located,) = locate(output.final, sizes, located_categories(count))
        *_, queries = best_of_patches(output.final, count)
        best_first = located.scores.argsort(descending=True, stable=True)
        return located[best_first], queries.cpu()[0, best_first]
    ((detections, queries),) = detect_with_queries(output.final, sizes, detector.categories)
    return detections, queries


def _shown(detector: Predictor, detections: Detections, min_score: float | None) -> Tensor:
    """The indices of the detections that reach the threshold; of the best ones if none does."""
    chosen = detector.thresholds or ScoreThresholds(SHOWN_SCORE)
    names = detections.categories.names
    lowest = torch.tensor([chosen.of(name) for name in names])
    if min_score is not None:
        lowest.fill_(min_score)
    kept = (detections.scores >= lowest[detections.labels]).nonzero()[:, 0]
    return kept if len(kept) else torch.arange(min(_FEWEST, len(detections)))


def _tokens(output: Output, caption: str | None) -> tuple[str, ...]:
    """The texts of the keys that are not cells of the image."""
    if caption is None:
        return ()
    tokens = cast(GroundingOutput, output).tokens
    spans = tokens.spans[0][~tokens.padding[0]].tolist()
    texts = [caption[begin:end] for begin, end in spans]
    texts = [text or ("[start]" if not index else "[end]") for index, text in enumerate(texts)]
    others = sum(level.values[0, 0].numel() for level in output.memory[2:])  # the token of the whole image
    return (*texts, *("[image]" for _ in range(others)))


# ------------------------------------------------------------------------------------------------------- exact weights


def write_exact(folder: Path, attentions: Sequence[ImageAttention]) -> list[Path]:
    """Write the exact attention weights as JSON, one file per image. Every row sums to 1, but for rounding.

    A file has the `detections` with their `query`; `decoder` (and `spatial`), by layer, head and detection; and
    `encoder`, for the cells of the level that `encoder_grid` gives, row by row. Dense attention has `weights` of the
    cells of `shape`, row by row, and then of the `tokens`. The encoder's are means of the heads. Deformable attention
    has `points` in 0..1 of the image, and their `weights`, by level and point; of the encoder by head and cell.

    Args:
        folder: where to write; missing folders are created.
        attentions: see `attention_of`.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, attention in enumerate(attentions):
        path = folder / f"attention-{number:03}.json"
        write_atomically(path, json.dumps(_exact(attention)))
        files.append(path)
    return files


def encoder_level(attention: ImageAttention, max_cells: int) -> tuple[int, slice]:
    """The finest level with at most `max_cells` cells, or the coarsest: its index, and its rows of `encoder`."""
    counts = [height * width for height, width in attention.grids]
    level = next((index for index, count in enumerate(counts) if count <= max_cells), len(counts) - 1)
    start = sum(counts[:level])
    return level, slice(start, start + counts[level])


def _exact(attention: ImageAttention) -> dict[str, Any]:
    detections = attention.detections
    rows = zip(detections.names, detections.scores, detections.boxes, attention.queries, strict=True)
    record: dict[str, Any] = {
        "image": attention.name,
        "height": detections.size[0],
        "width": detections.size[1],
        "caption": attention.caption,
        "detections": [
            {"name": name, "score": _plain(score), "box": _plain(box), "query": int(query)}
            for name, score, box, query in rows
        ],
        "decoder": _plain_attention(attention.decoder),
    }
    if attention.spatial is not None:
        record["spatial"] = _plain_attention(attention.spatial)
    if attention.encoder is not None:
        level, cells = encoder_level(attention, _MAX_EXACT)
        chosen = attention.encoder.of_rows(torch.arange(cells.start, cells.stop))
        record["encoder_grid"] = attention.grids[level]
        record["encoder"] = _plain_attention(chosen, layer=0)
    return record


def _plain_attention(attention: Attention, layer: int | None = None) -> dict[str, Any]:
    """An attention as plain values, of all layers or of one; of the mean of the heads without an axis for them."""
    weights = attention.weights if layer is None else attention.weights[layer]
    if isinstance(attention, SampledAttention):
        points = attention.points if layer is None else attention.points[layer]
        return {"points": _plain(points), "weights": _plain(weights)}
    kept = weights if layer is None else weights[0]
    return {"shape": attention.shape, "tokens": attention.tokens, "weights": _plain(kept)}


def _plain(values: Tensor) -> Any:
    """Float32 values as nested lists of the shortest numbers that give the same float32 values again."""
    array = values.detach().float().numpy()
    shortest = np.array([float(text) for text in map(str, array.ravel())], dtype=np.float64)
    return shortest.reshape(array.shape).tolist()
