"""Images: boxes and masks with labels, panoptic maps, truth beside prediction, contact sheets, curves of a training.

Everything is drawn with Pillow and NumPy and returned as a new RGB image. Small images are drawn enlarged, so that
labels stay legible; line widths and letters follow the size of the image. `save_image` writes an image to a file.
`progress_bar` shows progress on the terminal.
"""

from __future__ import annotations

from opendetr.visualize.charts import draw_curves
from opendetr.visualize.pictures import (
    TruthObject,
    as_image,
    contact_sheet,
    draw_boxes,
    draw_segments,
    draw_truth,
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
    "save_image",
    "truth_sheet",
]
