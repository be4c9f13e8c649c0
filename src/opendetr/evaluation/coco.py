"""COCO metrics of boxes or masks: average precision and recall over ten IoU thresholds, in double precision.

Shape letters: n detections of one image, T IoU thresholds, R recall steps, K categories, A area ranges, M detection
limits.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coder
from hotcoco import COCO, COCOeval

from opendetr.distributed import gather
from opendetr.evaluation.thresholds import Matched, OperatingPoints, concatenate_matches, match_boxes, operating_points
from opendetr.results import Detections, run_lengths

DETECTION_METRICS = {
    "AP": "average precision, mean over IoU 0.50 to 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "AP_S": "average precision, objects below 32² pixels",
    "AP_M": "average precision, objects of 32² to 96² pixels",
    "AP_L": "average precision, objects above 96² pixels",
    "AR1": "average recall, 1 detection per image and class",
    "AR10": "average recall, 10 detections per image and class",
    "AR100": "average recall, 100 detections per image and class",
    "AR_S": "average recall, objects below 32² pixels",
    "AR_M": "average recall, objects of 32² to 96² pixels",
    "AR_L": "average recall, objects above 96² pixels",
}
"""The twelve COCO metrics in their customary order, each with its meaning."""
AREA_RANGES = {"S": (0.0, 32.0**2), "M": (32.0**2, 96.0**2), "L": (96.0**2, math.inf)}
"""The least and the largest area, in pixels, of the objects that count for the metrics of a size, such as AP_S."""


class CocoEvaluator:
    """Collects detections and evaluates their boxes or masks against a COCO ground truth.

    Every image of the ground truth counts: an image without an `update` counts as an image without detections. As in
    COCO, detections of categories that the ground truth does not list are ignored. Updating an image again replaces its
    detections, so the repeated images with which a distributed sampler fills its last batch do no harm. Masks are kept
    as RLE.

    Example:
        >>> evaluator = CocoEvaluator(data.to_coco())
        >>> evaluator.update([image.id for image in batch], detections)
        >>> evaluator.compute()["AP50"]
        0.731
    """

    def __init__(
        self,
        ground_truth: dict[str, Any],
        *,
        max_detections: int = 100,
        masks: bool = False,
        outlines_follow: bool = False,
    ) -> None:
        """Create an evaluator without detections.

        Args:
            ground_truth: the content of a COCO detection file: `images` (id), `categories` (id, name) and `annotations`
                (image_id, category_id, bbox as x, y, w, h in pixels). A missing `area` is w * h, a missing `iscrowd`
                is 0. Ids may have gaps and start at 0. The dict is not modified. To evaluate masks, images also need
                height and width, and annotations a `segmentation` of polygons or RLE.
            max_detections: detections that count per image and category, those with the best scores. COCO uses 100.
            masks: evaluate masks instead of boxes.
            outlines_follow: the annotations have no outlines yet; `outline` adds them, image by image.

        Raises:
            ValueError: a key of `ground_truth` is missing, `max_detections` is not above 10, or an annotation has no
                outline although masks are evaluated and `outlines_follow` is not set.
        """
        for key in ("images", "annotations", "categories"):
            if key not in ground_truth:
                raise ValueError(f"the ground truth has no '{key}'; pass the content of a COCO detection file")
        if max_detections <= 10:  # AR1 and AR10 use the limits 1 and 10
            raise ValueError(f"max_detections: expected more than 10, got {max_detections}")
        if masks and not outlines_follow:
            _require_outlines(ground_truth)
        self.ground_truth = ground_truth
        self.masks = masks
        self.max_detections = max_detections
        self._image_ids = {image["id"] for image in ground_truth["images"]}
        self._rows: dict[int, np.ndarray] = {}  # image id -> (n, 6) float64: category id, x, y, w, h, score
        self._outlines: dict[int, list[dict[str, Any]]] = {}  # image id -> RLE of the n masks
        self._num_outlines = Counter(row["image_id"] for row in ground_truth["annotations"] if outlines_follow)
        self._true_outlines: dict[int, Sequence[dict[str, Any]]] = {}  # image id -> those of its annotations

    def update(self, image_ids: Sequence[int], results: Sequence[Detections]) -> None:
        """Add the detections of some images.

        Args:
            image_ids: the dataset's ids of the images.
            results: one `Detections` per image. Their `categories` map labels to the dataset's category ids.

        Raises:
            ValueError: an image is not in the ground truth, a score or box is not finite, masks are evaluated and the
                detections have none, or the lengths differ.
        """
        for image_id, detections in zip(image_ids, results, strict=True):
            if image_id not in self._image_ids:
                raise ValueError(f"image {image_id} is not in the ground truth; evaluate on its own split")
            masks = detections.masks
            if self.masks and masks is None:
                raise ValueError(f"image {image_id}: the detections have no masks; use a model with a mask head")
            rows = _rows_of(detections)
            if not np.isfinite(rows).all():
                raise ValueError(f"image {image_id}: a score or box is not finite; the weights have diverged")
            self._rows[image_id] = rows
            if self.masks and masks is not None:
                self._outlines[image_id] = [run_lengths(mask) for mask in masks]

    def outline(self, image_id: int, outlines: Sequence[dict[str, Any]]) -> None:
        """Add the ground-truth outlines of an image if `outlines_follow` is set.

        Args:
            image_id: the dataset's id of the image.
            outlines: polygons or RLE, one per annotation of the image, in the order of the annotations.

        Raises:
            ValueError: the number of outlines is not the number of annotations.
        """
        expected = self._num_outlines[image_id]
        if len(outlines) != expected:
            raise ValueError(f"image {image_id}: expected outlines of {expected} annotations, got {len(outlines)}")
        self._true_outlines[image_id] = outlines

    @property
    def without_outlines(self) -> list[int]:
        """The ids of the images whose outlines have not been added by `outline` yet."""
        return [image_id for image_id in self._num_outlines if image_id not in self._true_outlines]

    def gather(self) -> None:
        """Add the detections that the other processes have collected."""
        for rows, outlines, true_outlines in gather((self._rows, self._outlines, self._true_outlines)):
            self._rows.update(rows)
            self._outlines.update(outlines)
            self._true_outlines.update(true_outlines)

    @property
    def results(self) -> list[dict[str, Any]]:
        """The rows of a COCO results file: `image_id`, `category_id`, `bbox` as x, y, w, h in pixels, `score`.

        If masks are evaluated, each row also has its RLE as `segmentation`.
        """
        results: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": int(category_id), "bbox": box, "score": score}
            for image_id, rows in self._rows.items()
            for category_id, *box, score in rows.tolist()
        ]
        if self.masks:
            outlines = (outline for image_id in self._rows for outline in self._outlines[image_id])
            for row, outline in zip(results, outlines, strict=True):
                row["segmentation"] = outline
        return results

    def compute(self) -> dict[str, Any]:
        """The metrics of the detections collected so far.

        Returns:
            The twelve COCO metrics under the keys of `DETECTION_METRICS`; "AR100" is named after `max_detections`.
            Under "per_class", the AP of each category by name, in the order of their ids. All are in 0..1, or None if
            the ground truth has no object of the category or range of sizes. (COCO reports -1 there. None cannot be
            averaged by mistake.)

        Raises:
            ValueError: outlines of an image are missing although `outlines_follow` is set.
        """
        if self.without_outlines:
            raise ValueError(f"image {self.without_outlines[0]}: its outlines are missing; add them with `outline`")
        truth = self._truth()
        evaluation: Any = COCOeval(truth, self._found(truth), "segm" if self.masks else "bbox")
        evaluation.params.max_dets = [1, 10, self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        # It prints its table, and warns about other limits than COCO's.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            evaluation.summarize()
        names = [f"AR{self.max_detections}" if name == "AR100" else name for name in DETECTION_METRICS]
        metrics: dict[str, Any] = {
            name: _defined(value) for name, value in zip(names, evaluation.stats[: len(names)], strict=True)
        }
        metrics["per_class"] = self._per_class(evaluation.eval["precision"], evaluation.params.cat_ids)
        return metrics

    def operating_points(self) -> OperatingPoints:
        """Precision, recall and F1 of boxes at the thresholds that maximise F1; classes are named as in `compute`."""
        truth = _by_image_and_class(
            (row["image_id"], row["category_id"], (*row["bbox"], row.get("iscrowd", 0)))
            for row in self.ground_truth["annotations"]
        )
        found = _by_image_and_class(
            (image_id, int(row[0]), row[1:]) for image_id, rows in self._rows.items() for row in _sorted_by_score(rows)
        )
        parts: dict[int, list[Matched]] = {category["id"]: [] for category in self.ground_truth["categories"]}
        for image_id, category_id in sorted(truth.keys() | found.keys()):
            if category_id in parts:
                key = image_id, category_id
                annotated = np.array(truth.get(key, ()), np.float64).reshape(-1, 5)
                detected = np.array(found.get(key, ())[: self.max_detections], np.float64).reshape(-1, 5)
                crowd = annotated[:, 4].astype(bool)
                parts[category_id].append(match_boxes(detected[:, :4], detected[:, 4], annotated[:, :4], crowd))
        names = self._class_names()
        return operating_points(
            {names[category_id]: concatenate_matches(parts[category_id]) for category_id in sorted(parts)}
        )

    def _truth(self) -> COCO:
        """The annotations, numbered from 1: COCO's matching uses annotation id 0 for "not matched"."""
        rows = self.ground_truth["annotations"]
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        areas = [
            row.get("area", width * height) for row, (width, height) in zip(rows, boxes[:, 2:].tolist(), strict=True)
        ]
        outlines = None
        if self.masks:
            added = {image_id: iter(outlines) for image_id, outlines in self._true_outlines.items()}
            outlines = [
                next(added[row["image_id"]]) if row["image_id"] in added else row["segmentation"] for row in rows
            ]
        sides = ("height", "width") if self.masks else ()
        return COCO.from_arrays(
            [{key: image[key] for key in ("id", *sides)} for image in self.ground_truth["images"]],
            [{"id": row["id"], "name": str(row["name"])} for row in self.ground_truth["categories"]],
            np.array([row["image_id"] for row in rows], np.int64),
            np.array([row["category_id"] for row in rows], np.int64),
            boxes,
            area=np.array(areas, np.float64),
            iscrowd=[int(row.get("iscrowd", 0)) for row in rows],
            segmentation=outlines,
        )

    def _found(self, truth: COCO) -> COCO:
        """The detections, as an addition to the ground truth."""
        rows = np.concatenate([np.empty((0, 6)), *self._rows.values()])
        image_ids = np.repeat(np.array([*self._rows], np.float64), [len(each) for each in self._rows.values()])
        table = np.column_stack(
            (image_ids, rows[:, 1:], rows[:, 0])
        )  # (n, 7): image id, x, y, w, h, score, category id
        if not self.masks:
            return truth.load_res(table)
        outlines: list[Any] = [outline for image_id in self._rows for outline in self._outlines[image_id]]
        found = truth.load_res(table, segmentation=outlines)
        areas = np.array([coder.area(outline) for outline in outlines], np.float64)  # it has set those of the boxes
        found.update_anns(ids=np.arange(1, len(areas) + 1), area=areas)
        return found

    def _per_class(self, precision: np.ndarray, category_ids: Sequence[int]) -> dict[str, float | None]:
        """AP of each category from (T, R, K, A, M) precisions."""
        names = self._class_names()
        all_sizes, last_limit = 0, -1
        return {
            # all -1 for a class without objects
            names[category_id]: _defined(precision[:, :, index, all_sizes, last_limit].mean())
            for index, category_id in enumerate(category_ids)
        }

    def _class_names(self) -> dict[int, str]:
        """Category id -> name. The id is appended to names that occur more than once."""
        names = {category["id"]: str(category["name"]) for category in self.ground_truth["categories"]}
        counts = Counter(names.values())
        return {id_: name if counts[name] == 1 else f"{name} ({id_})" for id_, name in names.items()}


def _rows_of(detections: Detections) -> np.ndarray:
    """(n, 6) float64: category id, x, y, w, h in pixels, score."""
    ids = np.array(detections.categories.ids, np.float64)
    x0, y0, x1, y1 = detections.boxes.detach().cpu().double().numpy().T
    scores = detections.scores.detach().cpu().double().numpy()
    return np.stack((ids[detections.labels.cpu().numpy()], x0, y0, x1 - x0, y1 - y0, scores), 1)


def _sorted_by_score(rows: np.ndarray) -> np.ndarray:
    """(n, 6) detections in descending order of the score, the last column."""
    return rows[np.argsort(-rows[:, 5], kind="stable")]


def _by_image_and_class(rows: Iterable[tuple[int, int, Any]]) -> dict[tuple[int, int], list[Any]]:
    """Group triples of image id, category id and value by the two ids."""
    groups: dict[tuple[int, int], list[Any]] = {}
    for image_id, category_id, value in rows:
        groups.setdefault((image_id, category_id), []).append(value)
    return groups


def _require_outlines(ground_truth: dict[str, Any]) -> None:
    """Raise ValueError if an annotation has no outline."""
    without = next((row for row in ground_truth["annotations"] if not row.get("segmentation")), None)
    if without is not None:
        raise ValueError(
            f"image {without['image_id']}: an annotation has no outline to evaluate; load the dataset with masks"
        )


def _defined(value: float) -> float | None:
    """A COCO metric; None for -1, which means "not defined"."""
    return float(value) if value >= 0 else None
