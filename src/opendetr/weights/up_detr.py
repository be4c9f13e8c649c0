"""The weights of UP-DETR: names in the authors' files, published files, which are in Google Drive without a SHA-256."""

from __future__ import annotations

from opendetr.weights import detr
from opendetr.weights.family import WeightFamily
from opendetr.weights.name_maps import Rows
from opendetr.weights.published import PublishedWeights

OFFICIAL: Rows = (
    *detr.OFFICIAL,
    ("patch2query.", "patch_projection."),
    ("feature_align.", "feature_head."),
)

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
