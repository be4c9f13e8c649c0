"""Descriptions of the model families, and the measured speed of the models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        title: its name as the authors write it.
        paper: authors and year of the paper.
        architecture: how the models work, in a few sentences.
    """

    title: str
    paper: str
    architecture: str


FAMILIES = {
    "detr": Family(
        "DETR",
        "Carion et al., 2020",
        "A ResNet computes features of the image. In a transformer encoder, all cells of the features attend to each "
        "other. In the decoder, learned queries attend to the encoder's output. Each query predicts a box, and a class "
        "or no object. It detects large objects well. It learns slowly, and its features are coarse for small objects.",
    ),
    "conditional-detr": Family(
        "Conditional DETR",
        "Meng et al., 2021",
        "A DETR whose queries have reference points. The cross-attention compares content with content and position "
        "with position, so a query learns sooner which part of the image to attend to. Training takes about a tenth of "
        "DETR's epochs.",
    ),
    "deformable-detr": Family(
        "Deformable DETR",
        "Zhu et al., 2021",
        "A query attends to a few points around its reference point, on several levels of features, instead of to all "
        "cells. This makes fine features affordable, which helps to detect small objects. Training takes about a tenth "
        "of DETR's epochs.",
    ),
    "up-detr": Family(
        "UP-DETR",
        "Dai et al., 2021",
        "The pre-training of a DETR on images without annotations. The features of random patches are added to the "
        "queries, which locate the patches in the image. A detector is then trained from these weights. The model also "
        "locates a patch that a user gives.",
    ),
    "mdetr": Family(
        "MDETR",
        "Kamath et al., 2021",
        "A DETR that detects what a text names. The encoder attends to the cells of the image and to the tokens of the "
        "text together. A query predicts a box, and instead of a class the tokens that name its object. So the classes "
        "are not fixed: a phrase of the text stands for each detection.",
    ),
    "transtrack": Family(
        "TransTrack",
        "Sun et al., 2020",
        "A Deformable DETR for video with two decoders. One detects the objects of a frame. The other starts from the "
        "boxes and queries of the frame before and predicts where these objects are now. Boxes of both that overlap "
        "belong to one track. It learns from still images, too, which it shifts.",
    ),
    "motr": Family(
        "MOTR",
        "Zeng et al., 2022",
        "A Deformable DETR for video. A query that finds an object follows it from frame to frame and is updated in "
        "between, while further queries find new objects. There is no matching of boxes between frames. It learns from "
        "clips with track ids.",
    ),
}
"""The families by the name in `Detector.family`."""

# The processor time for one image at the model's own size, relative to detr-r50, on one thread of a CPU. Printed by:
# python runs/model_speed.py --repeats 3
RELATIVE_TIME = {
    "detr-r50": 1.0,
    "detr-r101": 1.6,
    "detr-r50-dc5": 2.2,
    "detr-r101-dc5": 2.8,
    "detr-r18": 0.35,
    "detr-tiny": 0.019,
    "detr-r50-panoptic": 1.1,
    "detr-r101-panoptic": 1.7,
    "detr-r50-dc5-panoptic": 2.4,
    "detr-tiny-panoptic": 0.029,
    "conditional-detr-r50": 1.0,
    "conditional-detr-r101": 1.6,
    "conditional-detr-r50-dc5": 2.3,
    "conditional-detr-r101-dc5": 3.0,
    "conditional-detr-tiny": 0.024,
    "deformable-detr-r50-single-scale": 0.94,
    "deformable-detr-r50-single-scale-dc5": 1.5,
    "deformable-detr-r50": 2.6,
    "deformable-detr-r50-refine": 2.7,
    "deformable-detr-r50-two-stage": 2.8,
    "deformable-detr-tiny": 0.028,
    "deformable-detr-tiny-panoptic": 0.04,
    "up-detr-r50": 0.34,
    "up-detr-r50-finetuned": 0.99,
    "up-detr-tiny": 0.024,
    "mdetr-r101": 1.6,
    "mdetr-r50": 1.0,
    "mdetr-enb3": 0.86,
    "mdetr-enb5": 1.7,
    "mdetr-r101-phrasecut": 1.8,
    "mdetr-r101-gqa": 1.6,
    "mdetr-r18-clevr": 0.088,
    "mdetr-tiny": 0.023,
    "transtrack-r50": 2.4,
    "transtrack-tiny": 0.026,
    "motr-r50": 2.3,
    "motr-tiny": 0.029,
}
"""Time per image by name of the model, relative to detr-r50. Models that were not measured are missing."""

# Estimated by: python runs/training_memory.py
TRAINING_MEMORY = {
    "detr-r50": (1.4, 1.7),
    "detr-r101": (1.6, 2.6),
    "detr-r50-dc5": (1.4, 5.5),
    "detr-r101-dc5": (1.6, 6.3),
    "conditional-detr-r50": (1.4, 2.3),
    "conditional-detr-r101": (1.7, 3.2),
    "conditional-detr-r50-dc5": (1.4, 6.5),
    "conditional-detr-r101-dc5": (1.7, 7.4),
    "deformable-detr-r50-single-scale": (1.3, 1.7),
    "deformable-detr-r50-single-scale-dc5": (1.3, 2.3),
    "deformable-detr-r50": (1.3, 5.2),
    "deformable-detr-r50-refine": (1.4, 5.3),
    "deformable-detr-r50-two-stage": (1.4, 5.5),
}
"""GiB that a train step of a published detector needs: for the model, and for each image of a micro-batch."""
