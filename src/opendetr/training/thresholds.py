"""The settings of inference that are stored with the weights of a run."""

from __future__ import annotations

from opendetr.presets import Preset
from opendetr.scoring import ScoreThresholds
from opendetr.training.events import Callback, StepTaken


class CurrentThresholds(Callback):
    """What the latest evaluation has chosen, as long as the evaluated weights have not changed.

    Attributes:
        current: the score thresholds of the current weights. None after a step, which changes the weights, and if no
            detection matched an object.
        preset: the preset with the settings that `Preset.fitted` has chosen for the current weights; None likewise.
    """

    def __init__(self) -> None:
        self.current: ScoreThresholds | None = None
        self.preset: Preset | None = None

    def on_step(self, event: StepTaken) -> None:
        """Discard them, because the weights have changed."""
        self.current = self.preset = None
