"""Convert model outputs to detections, masks and panoptic maps in pixels of the original images."""

from opendetr.postprocess.detections import detect, detect_with_queries
from opendetr.postprocess.finishing import ImageMasks, image_masks
from opendetr.postprocess.masks import MaskFrame, Merge, instance_masks, mask_frames, mask_logits
from opendetr.postprocess.panoptic import Candidates, candidates, panoptic_map
from opendetr.postprocess.patches import best_of_patches, locate

__all__ = [
    "Candidates",
    "ImageMasks",
    "MaskFrame",
    "Merge",
    "best_of_patches",
    "candidates",
    "detect",
    "detect_with_queries",
    "image_masks",
    "instance_masks",
    "locate",
    "mask_frames",
    "mask_logits",
    "panoptic_map",
]
