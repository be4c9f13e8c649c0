"""A task joins a model with its losses: a batch in, losses out. The trainer trains this one module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from opendetr.losses import LossTerm, Normaliser, SetCriterion
from opendetr.models import Detector
from opendetr.structures import Batch, Matches, Output, Target


class Task(nn.Module):
    """A model with its loss terms.

    A member with another input or another order of computation overrides `frames`; one with further losses adds terms.

    Args:
        model: images -> Output.
        criterion: matches queries with objects and gives the divisors.
        terms: the summands of the loss by name, in the order in which they are computed. Terms with parameters are
            registered as submodules under their names.

    Attributes:
        optional_parameters: names of parameters, or beginnings of names, that may be without a gradient in a step.
            With several processes every other parameter is expected to have one.
    """

    optional_parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Detector, criterion: SetCriterion, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.terms = dict(terms)
        for name, term in self.terms.items():
            if isinstance(term, nn.Module):
                self.add_module(name, term)

    def frames(self, batch: Batch) -> Iterator[tuple[Output, Sequence[Target], Matches]]:
        """Run the model on a batch: output, targets and matches, once for images, frame by frame for clips."""
        output = self.model(batch.images)
        yield output, batch.targets, self.match(output, batch.targets)

    def forward(self, batch: Batch, normaliser: Normaliser | None = None) -> dict[str, Tensor]:
        """Unweighted losses of a batch: (L,) for one value per decoder layer, (1,) for others.

        Their names and shapes are the same for every batch. The losses of several frames are added up.

        Args:
            batch: a micro-batch of one process.
            normaliser: divisors of the whole step; those of `batch` when omitted.
        """
        losses: dict[str, Tensor] = {}
        normaliser = normaliser or self.normaliser(batch.object_counts)
        for output, targets, matches in self.frames(batch):
            for name, values in self.losses(output, targets, normaliser, matches).items():
                losses[name] = losses[name] + values if name in losses else values
        return losses

    def losses(
        self,
        output: Output,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses of an output: (L,) for terms of every decoder layer, last = final, (1,) for others.

        Args:
            output: of the model.
            targets: B targets.
            normaliser: divisors; those of `targets` when omitted.
            matches: those of every layer, where they are known already.
        """
        normaliser = normaliser or self.normaliser([len(target) for target in targets])
        assert normaliser is not None, "a task that normalises after the forward pass calls its terms itself"
        if matches is None:
            matches = self.match(output, targets)
        losses: dict[str, Tensor] = {}
        for term in self.terms.values():
            losses |= term(output, targets, matches, normaliser)
        return losses

    def normaliser(self, object_counts: Sequence[int]) -> Normaliser | None:
        """Divisors for a step that sees so many objects, image by image, in all parts and processes.

        None where the divisor is known only after the forward pass. Then `forward` returns sums, and beside them
        "count", (1,), the divisor of its part. The trainer adds the counts of all parts and processes, and divides the
        gradients and the losses by the sum, at least 1.
        """
        return self.criterion.normaliser(object_counts, self.model.num_queries)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted scalar that training minimises."""
        totals = [
            torch.stack([weight * losses[name].sum() for name, weight in term.weights.items()]).sum()
            for term in self.terms.values()
        ]
        total = totals[0]
        for further in totals[1:]:
            total = total + further
        return total

    def match(self, output: Output, targets: Sequence[Target]) -> Matches:
        """Which query is matched with which object, in every layer."""
        return self.criterion.match(output, targets)
