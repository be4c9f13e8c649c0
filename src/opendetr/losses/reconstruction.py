"""Feature reconstruction: matched queries predict the features of their patch (UP-DETR, section 3.2).

Shape letters: B batch, Q queries, L decoder layers, M patches of an image, F features, m matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from opendetr.losses.criterion import layer_sums
from opendetr.losses.term import Normaliser
from opendetr.nn import full_precision
from opendetr.structures import Matches, Predictions, Target


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Settings of the feature reconstruction.

    Attributes:
        weight: weight of the loss, the same in every layer.
        detach_target: whether the loss has no gradient with respect to the features of the patches. Then a trained
            backbone cannot lower the loss by making all patches alike. With a frozen backbone it makes no difference.
    """

    weight: float = 1.0
    detach_target: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"reconstruction.weight: expected at least 0, got {self.weight}")


class _Reconstructing(Protocol):
    """The output of a model that reconstructs the features of patches."""

    layers: tuple[Predictions, ...]
    patch_features: Tensor  # (B, M, F)
    reconstruction: Tensor  # (L, B, Q, F)


class FeatureReconstruction:
    """The distance between the reconstructed and the actual features of the matched patches, a loss term.

    Args:
        config: settings.
    """

    def __init__(self, config: ReconstructionConfig) -> None:
        self.config = config

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of "feature", the same in every layer."""
        return {"feature": self.config.weight}

    def __call__(
        self, output: _Reconstructing, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "feature", (L,): squared distance of the features, normalised to length 1, per object; from 0 to 4.

        A query is compared with the patch that it is matched with, which need not be the one that it was given.
        """
        reconstructed = output.reconstruction[matches.layer, matches.image, matches.query]
        actual = output.patch_features[matches.image, matches.target]
        if self.config.detach_target:
            actual = actual.detach()
        difference = F.normalize(full_precision(reconstructed), dim=-1) - F.normalize(full_precision(actual), dim=-1)
        distances = difference.square().sum(-1)
        return {"feature": layer_sums(distances, matches.counts(len(output.layers))) / normaliser.objects}
