"""Weights: our own files, the layouts of others, the transfer to other classes, what is published, downloads."""

from __future__ import annotations

from opendetr.weights.card import ModelCard, read_card, save_weights
from opendetr.weights.download import download
from opendetr.weights.errors import WeightsError
from opendetr.weights.hub import is_remote, local_file
from opendetr.weights.loading import (
    LoadReport,
    TransferReport,
    fitting_part,
    in_our_layout,
    load_weights,
    require_classes,
    transfer,
    usual_categories,
)
from opendetr.weights.reading import read_state, weights_file

__all__ = [
    "LoadReport",
    "ModelCard",
    "TransferReport",
    "WeightsError",
    "download",
    "fitting_part",
    "in_our_layout",
    "is_remote",
    "load_weights",
    "local_file",
    "read_card",
    "read_state",
    "require_classes",
    "save_weights",
    "transfer",
    "usual_categories",
    "weights_file",
]
