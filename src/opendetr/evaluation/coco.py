"""The COCO score of boxes or masks: average precision and recall over ten IoU thresholds, in double precision.

Shape letters: n detections of one image, T IoU thresholds, R recall steps, K categories, A area ranges, M limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coder

from opendetr.distributed import gather
from opendetr.results import Detections

METRICS = {
    "AP": "average precision, mean over IoU 0.50 to 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "AP_S": "average precision, objects below 32² pixels",
    "AP_M": "average precision, objects of 32² to 96² pixels",
    "AP_L": "average precision, objects above 96² pixels",
    "AR1": "average recall, 1 detection an image and class",
    "AR10": "average recall, 10 detections an image and class",
    "AR100": "average recall, 100 detections an image and class",
    "AR_S": "average recall, objects below 32² pixels",
    "AR_M": "average recall, objects of 32² to 96² pixels",
    "AR_L": "average recall, objects above 96² pixels",
}
"""The twelve COCO numbers in their customary order, each with what it says."""


class CocoEvaluator:
    """Collects detections and scores their boxes, or their masks, against a COCO truth.

    Every image of `truth` counts: one that no `update` names is an image on which nothing was found. Detections of
    categories that the truth does not list are left out, as COCO does. An image given again replaces what was there,
    so that the repeats with which a distributed sampler fills its last batch do no harm. Masks are held as run lengths.

    Example:
        >>> evaluator = CocoEvaluator(data.to_coco())
        >>> evaluator.update([image.id for image in batch], detections)
        >>> evaluator.compute()["AP50"]
        0.731
    """

    def __init__(
        self, truth: dict[str, Any], *, max_detections: int = 100, masks: bool = False, outlines_follow: bool = False
    ) -> None:
        """Score against `truth`.

        Args:
            truth: a COCO detection file as a dict: `images` (id), `categories` (id, name) and `annotations` (image_id,
                category_id, bbox in x, y, w, h pixels; `area` is w * h and `iscrowd` 0 where absent). Ids may have
                holes and start at 0. It is read, never changed. For masks: also the images' height and width, and
                polygons or run lengths as the annotations' `segmentation`.
            max_detections: of each image and category only so many, the best scored, count. COCO's own is 100.
            masks: compare masks instead of boxes.
            outlines_follow: the annotations have no outlines yet: `outline` gives them, image by image.

        Raises:
            ValueError: a key of `truth` is missing, an annotation has no outline where masks are compared and none
                follow, or `max_detections` is not above 10.
        """
        for key in ("images", "annotations", "categories"):
            if key not in truth:
                raise ValueError(f"the truth has no '{key}'; pass the content of a COCO detection file")
        if max_detections <= 10:  # the limits of AR1 and AR10 lie below it
            raise ValueError(f"max_detections: expected more than 10, got {max_detections}")
        if masks and not outlines_follow:
            _require_outlines(truth)
        self.truth = truth
        self.masks = masks
        self.max_detections = max_detections
        self._image_ids = {image["id"] for image in truth["images"]}
        self._rows: dict[int, np.ndarray] = {}  # image id -> (n, 6) float64: category id, x, y, w, h, score
        self._outlines: dict[int, list[dict[str, Any]]] = {}  # image id -> run lengths of the n masks
        self._following = Counter(row["image_id"] for row in truth["annotations"]) if outlines_follow else Counter()
        self._true_outlines: dict[int, Sequence[dict[str, Any]]] = {}  # image id -> those of its annotations

    def update(self, image_ids: Sequence[int], results: Sequence[Detections]) -> None:
        """Add the detections of some images.

        Args:
            image_ids: the dataset's ids of the images.
            results: one `Detections` for each; their `categories` give the labels the dataset's category ids.

        Raises:
            ValueError: an image is not in the truth, a score or box is not finite, masks are compared and there are
                none, or the lengths differ.
        """
        for image_id, detections in zip(image_ids, results, strict=True):
            if image_id not in self._image_ids:
                raise ValueError(f"image {image_id} is not in the truth; evaluate against the split it comes from")
            if self.masks and detections.masks is None:
                raise ValueError(f"image {image_id}: no masks were found to compare; take a model that gives them")
            found = (detections if self.masks else replace(detections, masks=None)).to_coco(image_id)
            rows = [[row["category_id"], *row["bbox"], row["score"]] for row in found]
            array = np.array(rows, dtype=np.float64).reshape(-1, 6)
            if not np.isfinite(array).all():
                raise ValueError(f"image {image_id}: a score or box is not finite; the weights have diverged")
            self._rows[image_id] = array
            if self.masks:
                self._outlines[image_id] = [row["segmentation"] for row in found]

    def outline(self, image_id: int, outlines: Sequence[dict[str, Any]]) -> None:
        """Give the true outlines of an image, where they follow: polygons or run lengths of its annotations, in order.

        Raises ValueError when there are not as many as annotations.
        """
        expected = self._following[image_id]
        if len(outlines) != expected:
            raise ValueError(f"image {image_id}: expected outlines of {expected} annotations, got {len(outlines)}")
        self._true_outlines[image_id] = outlines

    @property
    def without_outlines(self) -> list[int]:
        """The images whose true outlines are still to be given by `outline`."""
        return [image_id for image_id in self._following if image_id not in self._true_outlines]

    def gather(self) -> None:
        """Take in what the other processes have collected, of other images."""
        for rows, outlines, true_outlines in gather((self._rows, self._outlines, self._true_outlines)):
            self._rows.update(rows)
            self._outlines.update(outlines)
            self._true_outlines.update(true_outlines)

    @property
    def results(self) -> list[dict[str, Any]]:
        """The rows of a COCO results file: `image_id`, `category_id`, `bbox` in x, y, w, h pixels, `score`.

        Where masks are compared each has its run lengths as `segmentation`.
        """
        found: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": int(category_id), "bbox": box, "score": score}
            for image_id, rows in self._rows.items()
            for category_id, *box, score in rows.tolist()
        ]
        if self.masks:
            outlines = (outline for image_id in self._rows for outline in self._outlines[image_id])
            for row, outline in zip(found, outlines, strict=True):
                row["segmentation"] = outline
        return found

    def compute(self) -> dict[str, Any]:
        """The score of what was collected so far.

        Returns:
            The twelve COCO numbers under the keys of `METRICS` (the largest recall limit is named by
            `max_detections`), and under "per_class" the AP of each category by name, in the order of their ids. All
            are in 0..1, or None where the truth holds nothing to find: a class, or a range of sizes, without objects.
            (COCO writes -1 there; None cannot slip into a mean.)

        Raises:
            ValueError: true outlines that were to follow are still missing.
        """
        if self.without_outlines:
            raise ValueError(
                f"image {self.without_outlines[0]}: its true outlines are missing; give them with `outline`"
            )
        truth, results = self._indexed(self._truth_rows()), self._indexed(self._result_rows())
        evaluation = COCOeval_faster(truth, results, "segm" if self.masks else "bbox")
        evaluation.params.maxDets = [1, 10, self.max_detections]
        evaluation.run()
        names = [f"AR{self.max_detections}" if name == "AR100" else name for name in METRICS]
        metrics: dict[str, Any] = {
            name: _defined(value) for name, value in zip(names, evaluation.stats[: len(names)], strict=True)
        }
        metrics["per_class"] = self._per_class(evaluation.eval["precision"], evaluation.params.catIds)
        return metrics

    def _truth_rows(self) -> list[dict[str, Any]]:
        """The annotations, numbered from 1: the matching takes an annotation id of 0 for `nothing matched`."""
        rows = []
        following = {image_id: iter(outlines) for image_id, outlines in self._true_outlines.items()}
        for number, annotation in enumerate(self.truth["annotations"], 1):
            width, height = annotation["bbox"][2:]
            row = {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": annotation.get("area", width * height),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
            if self.masks:
                given = following.get(annotation["image_id"])
                row["segmentation"] = annotation["segmentation"] if given is None else next(given)
            rows.append(row)
        return rows

    def _result_rows(self) -> list[dict[str, Any]]:
        rows = self.results
        for number, row in enumerate(rows, 1):
            area = float(coder.area(row["segmentation"])) if self.masks else row["bbox"][2] * row["bbox"][3]
            row.update(id=number, area=area, iscrowd=0)
        return rows

    def _indexed(self, annotations: list[dict[str, Any]]) -> COCO:
        """Annotations as faster-coco-eval reads them. Its `loadRes` does the same, but fails without detections."""
        sides = ("height", "width") if self.masks else ()
        images = [{key: image[key] for key in ("id", *sides)} for image in self.truth["images"]]
        categories = [{"id": category["id"]} for category in self.truth["categories"]]
        return COCO({"images": images, "annotations": annotations, "categories": categories})

    def _per_class(self, precision: np.ndarray, category_ids: Sequence[int]) -> dict[str, float | None]:
        """AP of each category from (T, R, K, A, M) precisions; equal names are told apart by their ids."""
        names = {category["id"]: str(category["name"]) for category in self.truth["categories"]}
        counts = Counter(names.values())
        all_sizes, last_limit = 0, -1
        per_class = {}
        for index, category_id in enumerate(category_ids):
            name = names[category_id]
            values = precision[:, :, index, all_sizes, last_limit]
            mean = _defined(values.mean())  # a class without objects is -1 throughout
            per_class[name if counts[name] == 1 else f"{name} ({category_id})"] = mean
        return per_class


def _require_outlines(truth: dict[str, Any]) -> None:
    """Raise ValueError for an annotation without an outline."""
    without = next((row for row in truth["annotations"] if not row.get("segmentation")), None)
    if without is not None:
        raise ValueError(
            f"image {without['image_id']}: an annotation has no outline to compare masks with; read the data with masks"
        )


def _defined(value: float) -> float | None:
    """COCO's number, None where it says -1 for `not defined`."""
    return float(value) if value >= 0 else None
