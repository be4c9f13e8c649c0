"""The weights of UP-DETR: names in the authors' files, published files, which are in Google Drive without a SHA-256."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from opendetr.weights import detr
from opendetr.weights.family import WeightFamily
from opendetr.weights.name_maps import Rows
from opendetr.weights.published import PublishedWeights

# The parts of the pre-training model that a detector does not have: ours, and the authors' names.
_PATCH_LAYERS = ("patch_projection.", "patch_norm.", "feature_head.", "patch2query.", "feature_align.")

OFFICIAL: Rows = (
    *detr.OFFICIAL,
    ("patch2query.", "patch_projection."),
    ("feature_align.", "feature_head."),
)


def is_pretraining(names: Iterable[str]) -> bool:
    """Whether these names, in any layout, belong to a model for pre-training on patches."""
    return any(name.startswith(_PATCH_LAYERS) for name in names)


def without_patch_layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the detector in a pre-training model, in its own layout."""
    return {name: value for name, value in state.items() if not name.startswith(_PATCH_LAYERS)}


FAMILY = WeightFamily(
    name="up-detr",
    official=OFFICIAL,
    no_huggingface="transformers has no models that locate patches",
    published={
        "up-detr-r50": PublishedWeights(
            file="up-detr-pre-training-60ep-imagenet.pth",
            place="https://drive.google.com/file/d/1JhL1uwNJCaxMrIUx7UzQ3CMCHqmZpCnn/view",
            licence="Apache-2.0",
            ap=None,
            megabytes=164,
        ),
        "up-detr-r50-finetuned": PublishedWeights(
            file="up-detr-coco-fine-tuned-300ep.pth",
            place="https://drive.google.com/file/d/1_YNtzKKaQbgFfd6m2ZUCO6LWpKqd7o7X/view",
            licence="Apache-2.0",
            ap=0.431,
            megabytes=159,
        ),
    },
)
