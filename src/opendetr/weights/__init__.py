"""Weights: our own files, other layouts, transfer to other classes, published files, downloads."""

from __future__ import annotations

from opendetr.weights import conditional, deformable, detr, masks, mdetr, motr, transtrack, up_detr
from opendetr.weights.card import ModelCard, read_card, save_weights
from opendetr.weights.detr import part_without_counterpart
from opendetr.weights.download import download
from opendetr.weights.errors import WeightsError, naming
from opendetr.weights.family import WeightFamily, family_of, published_files, register_family
from opendetr.weights.hub import hub_errors, is_remote, local_file
from opendetr.weights.huggingface import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    config_json,
    preprocessor_json,
    unsupported_reason,
    uses_timm,
)
from opendetr.weights.loading import (
    LoadReport,
    fitting_part,
    in_our_layout,
    load_weights,
    require_classes,
    usual_categories,
)
from opendetr.weights.masks import has_masks
from opendetr.weights.name_maps import Rows, their_names, unpack_projections
from opendetr.weights.reading import read_state, weights_file
from opendetr.weights.transfer import TransferReport, transfer, transfer_pretrained
from opendetr.weights.up_detr import is_pretraining

__all__ = [
    "CONFIG_FILE",
    "PREPROCESSOR_FILE",
    "LoadReport",
    "ModelCard",
    "Rows",
    "TransferReport",
    "WeightFamily",
    "WeightsError",
    "config_json",
    "download",
    "family_of",
    "fitting_part",
    "has_masks",
    "hub_errors",
    "in_our_layout",
    "is_pretraining",
    "is_remote",
    "load_weights",
    "local_file",
    "naming",
    "part_without_counterpart",
    "preprocessor_json",
    "published_files",
    "read_card",
    "read_state",
    "register_family",
    "require_classes",
    "save_weights",
    "their_names",
    "transfer",
    "transfer_pretrained",
    "unpack_projections",
    "unsupported_reason",
    "uses_timm",
    "usual_categories",
    "weights_file",
]

_OWN = (detr.FAMILY, conditional.FAMILY, deformable.FAMILY)
for _family in (*_OWN, transtrack.FAMILY, motr.FAMILY):
    register_family(_family)
register_family(masks.DETR)
for _family in (up_detr.FAMILY, mdetr.FAMILY, mdetr.MASKS):
    register_family(_family)
# transformers' ConditionalDetrForSegmentation predicts boxes without the reference points, so it cannot be used.
for _family in _OWN[1:]:
    register_family(masks.with_masks(_family, no_huggingface="transformers has masks for DETR only"))
