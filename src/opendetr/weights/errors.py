"""What goes wrong with weights."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights that cannot be used; the message is one line."""
