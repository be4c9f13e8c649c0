"""The base class of tasks. A task is the module that the trainer trains: a batch in, losses out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from opendetr.losses import LossTerm, Normaliser, SetCriterion
from opendetr.models import Detector
from opendetr.structures import Batch, Matches, Output, Target

BatchT = TypeVar("BatchT", bound=Batch)
OutputT = TypeVar("OutputT", bound=Output)

COUNT = "count"  # the entry of the losses that contains a divisor known only after the forward pass
_SUMS = Normaliser(1.0, 1.0)


class Task(nn.Module, Generic[BatchT, OutputT]):
    """A model with its loss terms, generic in the types of its batches and outputs.

    A family member with other inputs overrides `output`, one with another order of computation overrides `frames`. A
    member with further losses adds terms. A member whose divisor is known only after the forward pass overrides
    `normaliser` and `count`.

    Args:
        model: images -> Output.
        criterion: matches queries with objects and computes the divisors.
        terms: loss terms by name, in the order of computation. Terms that are modules are registered as submodules
            under their names.

    Raises:
        ValueError: a term has a loss named "count", which is the name of the divisor; see `normaliser`.

    Attributes:
        optional_parameters: names, or prefixes of names, of parameters that may have no gradient in a step. With
            several processes, all other parameters must have one.
    """

    optional_parameters: tuple[str, ...] = ()

    def __init__(self, model: Detector, criterion: SetCriterion, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.terms = dict(terms)
        for name, term in self.terms.items():
            if COUNT in term.weights:
                raise ValueError(f"{type(self).__name__}: the term {name!r} names a loss {COUNT!r}, which is reserved")
        for name, term in self.terms.items():
            if isinstance(term, nn.Module):
                self.add_module(name, term)

    def output(self, batch: BatchT) -> OutputT:
        """Run the model on a batch of images."""
        return self.model(batch.images)

    def frames(self, batch: BatchT) -> Iterator[tuple[OutputT, Sequence[Target], Matches]]:
        """Run the model. Yields output, targets and matches, once for images and once per frame for clips."""
        output = self.output(batch)
        yield output, batch.targets, self.match(output, batch.targets)

    def forward(self, batch: BatchT, normaliser: Normaliser | None = None) -> dict[str, Tensor]:
        """Unweighted losses of a batch: (L,) for one value per decoder layer, (1,) for others.

        Names and shapes are the same for every batch. The losses of all frames are summed. Every trained parameter that
        is not optional has a gradient, also in a batch without objects, because several processes wait for it.

        Args:
            batch: a micro-batch of one process.
            normaliser: divisors of the whole step. By default they are computed from `batch`.
        """
        losses: dict[str, Tensor] = {}
        normaliser = normaliser or self.normaliser(batch.loss_counts)
        for output, targets, matches in self.frames(batch):
            own = self.losses(output, targets, normaliser or _SUMS, matches)
            if normaliser is None:
                own[COUNT] = self.count(output, targets, matches)
            for name, values in own.items():
                losses[name] = losses[name] + values if name in losses else values
        return losses

    def losses(
        self,
        output: OutputT,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses of an output: (L,) for terms of every decoder layer, last = final, (1,) for others.

        Args:
            output: the model's output.
            targets: B targets.
            normaliser: divisors. By default they are computed from the other arguments.
            matches: matches of every layer. By default they are computed.
        """
        normaliser = normaliser or self.normaliser([len(target) for target in targets])
        if matches is None:
            matches = self.match(output, targets)
        losses: dict[str, Tensor] = {}
        for term in self.terms.values():
            losses |= term(output, targets, matches, normaliser or _SUMS)
        if normaliser is None:
            divisor = self.count(output, targets, matches).clamp(min=1.0)
            losses = {name: values / divisor for name, values in losses.items()}
        return losses

    def normaliser(self, object_counts: Sequence[Any]) -> Normaliser | None:
        """The divisors of a step.

        Args:
            object_counts: `Batch.loss_counts` of all micro-batches and processes: by default the number of objects of
                each image.

        Returns:
            The divisors, or None if they are known only after the forward pass. In that case `forward` returns sums
            and also "count", (1,), the divisor of its micro-batch: the sum of `count` over the frames. The trainer sums
            the counts over all micro-batches and processes, and divides the gradients and the losses by the sum or by
            1, whichever is larger.
        """
        return self.criterion.normaliser(object_counts, self.model.num_queries)

    def count(self, output: OutputT, targets: Sequence[Target], matches: Matches) -> Tensor:
        """The divisor (1,) of the losses of one frame, for a task whose `normaliser` returns None.

        The arguments are those of `losses`. By default it is the number of objects.
        """
        return output.queries.new_tensor([float(sum(len(target) for target in targets))], dtype=torch.float32)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses, a scalar."""
        totals = [
            torch.stack([weight * losses[name].sum() for name, weight in term.weights.items()]).sum()
            for term in self.terms.values()
        ]
        total = totals[0]
        for further in totals[1:]:
            total = total + further
        return total

    def match(self, output: OutputT, targets: Sequence[Target]) -> Matches:
        """Match queries with objects in every layer."""
        return self.criterion.match(output, targets)
