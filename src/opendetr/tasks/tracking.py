"""The tasks of tracking: pairs of frames for TransTrack, clips for MOTR.

Both take a `ClipBatch`. A plain `Batch` is a batch of clips of one frame.

Shape letters: B clips, R queries, T kept queries, n objects of an image, H W batch, h w image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from opendetr.boxes import cxcywh_to_xyxy, iou
from opendetr.losses import ANONYMOUS, DenseSupervision, LossTerm, Normaliser, SetCriterion, TrackCriterion, inherited
from opendetr.models import MOTR, MOTROutput, TransTrack, TransTrackOutput
from opendetr.structures import Batch, ClipBatch, Matches, Target
from opendetr.tasks.base import Task


def _terms(criterion: SetCriterion, dense: DenseSupervision | None) -> dict[str, LossTerm]:
    return {"set": criterion} if dense is None else {"set": criterion, "dense": dense}


def _frames(batch: Batch) -> tuple[Batch, ...]:
    """The frames of clips; a plain batch is one frame."""
    return batch.frames if isinstance(batch, ClipBatch) else (batch,)


# ---------------------------------------------------------------------------------------------------------- TransTrack


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How TransTrack learns from still images.

    Attributes:
        max_shift: the frames before a still image are copies of it, shifted by fewer pixels than this, and by at most
            half a side.
    """

    max_shift: int = 100

    def __post_init__(self) -> None:
        if self.max_shift < 1:
            raise ValueError(f"tracking.max_shift: expected at least 1 pixel, got {self.max_shift}")


class TransTrackTask(Task[Batch, TransTrackOutput]):
    """Detection in the last frame of each clip, given the frames before it.

    The previous frame gives the state, without gradients. In half of the steps, the track decoder predicts the objects
    of the last frame from this state. In the others, the object decoder predicts them. `Batch.seed` selects it.

    In a clip of one frame, the two frames before it are shifted copies, drawn from `ClipBatch.seeds` (section 3.4).
    Without seeds, they are the frame itself. In longer clips, they are the frames before it. Ids are not used.

    Args:
        model: the model.
        criterion: set loss.
        config: how still images are used.
        dense: dense supervision of the encoder's output, or None.
    """

    optional_parameters = ("model.queries.", "model.reference_points.", "model.decoder.", "model.track_decoder.")

    def __init__(
        self, model: TransTrack, criterion: SetCriterion, config: PairConfig, dense: DenseSupervision | None = None
    ) -> None:
        super().__init__(model, criterion, _terms(criterion, dense))
        self.config = config

    def normaliser(self, object_counts: Sequence[int]) -> Normaliser | None:
        """None: `object_counts` runs over all frames of the clips, and only the objects of the last frame count."""
        return None

    def frames(self, batch: Batch) -> Iterator[tuple[TransTrackOutput, Sequence[Target], Matches]]:
        """Yield the output of one decoder for the last frame."""
        model = cast(TransTrack, self.model)
        earlier, previous, last = self.last_three(batch)
        with torch.no_grad():
            state = model.detect(previous.images, model.backbone(earlier.images)).state
        follows = bool(batch.seed % 2)
        output = model.follow(last.images, state) if follows else model.detect(last.images, state.features)
        yield output, last.targets, self.match(output, last.targets)

    def last_three(self, batch: Batch) -> tuple[Batch, Batch, Batch]:
        """The frame before the previous one, the previous one and the last one."""
        *before, last = _frames(batch)
        if before:
            return before[max(len(before) - 2, 0)], before[-1], last
        if not isinstance(batch, ClipBatch) or not batch.seeds:
            return last, last, last
        generators = [np.random.default_rng(seed) for seed in batch.seeds]
        previous = shifted(last, self._draw(last, generators))
        return shifted(last, self._draw(last, generators)), previous, last

    def _draw(self, batch: Batch, generators: Sequence[np.random.Generator]) -> list[tuple[int, int]]:
        """A random shift in x and y for each image, in pixels."""
        sizes = batch.images.sizes.tolist()
        limits = [[min(self.config.max_shift, side // 2 + 1) for side in (w, h)] for h, w in sizes]
        return [
            cast(tuple[int, int], tuple(int(rng.integers(limit) * rng.choice((-1, 1))) for limit in pair))
            for rng, pair in zip(generators, limits, strict=True)
        ]


def shifted(batch: Batch, shifts: Sequence[tuple[int, int]]) -> Batch:
    """Images shifted by a number of pixels, and stretched to their size again.

    Content that leaves an image is cut. A shift to the right or down moves content by cutting at the far side of the
    padded batch, as published. In an image with padding there, it cuts less. Boxes are not clipped.

    Args:
        batch: B images of (h, w) in (H, W).
        shifts: x and y of each image, in pixels.
    """
    height, width = batch.shape
    pixels, targets = batch.images.pixels.clone(), []
    for index, ((x, y), target) in enumerate(zip(shifts, batch.targets, strict=True)):
        h, w = batch.images.sizes[index].tolist()
        left, top = max(0, -x), max(0, -y)
        cut = batch.images.pixels[index, :, top : min(h, height - max(0, y)), left : min(w, width - max(0, x))]
        pixels[index, :, :h, :w] = F.interpolate(cut[None], size=(h, w))[0]
        scale = target.boxes.new_tensor([w / cut.shape[2], h / cut.shape[1]])
        offset = target.boxes.new_tensor([left / w, top / h])
        boxes = torch.cat(((target.boxes[:, :2] - offset) * scale, target.boxes[:, 2:] * scale), 1)
        targets.append(replace(target, boxes=boxes))
    return replace(batch, images=replace(batch.images, pixels=pixels), targets=tuple(targets))


# ---------------------------------------------------------------------------------------------------------------- MOTR


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """What MOTR does with the queries of tracks in training.

    Attributes:
        random_drop: probability of dropping a track after a frame, so that the object has to be found again.
        false_positives: probability, for each track, of carrying along a query without a track that is close to it, so
            that the model learns to end false tracks.
        min_iou: a track continues if the IoU of its box with the ground truth was above this when it was last visible.
    """

    random_drop: float = 0.1
    false_positives: float = 0.3
    min_iou: float = 0.5

    def __post_init__(self) -> None:
        for name in ("random_drop", "false_positives", "min_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"tracking.{name}: expected a number from 0 to 1, got {getattr(self, name)}")


class MOTRTask(Task[Batch, MOTROutput]):
    """Tracklet-aware label assignment in clips, and the collective average loss (sections 3.3 and 3.5).

    A query that follows a track keeps its object in every decoder layer. If the object is absent, the query is a
    negative for every class. The other queries are matched with the other objects. After each frame, the matched
    queries begin to follow the objects, and the model carries them to the next frame. The losses of all frames are
    divided by the number of objects and absent tracks.

    What is drawn at random comes from `ClipBatch.seeds` and the number of the frame.

    Args:
        model: the model.
        criterion: matching and set loss.
        config: what is done with the queries of tracks.
        dense: dense supervision of the encoder's output, or None.
    """

    def __init__(
        self, model: MOTR, criterion: TrackCriterion, config: ClipConfig, dense: DenseSupervision | None = None
    ) -> None:
        super().__init__(model, criterion, _terms(criterion, dense))
        self.config = config
        # Without a track in the clip, what only tracks use has no gradient.
        self.optional_parameters = (
            "model.interaction.",
            *(f"model.decoder.layers.{index}.track_attention" for index in range(len(model.decoder.layers))),
        )

    def normaliser(self, object_counts: Sequence[int]) -> Normaliser | None:
        """None: the number of absent tracks is known only after the forward pass."""
        return None

    def frames(self, batch: Batch) -> Iterator[tuple[MOTROutput, Sequence[Target], Matches]]:
        """Run the clips frame by frame.

        Raises:
            ValueError: a clip of several frames has no track ids, or no seeds although something is drawn at random.
        """
        frames, seeds = _frames(batch), self._seeds(batch)
        model, state, overlap = cast(MOTR, self.model), None, None
        for number, frame in enumerate(frames):
            output = model(frame.images, state)
            matches = self.match(output, frame.targets)
            yield output, frame.targets, matches
            if number + 1 < len(frames):
                ids, overlap = self.assigned(output, frame, matches, overlap)
                rows = self.kept_queries(
                    ids, overlap, output, [np.random.default_rng((seed, number)) for seed in seeds]
                )
                state = model.update(output, ids, rows)
                overlap = overlap.gather(1, rows.clamp(min=0)).masked_fill(rows < 0, 0.0)

    def _seeds(self, batch: Batch) -> Sequence[int]:
        """One seed per clip."""
        seeds = batch.seeds if isinstance(batch, ClipBatch) else ()
        is_random = self.training and (self.config.random_drop > 0 or self.config.false_positives > 0)
        if not seeds and is_random and len(_frames(batch)) > 1:
            raise ValueError("ClipBatch.seeds: MOTR drops tracks at random; collate the clips with a seed each")
        return seeds or [0] * len(batch)

    def match(self, output: MOTROutput, targets: Sequence[Target]) -> Matches:
        """Keep the pairs of tracks and their objects, and match the other queries with the other objects."""
        is_free = output.track_ids < 0
        if output.padding is not None:
            is_free = is_free & ~output.padding
        fixed = inherited(output.track_ids, targets)
        return self.criterion.match(output, targets, candidates=is_free, fixed=fixed)

    def count(self, output: MOTROutput, targets: Sequence[Target], matches: Matches) -> Tensor:
        """The number of objects and of tracks whose object is absent, (1,)."""
        absent = (output.track_ids >= 0).sum() - len(inherited(output.track_ids, targets))
        return super().count(output, targets, matches) + absent

    @torch.no_grad()
    def assigned(
        self, output: MOTROutput, frame: Batch, matches: Matches, overlap: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The tracks after a frame: those of before, and those of the queries that were matched in the last layer.

        Args:
            output: of the frame.
            frame: its targets, with track ids.
            matches: those of every layer.
            overlap: (B, T) of the tracks before the frame; None if there are none.

        Returns:
            (B, R) int64, the track of each query, or -1. (B, R), the IoU of each query's box with the object of its
            track when it was last visible, else 0.

        Raises:
            ValueError: a target has no track ids.
        """
        ids, boxes = output.track_ids.clone(), cxcywh_to_xyxy(output.final.boxes)
        overlaps = boxes.new_zeros(ids.shape)
        if overlap is not None:
            overlaps[:, ids.shape[1] - overlap.shape[1] :] = overlap
        last = matches.of_layer(len(output.layers) - 1)
        for image, target in enumerate(frame.targets):
            if target.track_ids is None:
                raise ValueError(
                    f"{frame.image_names[image]}: its objects have no track ids, which MOTR learns from; use a "
                    "tracking dataset, or a transtrack model, which learns from still images"
                )
            here = last.image == image
            query, item = last.query[here], last.target[here]
            ids[image, query] = target.track_ids[item].to(ids)
            known = ids[image, query] != ANONYMOUS
            query, item = query[known], item[known]
            overlaps[image, query] = iou(boxes[image, query], cxcywh_to_xyxy(target.boxes[item]).to(boxes))
        return ids, overlaps

    @torch.no_grad()
    def kept_queries(
        self, ids: Tensor, overlap: Tensor, output: MOTROutput, generators: Sequence[np.random.Generator]
    ) -> Tensor:
        """The queries to carry to the next frame, (B, T) int64, filled up with -1.

        Args:
            ids, overlap: (B, R) each, as `assigned` returns them.
            output: of the frame.
            generators: one per clip; used in training mode only.
        """
        boxes, rows = cxcywh_to_xyxy(output.final.boxes), []
        exists = torch.ones_like(ids, dtype=torch.bool) if output.padding is None else ~output.padding
        for image, rng in enumerate(generators):
            kept = ((ids[image] >= 0) & (overlap[image] > self.config.min_iou)).nonzero()[:, 0]
            if self.training:
                kept = kept[torch.from_numpy(rng.random(len(kept)) > self.config.random_drop).to(kept.device)]
                selected = torch.from_numpy(rng.random(len(kept)) < self.config.false_positives).to(kept.device)
                free = ((ids[image] < 0) & exists[image]).nonzero()[:, 0]
                kept = torch.cat((kept, closest(free, kept[selected], boxes[image])))
            rows.append(kept)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def closest(free: Tensor, selected: Tensor, boxes: Tensor) -> Tensor:
    """The free queries with the largest IoU with each selected query; all if there are not more of them.

    Args:
        free, selected: indices of queries.
        boxes: (R, 4), corners.

    Returns:
        Indices of queries in ascending order.
    """
    if not len(selected) or len(selected) >= len(free):
        return free[: len(free) if len(selected) else 0]
    return free[iou(boxes[free, None], boxes[selected]).argmax(0).unique()]
