"""Convert model outputs to detections, masks and panoptic maps in pixels of the original images."""

from opendetr.postprocess.detections import detect, detect_with_queries
from opendetr.postprocess.finishing import ImageMasks, image_masks
from opendetr.postprocess.grounding import (
    boxes_in_pixels,
    object_scores,
    phrase_scores,
    phrases,
    published_masks,
    referred_scores,
)
from opendetr.postprocess.masks import MaskFrame, Merge, instance_masks, mask_frames, mask_logits
from opendetr.postprocess.panoptic import Candidates, candidates, panoptic_map
from opendetr.postprocess.patches import best_of_patches, locate
from opendetr.postprocess.tracks import tracked_objects

__all__ = [
    "Candidates",
    "ImageMasks",
    "MaskFrame",
    "Merge",
    "best_of_patches",
    "boxes_in_pixels",
    "candidates",
    "detect",
    "detect_with_queries",
    "image_masks",
    "instance_masks",
    "locate",
    "mask_frames",
    "mask_logits",
    "object_scores",
    "panoptic_map",
    "phrase_scores",
    "phrases",
    "published_masks",
    "referred_scores",
    "tracked_objects",
]
