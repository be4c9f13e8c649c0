"""The interface of loss terms, and the divisors of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from opendetr.structures import Matches


@dataclass(frozen=True)
class Normaliser:
    """The divisors of summed losses, over all micro-batches and processes of one optimizer step.

    Attributes:
        objects: number of objects, at least 1.
        classes: divisor of the class term, see `ClassTerm.normaliser`.
    """

    objects: float
    classes: float


class LossTerm(Protocol):
    """One term of the total loss. A task calls its terms in order, with the same matches.

    A term with parameters is an `nn.Module`, which the task registers as a submodule. Outputs and targets are `Output`
    and `Target`, or the subclasses that the term needs.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each returned loss, by name. No two terms of a task use the same name."""
        ...

    def __call__(
        self, output: Any, targets: Sequence[Any], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """Unweighted losses by name: (L,) for one value per decoder layer, (1,) for others.

        Args:
            output: the model's output. It and the targets hold everything that a term needs.
            targets: B targets.
            matches: matches of queries and objects in every layer.
            normaliser: divisors of the whole step.
        """
        ...
