"""The score thresholds that are stored with the weights of a run."""

from __future__ import annotations

from opendetr.scoring import ScoreThresholds
from opendetr.training.events import Callback, StepTaken


class ChosenThresholds(Callback):
    """The thresholds that the latest evaluation chose, as long as the evaluated weights have not changed.

    Attributes:
        current: the thresholds to store with the weights as they are now; None after a step, which changes the weights,
            or if the evaluation found nothing to choose by.
    """

    def __init__(self) -> None:
        self.current: ScoreThresholds | None = None

    def on_step(self, event: StepTaken) -> None:
        """Forget the thresholds: they are those of other weights."""
        self.current = None
