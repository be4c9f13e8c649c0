"""Writers of detections and panoptic maps: images, videos, crops, COCO JSON, CSV and YOLO labels.

Their memory use does not grow with the number of images.
"""

from opendetr.inference.writers.folder import COCO_FILE, PANOPTIC_FILE, OutputConfig, panoptic_folder, results_folder
from opendetr.inference.writers.tables import Rows

__all__ = [
    "COCO_FILE",
    "PANOPTIC_FILE",
    "OutputConfig",
    "Rows",
    "panoptic_folder",
    "results_folder",
]
