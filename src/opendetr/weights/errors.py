"""The error for weights that cannot be used."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights cannot be used. The message is one line."""
