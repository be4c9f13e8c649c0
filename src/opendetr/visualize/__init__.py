"""Draw images with boxes, masks, labels and panoptic maps, contact sheets, charts, and statistics of datasets.

Everything is drawn with Pillow and NumPy and returned as a new RGB image. Small images are enlarged to keep labels
legible. Line widths and font sizes depend on the size of the image. `save_image`
writes an image to a file. `progress_bar` and `StatusBar` show progress on the
terminal and in notebooks.
"""

from __future__ import annotations

from opendetr.visualize.carriers import draw_carriers
from opendetr.visualize.charts import draw_curves
from opendetr.visualize.drawing import (
    TruthObject,
    as_image,
    contact_sheet,
    draw_boxes,
    draw_segments,
    draw_truth,
    phrase_colour,
    require_format,
    save_image,
)
from opendetr.visualize.heat import (
    COVER,
    HEAT,
    LEVELS,
    POINT_RADIUS,
    draw_colours,
    draw_heat,
    draw_rings,
    draw_weighted_points,
)
from opendetr.visualize.plots import draw_bars, draw_histogram, draw_matrix, draw_points
from opendetr.visualize.progress import StatusBar, progress_bar
from opendetr.visualize.statistics import draw_statistics
from opendetr.visualize.style import PALETTE, Colour
from opendetr.visualize.trails import draw_tracks, track_colour

__all__ = [
    "COVER",
    "HEAT",
    "LEVELS",
    "PALETTE",
    "POINT_RADIUS",
    "Colour",
    "StatusBar",
    "TruthObject",
    "as_image",
    "contact_sheet",
    "draw_bars",
    "draw_boxes",
    "draw_carriers",
    "draw_colours",
    "draw_curves",
    "draw_heat",
    "draw_histogram",
    "draw_matrix",
    "draw_points",
    "draw_rings",
    "draw_segments",
    "draw_statistics",
    "draw_tracks",
    "draw_truth",
    "draw_weighted_points",
    "phrase_colour",
    "progress_bar",
    "require_format",
    "save_image",
    "track_colour",
]
