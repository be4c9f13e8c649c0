"""Images of a dataset's truth beside what a detector finds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from opendetr.data import DetectionData, ImageError, ImageRecord, panoptic_truth, read_masks, read_record
from opendetr.inference.predictor import Predictor
from opendetr.results import Detections, Panoptic, draw_detections, draw_panoptic
from opendetr.visualize import contact_sheet, draw_segments, draw_truth

_SHOWN_SCORE = 0.3  # detections that score less are not shown
_TITLES = ("truth", "prediction")


def compare(
    detector: Predictor, data: DetectionData, chosen: Iterable[ImageRecord]
) -> Iterator[tuple[ImageRecord, Image.Image]]:
    """Truth beside prediction for some images of a dataset; those that cannot be read are left out.

    Objects are shown by their masks where data and detector have them, else by their boxes; panoptic maps, where both
    have these, come below.
    """
    with_masks = detector.has_masks and data.masks != "none"
    for record in chosen:
        try:
            pixels = read_record(record)
            images = _objects(detector, data, record, pixels, with_masks=with_masks)
            if with_masks and record.panoptic_map is not None:
                images += _maps(detector, data, record, pixels)
        except ImageError:
            continue  # the evaluation has named it
        yield record, contact_sheet(images, 2, _TITLES * (len(images) // 2))


def _objects(
    detector: Predictor, data: DetectionData, record: ImageRecord, pixels: np.ndarray, *, with_masks: bool
) -> list[Image.Image]:
    categories = data.categories
    things = [each for each in record.objects if categories.isthing[categories.label_of_id(each.category_id)]]
    masks = read_masks(record, things) if with_masks else None
    found = detector.predict(pixels, min_score=_SHOWN_SCORE)
    assert isinstance(found, Detections)  # of one image
    return [draw_truth(pixels, things, categories, masks=masks), draw_detections(found)]


def _maps(detector: Predictor, data: DetectionData, record: ImageRecord, pixels: np.ndarray) -> list[Image.Image]:
    segments, info = panoptic_truth(record, data.categories)
    labels = {segment.id: segment.label for segment in info}
    found = detector.predict(pixels, panoptic=True)
    assert isinstance(found, Panoptic)  # of one image
    return [draw_segments(pixels, segments, labels, data.categories), draw_panoptic(found)]
