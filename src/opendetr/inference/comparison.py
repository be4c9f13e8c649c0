"""Contact sheets that show the ground truth of dataset images next to a detector's predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from opendetr.data import DetectionData, ImageError, ImageRecord, panoptic_truth, read_masks, read_record
from opendetr.inference.predictor import Predictor
from opendetr.results import Detections, Panoptic, draw_detections, draw_panoptic
from opendetr.scoring import ScoreThresholds
from opendetr.visualize import contact_sheet, draw_segments, draw_truth

_SHOWN_SCORE = 0.3  # detections with a lower score are not drawn, unless the detector has its own thresholds
_TITLES = ("ground truth", "prediction")


def compare(
    detector: Predictor, data: DetectionData, records: Iterable[ImageRecord]
) -> Iterator[tuple[ImageRecord, Image.Image]]:
    """Yield a sheet with ground truth and predictions for each record. Unreadable images are skipped.

    Objects are drawn as masks if both the dataset and the detector have masks, and as boxes otherwise. If both also
    have panoptic maps, the maps are shown in a second row.
    """
    with_masks = detector.has_masks and data.masks != "none"
    for record in records:
        try:
            pixels = read_record(record)
            images = _objects(detector, data, record, pixels, with_masks=with_masks)
            if with_masks and record.panoptic_map is not None:
                images += _maps(detector, data, record, pixels)
        except ImageError:
            continue  # the evaluation has already reported it
        yield record, contact_sheet(images, 2, _TITLES * (len(images) // 2))


def _objects(
    detector: Predictor, data: DetectionData, record: ImageRecord, pixels: np.ndarray, *, with_masks: bool
) -> list[Image.Image]:
    categories = data.categories
    things = [obj for obj in record.objects if categories.isthing[categories.label_of_id(obj.category_id)]]
    masks = read_masks(record, things) if with_masks else None
    chosen = detector.thresholds or ScoreThresholds(_SHOWN_SCORE)
    by_class = {name: score for name, score in chosen.by_class.items() if name in detector.categories.names}
    result = detector.predict(pixels, min_score=chosen.default, class_min_scores=by_class)
    assert isinstance(result, Detections)  # of one image
    return [draw_truth(pixels, things, categories, masks=masks), draw_detections(result)]


def _maps(detector: Predictor, data: DetectionData, record: ImageRecord, pixels: np.ndarray) -> list[Image.Image]:
    segments, info = panoptic_truth(record, data.categories)
    labels = {segment.id: segment.label for segment in info}
    result = detector.predict(pixels, panoptic=True)
    assert isinstance(result, Panoptic)  # of one image
    return [draw_segments(pixels, segments, labels, data.categories), draw_panoptic(result)]
