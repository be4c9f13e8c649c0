"""OpenDETR: the DETR family of object detectors in one library and one command.

    import opendetr
    detector = opendetr.load("deformable-detr-tiny")
    detections = detector.predict("photo.jpg")

Names are resolved on first use: importing the package imports no heavy dependency.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from opendetr.version import __version__

_MODULES = {
    "load": "inference",
    "Predictor": "inference",
    "Tracker": "inference",
    "create": "presets",
    "create_task": "presets",
    "list_models": "presets",
    "load_weights": "weights",
    "train": "training",
    "pretrain": "training",
    "resume": "training",
    "open_data": "data",
    "open_images": "data",
    "Detections": "results",
    "Panoptic": "results",
    "ImageBatch": "structures",
    "Callback": "training",
    "CheckpointError": "training",
    "ConfigError": "config",
    "DataError": "data",
    "DeviceError": "distributed",
    "ImageError": "data",
    "NonFiniteError": "structures",
    "ProcessError": "distributed",
    "WeightsError": "weights",
}

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Detections",
    "DeviceError",
    "ImageBatch",
    "ImageError",
    "NonFiniteError",
    "Panoptic",
    "Predictor",
    "ProcessError",
    "Tracker",
    "WeightsError",
    "__version__",
    "create",
    "create_task",
    "list_models",
    "load",
    "load_weights",
    "open_data",
    "open_images",
    "pretrain",
    "resume",
    "train",
]

if TYPE_CHECKING:
    from opendetr.config import ConfigError
    from opendetr.data import DataError, ImageError, open_data, open_images
    from opendetr.distributed import DeviceError, ProcessError
    from opendetr.inference import Predictor, Tracker, load
    from opendetr.presets import create, create_task, list_models
    from opendetr.results import Detections, Panoptic
    from opendetr.structures import ImageBatch, NonFiniteError
    from opendetr.training import Callback, CheckpointError, pretrain, resume, train
    from opendetr.weights import WeightsError, load_weights


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'opendetr' has no attribute {name!r}")
    return getattr(importlib.import_module(f"opendetr.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
