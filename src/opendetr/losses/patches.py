"""Dense supervision of pre-training on patches, an auxiliary loss.

The set loss of UP-DETR gives a randomly initialised backbone a weak signal: the same box for every patch is a local
optimum that it takes long to leave. Here every cell of the memory is paired with every patch of its image. The cells
inside the patch predict that they are, and the box of the patch. Backbone and encoder learn from the first step on
features in which a patch can be recognised. The layers of this loss are not part of the model and not used in
prediction.

Shape letters: B batch, M patches of an image, D width, F backbone channels, h w cells of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.losses.dense import DenseConfig, DenseSupervision
from opendetr.losses.term import Normaliser
from opendetr.nn import tokens_of, weights_dtype
from opendetr.structures import FeatureMap, Matches, Target


class _LocatingPatches(Protocol):
    """The output of a model that locates patches."""

    memory: tuple[FeatureMap, ...]
    patch_features: Tensor  # (B, M, F)


class PatchSupervision(nn.Module):
    """Dense supervision of the pairs of cells and patches.

    Args:
        config: weights.
        width: D.
        num_features: F.
    """

    def __init__(self, config: DenseConfig, width: int, num_features: int) -> None:
        super().__init__()
        self.dense = DenseSupervision(config, width, num_classes=1)
        # A pair is the sum and the product of a cell and a patch, each with its own projection.
        self.cell = nn.Linear(width, 2 * width)
        self.patch = nn.Linear(num_features, 2 * width)

    @property
    def weights(self) -> Mapping[str, float]:
        """Those of dense supervision."""
        return self.dense.weights

    def forward(
        self, output: _LocatingPatches, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "dense", (1,), computed on the finest level of the memory; see `LossTerm`.

        A patch without an object in its target is nowhere in the image.
        """
        pairs = self.pairs(output.memory[0], output.patch_features)
        alone = [
            replace(target, labels=torch.zeros_like(target.labels[own]), boxes=target.boxes[own])
            for target in targets
            for own in (slice(index, index + 1) for index in range(output.patch_features.shape[1]))
        ]
        return {"dense": self.dense.loss(pairs, alone, normaliser.objects)[None]}

    def pairs(self, memory: FeatureMap, patch_features: Tensor) -> FeatureMap:
        """Memory (B, D, h, w) and patch features (B, M, F) -> (B M, D, h, w), the cells paired with each patch."""
        dtype, num_patches = weights_dtype(self), patch_features.shape[1]
        with torch.autocast(memory.values.device.type, enabled=False):
            cells = self.cell(tokens_of(memory.values).to(dtype))[:, None]  # (B, 1, h w, 2 D)
            patches = self.patch(patch_features.to(dtype))[:, :, None]  # (B, M, 1, 2 D)
            (cell, cell_factor), (patch, patch_factor) = cells.chunk(2, -1), patches.chunk(2, -1)
            tokens = F.relu(cell + patch + cell_factor * patch_factor).flatten(0, 1)
            values = tokens.transpose(1, 2).unflatten(2, memory.values.shape[-2:])
        padding = None if memory.padding is None else memory.padding.repeat_interleave(num_patches, 0)
        return FeatureMap(values, padding)
