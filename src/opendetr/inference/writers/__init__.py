"""Writers of detections, tracks and panoptic maps: images, videos, crops, COCO JSON, CSV, YOLO and MOT labels.

Their memory use does not grow with the number of images.
"""

from opendetr.inference.writers.folder import COCO_FILE, PANOPTIC_FILE, OutputConfig, panoptic_folder, results_folder
from opendetr.inference.writers.tables import Rows
from opendetr.inference.writers.tracks import TRACKS_FILE, BeginClip, tracks_folder

__all__ = [
    "COCO_FILE",
    "PANOPTIC_FILE",
    "TRACKS_FILE",
    "BeginClip",
    "OutputConfig",
    "Rows",
    "panoptic_folder",
    "results_folder",
    "tracks_folder",
]
