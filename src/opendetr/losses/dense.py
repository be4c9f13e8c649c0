"""Dense supervision of the encoder: a help in training, not a part of the detector.

Set prediction alone tells a randomly initialised backbone little: one query in ten has an object, and which one changes
from step to step. Here every cell of the memory that lies in an object answers for it as well, which trains backbone
and encoder from the first step on (the assignment of FCOS, Tian et al. 2019, section 3.1; as a collaborative head
beside DETR's: Zong et al., Co-DETR, 2023). The heads are dropped after training; prediction never sees them.

Shape letters: B batch, D width, K classes, h w cells of the memory, N = h w, n objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.losses.boxes import box_giou, box_l1
from opendetr.losses.class_terms import sigmoid_focal
from opendetr.losses.term import Normaliser
from opendetr.nn.layers import MLP, full_precision, weights_dtype
from opendetr.structures import FeatureMap, Matches, Output, Target

_PRIOR = 0.01  # the class probability that an untrained cell gives, which keeps the many empty cells quiet


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Weights of the dense loss.

    Attributes:
        weight: of the whole loss beside the set loss; 0 for none.
        class_weight, l1_weight, giou_weight: of its terms.
        reach: a cell answers for an object when its centre lies in this central share of the object's box.
    """

    weight: float = 0.0
    class_weight: float = 0.5
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    reach: float = 0.6


@torch.no_grad()
def assign_cells(boxes: Tensor, height: int, width: int, valid: tuple[int, int], reach: float) -> Tensor:
    """The object that each cell answers for.

    A cell whose centre lies in the central part of several boxes takes the smallest; the cell that holds the centre of
    an object is reached in any case, so that small objects are not left out.

    Args:
        boxes: (n, 4) cxcywh in 0..1 of the unpadded image.
        height, width: of the memory, padding included, in cells.
        valid: rows and columns that are not padding.
        reach: the central share of a box.

    Returns:
        (N,) int64 in 0..n-1, or -1 where nothing is to be found.
    """
    if not len(boxes):
        return torch.full((height * width,), -1, device=boxes.device)
    cell = 1 / torch.tensor([valid[1], valid[0]], dtype=boxes.dtype, device=boxes.device)  # width, height of one
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
    """A class and a box head on every cell of the memory, with their loss.

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
        nn.init.constant_(self.class_head.bias, math.log(_PRIOR / (1 - _PRIOR)))

    @property
    def weights(self) -> Mapping[str, float]:
        """1: the loss is weighted already."""
        return {"dense": 1.0}

    def forward(
        self, output: Output, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "dense", (1,), of the finest level of the memory; see `LossTerm`."""
        return {"dense": self.loss(output.memory[0], targets, normaliser.objects)[None]}

    def loss(self, memory: FeatureMap, targets: Sequence[Target], num_objects: float) -> Tensor:
        """The weighted loss of the encoder's output, a scalar.

        Args:
            memory: (B, D, h, w).
            targets: B targets.
            num_objects: divisor, so that a step computed in parts adds up.
        """
        with torch.autocast(memory.values.device.type, enabled=False):
            tokens = memory.values.to(weights_dtype(self.class_head)).flatten(2).transpose(1, 2)
            height, width = memory.values.shape[-2:]
            assigned = torch.stack(
                [
                    assign_cells(target.boxes, height, width, _valid_cells(memory, image), self.config.reach)
                    for image, target in enumerate(targets)
                ]
            )
            return self._loss(tokens, assigned, targets) / num_objects

    def _loss(self, tokens: Tensor, assigned: Tensor, targets: Sequence[Target]) -> Tensor:
        """Tokens (B, N, D), the objects that they answer for (B, N) -> focal loss of cells plus box loss of objects."""
        config, positive = self.config, assigned >= 0
        chosen = [index[index >= 0] for index in assigned]
        labels = torch.cat([target.labels[index] for target, index in zip(targets, chosen, strict=True)])
        wanted = torch.cat([target.boxes[index] for target, index in zip(targets, chosen, strict=True)])
        # An object's cells share a weight of 1, so that a small object counts as much as a large one.
        share = torch.cat([1 / torch.bincount(index)[index] for index in chosen])
        logits = full_precision(self.class_head(tokens))
        boxes = full_precision(self.box_head(tokens[positive])).sigmoid()
        truth = torch.zeros_like(logits)
        truth[positive] = F.one_hot(labels, logits.shape[-1]).to(truth)
        box_loss = config.l1_weight * box_l1(boxes, wanted) + config.giou_weight * box_giou(boxes, wanted)
        class_loss = config.class_weight * sigmoid_focal(logits, truth).sum()
        return config.weight * (class_loss + (share * box_loss).sum())
