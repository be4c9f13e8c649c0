"""Contact sheets that show the ground truth of dataset images next to a detector's predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from opendetr.categories import Categories
from opendetr.config import ConfigError
from opendetr.data import (
    CAPTION,
    SPANS,
    DetectionData,
    ImageError,
    ImageRecord,
    panoptic_truth,
    read_masks,
    read_record,
    text_of,
    things_of,
)
from opendetr.inference.predictor import Predictor
from opendetr.inference.texts import TEXT_SCORE
from opendetr.results import Detections, Panoptic, draw_detections, draw_panoptic
from opendetr.scoring import ScoreThresholds
from opendetr.visualize import as_image, contact_sheet, draw_segments, draw_truth

SHOWN_SCORE = 0.3
"""Detections with a lower score are not shown, unless the detector has its own thresholds."""

TitledImages = list[tuple[str, Image.Image]]
"""Pairs of a title and an image."""


def compare(
    detector: Predictor, data: DetectionData, records: Iterable[ImageRecord]
) -> Iterator[tuple[ImageRecord, Image.Image]]:
    """Yield a sheet with ground truth and predictions for each record, as in `comparisons`."""
    for record, images in comparisons(detector, data, records):
        titles = [title for title, _ in images]
        yield record, contact_sheet([image for _, image in images], 2, titles)


def comparisons(
    detector: Predictor, data: DetectionData, records: Iterable[ImageRecord], *, text: float = 1
) -> Iterator[tuple[ImageRecord, TitledImages]]:
    """Yield the ground truth and the prediction for each record, drawn on its image. Unreadable images are skipped.

    A model that takes text gets the caption of the image, and objects have the words that name them. The title of the
    ground truth is the caption. The answers to a question are in the titles.

    Objects are drawn as masks if both the dataset and the detector have masks, and as boxes otherwise. If both also
    have panoptic maps, the maps of ground truth and prediction follow. Stuff is drawn if the detector predicts it.

    Args:
        detector: the detector.
        data: the dataset of the records.
        records: the images to show.
        text: factor on the size of labels and lines, for images that are shown smaller than they are.
    """
    with_masks = detector.has_masks and data.masks != "none"
    for record in records:
        try:
            pixels = read_record(record)
            if detector.model.takes_text:
                images = _described(detector, data, record, pixels, text=text)
            else:
                images = _objects(detector, data, record, pixels, with_masks=with_masks, text=text)
            if with_masks and record.panoptic_map is not None:
                images += _maps(detector, data, record, pixels, text=text)
        except ImageError:
            continue  # the evaluation has already reported it
        yield record, images


def _objects(
    detector: Predictor,
    data: DetectionData,
    record: ImageRecord,
    pixels: np.ndarray,
    *,
    with_masks: bool,
    text: float,
) -> TitledImages:
    known, categories = detector.categories, data.categories
    stuff = any(used and not isthing for used, isthing in zip(known.used, known.isthing, strict=True))
    objects = record.objects if stuff else things_of(record, categories)
    masks = read_masks(record, objects) if with_masks else None
    chosen = detector.thresholds or ScoreThresholds(SHOWN_SCORE)
    by_class = {name: score for name, score in chosen.by_class.items() if name in detector.categories.names}
    result = detector.predict(pixels, min_score=chosen.default, class_min_scores=by_class)
    assert isinstance(result, Detections)  # of one image
    result = replace(result, categories=_with_colours_of(categories, known))
    return [
        ("ground truth", draw_truth(pixels, objects, categories, masks=masks, text=text)),
        ("prediction", draw_detections(result, text=text)),
    ]


def _described(
    detector: Predictor, data: DetectionData, record: ImageRecord, pixels: np.ndarray, *, text: float
) -> TitledImages:
    """The objects that the caption names, each with its words."""
    caption, categories = str(record.extras[CAPTION]), data.categories
    spans = [obj.extras[SPANS] for obj in record.objects]
    names = [" ... ".join(caption[begin:end] for begin, end in of_object) for of_object in spans]
    truth = draw_truth(pixels, record.objects, categories, names=names, text=text)
    title, found = "prediction", as_image(pixels)
    try:
        detections = detector.predict(pixels, text=caption, min_score=TEXT_SCORE)
        assert isinstance(detections, Detections)  # of one image
        found = draw_detections(detections, text=text)
        if "answer" in record.extras:
            title = f"prediction: {detector.ask(pixels, caption).text}"
    except ConfigError:
        pass  # the model knows no word of the caption, or answers no questions
    return [(text_of(record), truth), (title, found)]


def _with_colours_of(data: Categories, detector: Categories) -> Categories:
    """The classes of the detector in the colours of the dataset, so that ground truth and prediction look alike."""
    known = dict(zip(data.names, data.colours, strict=True))
    pairs = zip(detector.names, detector.colours, strict=True)
    return replace(detector, colours=tuple(known.get(name, colour) for name, colour in pairs))


def _maps(
    detector: Predictor, data: DetectionData, record: ImageRecord, pixels: np.ndarray, *, text: float
) -> TitledImages:
    segments, info = panoptic_truth(record, data.categories)
    labels = {segment.id: segment.label for segment in info}
    result = detector.predict(pixels, panoptic=True)
    assert isinstance(result, Panoptic)  # of one image
    result = replace(result, categories=_with_colours_of(data.categories, result.categories))
    return [
        ("ground truth, panoptic map", draw_segments(pixels, segments, labels, data.categories, text=text)),
        ("prediction, panoptic map", draw_panoptic(result, text=text)),
    ]
