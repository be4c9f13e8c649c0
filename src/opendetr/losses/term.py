"""What a loss term is: one summand of the loss that training minimises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from opendetr.structures import Matches, Output, Target


@dataclass(frozen=True)
class Normaliser:
    """What sums are divided by: counted over everything that one optimiser step sees, in all parts and processes.

    Attributes:
        objects: number of objects, at least 1.
        classes: divisor of the class term, from the objects and queries of all images.
    """

    objects: float
    classes: float


class LossTerm(Protocol):
    """One summand of the loss. A task calls its terms one after another with the same matches.

    A term may be an `nn.Module` with parameters of its own; the task registers it.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss that the term returns, by name; the names differ from those of other terms."""
        ...

    def __call__(
        self, output: Output, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """Unweighted losses by name: (L,) for one value per decoder layer, (1,) for others.

        Args:
            output: of the model. Whatever else a term needs is in it or in the targets.
            targets: B targets.
            matches: which query is matched with which object, in every layer.
            normaliser: divisors of the whole step.
        """
        ...
