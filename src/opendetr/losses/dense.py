"""Dense supervision of the encoder, an auxiliary loss for training.

Set prediction alone gives a randomly initialised backbone a weak signal: about one query in ten is matched, and the
matches change from step to step. Here the memory cells inside an object also predict it, which trains the backbone and
the encoder from the first step on. The assignment is that of FCOS (Tian et al. 2019, section 3.1). Co-DETR (Zong et
al., 2023) uses such heads as collaborative heads. The heads are not part of the detector and not used in prediction.

Shape letters: B batch, D width, K classes, h w cells of the memory, N = h w, n objects, T tokens of a caption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.losses.boxes import box_giou, box_l1
from opendetr.losses.class_terms import sigmoid_focal
from opendetr.losses.term import Normaliser
from opendetr.nn import MLP, full_precision, tokens_of, weights_dtype
from opendetr.structures import FeatureMap, GroundingOutput, Matches, Output, Target

_PRIOR = 0.01  # initial class probability, low because most cells contain no object
_PRIOR_LOGIT = math.log(_PRIOR / (1 - _PRIOR))


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Weights of the dense loss.

    Attributes:
        weight: weight of the dense loss, added to the set loss; 0 switches it off.
        class_weight, l1_weight, giou_weight: weights of its terms.
        reach: central share of a box, in 0..1. Cells with their centre inside it are assigned to the object.
    """

    weight: float = 0.0
    class_weight: float = 0.5
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    reach: float = 0.6


@torch.no_grad()
def assign_cells(boxes: Tensor, height: int, width: int, valid: tuple[int, int], reach: float) -> Tensor:
    """Assign an object to each cell.

    A cell is assigned to the smallest box whose central part contains the centre of the cell. The cell that contains
    the centre of a box always counts as inside, so small objects get a cell, too.

    Args:
        boxes: (n, 4) cxcywh in 0..1 of the unpadded image.
        height, width: size of the memory in cells, including padding.
        valid: number of rows and columns without padding.
        reach: central share of a box, see `DenseConfig`.

    Returns:
        (N,) int64, indices of objects in 0..n-1, or -1 for cells without an object.
    """
    if not len(boxes):
        return torch.full((height * width,), -1, device=boxes.device)
    cell = 1 / torch.tensor([valid[1], valid[0]], dtype=boxes.dtype, device=boxes.device)  # width and height of a cell
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centers = (torch.stack((columns, rows), -1).view(-1, 1, 2).to(boxes) + 0.5) * cell
    reached = (boxes[:, 2:] * reach / 2).maximum(cell / 2)
    outside = ((centers - boxes[:, :2]).abs() > reached).any(-1)  # (N, n)
    smallest, index = boxes[:, 2:].prod(-1).expand_as(outside).masked_fill(outside, torch.inf).min(1)
    return index.masked_fill(smallest.isinf(), -1)


def _valid_cells(memory: FeatureMap, image: int) -> tuple[int, int]:
    if memory.padding is None:
        return memory.values.shape[-2], memory.values.shape[-1]
    valid = ~memory.padding[image]
    return int(valid[:, 0].sum()), int(valid[0].sum())


class DenseSupervision(nn.Module):
    """A class and a box head for the cells of the memory, with their loss.

    Args:
        config: weights.
        width: D.
        num_classes: K.
    """

    def __init__(self, config: DenseConfig, width: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.class_head = nn.Linear(width, num_classes)
        self.box_head = MLP(width, width, 4, num_layers=3)
        nn.init.constant_(self.class_head.bias, _PRIOR_LOGIT)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of "dense": 1, because the loss already includes its weights."""
        return {"dense": 1.0}

    def forward(
        self, output: Output, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "dense", (1,), computed on the finest level of the memory; see `LossTerm`."""
        return {"dense": self.loss(output.memory[0], targets, normaliser.objects)[None]}

    def loss(self, memory: FeatureMap, targets: Sequence[Target], num_objects: float) -> Tensor:
        """The weighted loss of one level of the memory, a scalar.

        Args:
            memory: (B, D, h, w).
            targets: B targets.
            num_objects: divisor, the number of objects in the whole step.
        """
        with torch.autocast(memory.values.device.type, enabled=False):
            tokens = tokens_of(memory.values).to(weights_dtype(self.class_head))
            assigned = self.assign(memory, targets)
            return self._loss(tokens, assigned, targets) / num_objects

    def assign(self, memory: FeatureMap, targets: Sequence[Target]) -> Tensor:
        """The object of each cell of a level (B, D, h, w): (B, N) int64, see `assign_cells`."""
        height, width = memory.values.shape[-2:]
        objects = [
            assign_cells(target.boxes, height, width, _valid_cells(memory, image), self.config.reach)
            for image, target in enumerate(targets)
        ]
        return torch.stack(objects)

    def _loss(self, tokens: Tensor, assigned: Tensor, targets: Sequence[Target]) -> Tensor:
        """Tokens (B, N, D) and assigned objects (B, N) -> focal loss of all cells plus box loss of assigned cells."""
        config, positive = self.config, assigned >= 0
        chosen = [index[index >= 0] for index in assigned]
        labels = torch.cat([target.labels[index] for target, index in zip(targets, chosen, strict=True)])
        target_boxes = torch.cat([target.boxes[index] for target, index in zip(targets, chosen, strict=True)])
        # The weights of an object's cells sum to 1, so small objects count as much as large ones.
        share = torch.cat([1 / torch.bincount(index)[index] for index in chosen])
        logits = full_precision(self.class_head(tokens))
        boxes = full_precision(self.box_head(tokens[positive])).sigmoid()
        truth = torch.zeros_like(logits)
        truth[positive] = F.one_hot(labels, logits.shape[-1]).to(truth)
        box_loss = config.l1_weight * box_l1(boxes, target_boxes) + config.giou_weight * box_giou(boxes, target_boxes)
        class_loss = config.class_weight * sigmoid_focal(logits, truth).sum()
        return config.weight * (class_loss + (share * box_loss).sum())


def _projected(projection: nn.Module, level: FeatureMap) -> Tensor:
    """The tokens of a level, projected and with unit length, (B, N, E) float32."""
    tokens = projection(tokens_of(level.values).to(weights_dtype(projection)))
    return F.normalize(full_precision(tokens), dim=-1)


class GroundingSupervision(nn.Module):
    """Dense supervision of the image's cells of the memory, which does not tell objects apart, and of the tokens.

    A contrast also makes the cells inside an object similar to the tokens that name it, and different from the others,
    before and after the encoder. This trains the encoder to compare image and text from the first step on. With the
    other losses alone, a model learns for long only where objects are, and not which of them a text names.

    Args:
        dense: the supervision, for one class.
        width: D.
    """

    _NUM_FEATURES: ClassVar[int] = 64
    _TEMPERATURE: ClassVar[float] = 0.07  # as of the alignment of queries and tokens

    def __init__(self, dense: DenseSupervision, width: int) -> None:
        super().__init__()
        self.dense = dense
        # One projection for the levels before the encoder, and one for those after it.
        self.align_cells = nn.ModuleList(nn.Linear(width, self._NUM_FEATURES) for _ in range(2))
        self.align_tokens = nn.ModuleList(nn.Linear(width, self._NUM_FEATURES) for _ in range(2))

    @property
    def weights(self) -> Mapping[str, float]:
        """That of dense supervision, and the same for "dense_tokens"."""
        return {**self.dense.weights, "dense_tokens": self.dense.config.weight}

    def forward(
        self, output: GroundingOutput, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "dense" (1,) and "dense_tokens" (2,), before and after the encoder; see `LossTerm`."""
        objects = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
        losses = self.dense(output, objects, matches, normaliser)
        share = self._share(output.memory[0], output.memory[1], targets)
        places = zip((output.inputs, output.memory), self.align_cells, self.align_tokens, strict=True)
        with torch.autocast(share.device.type, enabled=False):
            contrasts = [
                self._contrast(_projected(cells, levels[0]), _projected(tokens, levels[1]), share, levels[1].padding)
                for levels, cells, tokens in places
            ]
        return {**losses, "dense_tokens": torch.stack(contrasts) / normaliser.objects}

    def _share(self, image: FeatureMap, text: FeatureMap, targets: Sequence[Target]) -> Tensor:
        """(B, N, T): for each cell and each token that names its object, 1 / the number of cells of the object."""
        assigned = self.dense.assign(image, targets)
        share = torch.zeros(*assigned.shape, text.values.shape[-1], device=assigned.device)
        for index, target in enumerate(targets):
            assert target.token_map is not None
            inside = assigned[index] >= 0
            chosen = assigned[index, inside]
            share[index, inside] = target.token_map[chosen] / torch.bincount(chosen)[chosen][:, None]
        return share

    def _contrast(self, cells: Tensor, tokens: Tensor, share: Tensor, padding: Tensor | None) -> Tensor:
        """Cells (B, N, E) and tokens (B, T, E) with `share` and the padding (B, 1, T) of the tokens -> a sum of losses.

        A cell is compared with all tokens, and a token with all cells. The cells of an object count as one.
        """
        similarity = cells @ tokens.mT / self._TEMPERATURE
        if padding is not None:
            similarity = similarity.masked_fill(padding, -1 / self._TEMPERATURE)
        positive = share > 0
        of_cell = -similarity.log_softmax(2).masked_fill(~positive, 0.0).sum(2) / positive.sum(2).clamp(min=1)
        of_token = -(similarity.log_softmax(1) * share).sum(1) / share.sum(1).clamp(min=1.0)
        return ((of_cell * share.amax(2)).sum() + of_token.sum()) / 2
