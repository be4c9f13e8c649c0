"""The task of pre-training on unlabelled images: locate patches of an image and reconstruct their features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opendetr.losses import (
    FeatureReconstruction,
    LossTerm,
    Normaliser,
    PatchSupervision,
    ReconstructionConfig,
    SetCriterion,
)
from opendetr.models import UPDETR, PatchOutput
from opendetr.structures import Matches, PatchBatch, Target
from opendetr.tasks.base import Task


class PretrainingTask(Task[PatchBatch, PatchOutput]):
    """Locating patches, with feature reconstruction if the model has it.

    Args:
        model: images and patches -> PatchOutput.
        criterion: set loss.
        reconstruction: settings of the feature reconstruction.
        dense: dense supervision of the encoder's output, or None.
        own_queries: match a patch only with the queries that were given it. If False, any query may be matched with any
            patch of its image, as published. Then the loss also falls if the queries spread over the image without
            using the patches, and many more steps are needed until they do.
    """

    model: UPDETR

    def __init__(
        self,
        model: UPDETR,
        criterion: SetCriterion,
        reconstruction: ReconstructionConfig,
        dense: PatchSupervision | None = None,
        *,
        own_queries: bool = False,
    ) -> None:
        terms: dict[str, LossTerm] = {"set": criterion}
        if model.feature_head is not None:
            terms["reconstruction"] = FeatureReconstruction(reconstruction)
        if dense is not None:
            terms["dense"] = dense
        super().__init__(model, criterion, terms)
        self.own_queries = own_queries

    def match(self, output: PatchOutput, targets: Sequence[Target]) -> Matches:
        """Match queries with patches in every layer; see `own_queries`."""
        if self.own_queries:
            return self.criterion.match_within_groups(output, targets, self.model.queries_per_patch)
        return super().match(output, targets)

    def frames(self, batch: PatchBatch) -> Iterator[tuple[PatchOutput, Sequence[Target], Matches]]:
        """Run the model. In training, the seeds of the batch decide which queries get the features of their patch."""
        kept = order = None
        if self.training and batch.sample_seeds is not None:
            kept, order = self.model.draw(batch.sample_seeds)
            kept = kept.to(batch.patches.device)
            order = None if order is None else order.to(batch.patches.device)
        output = self.model(batch.images, batch.patches, kept, order)
        yield output, batch.targets, self.match(output, batch.targets)

    def normaliser(self, object_counts: Sequence[int]) -> Normaliser:
        """The divisors of a step. The images have equally many patches, and one object for each."""
        num_patches = max(object_counts, default=0) or self.model.max_patches
        return self.criterion.normaliser(object_counts, num_patches * self.model.queries_per_patch)
