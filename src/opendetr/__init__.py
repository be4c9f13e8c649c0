"""OpenDETR: the DETR family of object detectors in one library and one command.

    import opendetr
    detector = opendetr.load("deformable-detr-tiny")
    detections = detector.predict("photo.jpg")

Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load": "predictor",
    "Predictor": "predictor",
    "create": "presets",
    "create_task": "presets",
    "list_models": "presets",
    "load_weights": "weights",
    "train": "training",
    "Detections": "structures",
}

__all__ = ["Detections", "Predictor", "create", "create_task", "list_models", "load", "load_weights", "train"]

if TYPE_CHECKING:
    from opendetr.predictor import Predictor, load
    from opendetr.presets import create, create_task, list_models
    from opendetr.structures import Detections
    from opendetr.training import train
    from opendetr.weights import load_weights


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'opendetr' has no attribute {name!r}")
    return getattr(importlib.import_module(f"opendetr.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
