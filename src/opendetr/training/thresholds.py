"""The score thresholds that are stored with the weights of a run."""

from __future__ import annotations

from opendetr.scoring import ScoreThresholds
from opendetr.training.events import Callback, StepTaken


class CurrentThresholds(Callback):
    """The thresholds of the latest evaluation, as long as the evaluated weights have not changed.

    Attributes:
        current: the thresholds of the current weights. None after a step, which changes the weights, and if no
            detection matched an object.
    """

    def __init__(self) -> None:
        self.current: ScoreThresholds | None = None

    def on_step(self, event: StepTaken) -> None:
        """Discard the thresholds, because the weights have changed."""
        self.current = None
