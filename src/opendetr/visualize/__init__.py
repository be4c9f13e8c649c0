"""Draw images with boxes, masks, labels and panoptic maps, contact sheets, and training curves.

Everything is drawn with Pillow and NumPy and returned as a new RGB image. Small images are enlarged to keep labels
legible. Line widths and font sizes depend on the size of the image. `save_image`
writes an image to a file. `progress_bar` shows progress on the terminal.
"""

from __future__ import annotations

from opendetr.visualize.charts import draw_curves
from opendetr.visualize.drawing import (
    TruthObject,
    as_image,
    contact_sheet,
    draw_boxes,
    draw_segments,
    draw_truth,
    require_format,
    save_image,
    truth_sheet,
)
from opendetr.visualize.progress import progress_bar

__all__ = [
    "TruthObject",
    "as_image",
    "contact_sheet",
    "draw_boxes",
    "draw_curves",
    "draw_segments",
    "draw_truth",
    "progress_bar",
    "require_format",
    "save_image",
    "truth_sheet",
]
