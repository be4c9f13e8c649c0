"""The COCO score equals pycocotools', and holds at the edges where evaluators stumble."""

import contextlib
import copy
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from opendetr.categories import Categories
from opendetr.evaluation import DETECTION_METRICS, CocoEvaluator, coco
from opendetr.results import Detections
from opendetr.synthetic import mask_to_polygons, mask_to_rle

CATEGORIES = Categories(("cell", "unseen", "cat", "rare"), (0, 3, 7, 90))  # holes, and an id of 0
TRUTH_LABELS = (0, 2, 3)  # nothing in the truth is "unseen"


def random_truth(rng: np.random.Generator, num_images: int = 30) -> dict:
    """Objects of all sizes on 300 x 400 images, a tenth of them crowd; every fifth image is empty."""
    annotations = []
    for image_id in range(num_images):
        for _ in range(0 if image_id % 5 == 0 else rng.integers(1, 12)):
            width, height = rng.uniform(4, 200, 2)
            left, top = rng.uniform(0, 400 - width), rng.uniform(0, 300 - height)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES.ids[rng.choice(TRUTH_LABELS, p=(0.6, 0.35, 0.05))],
                    "bbox": [left, top, width, height],
                    "area": width * height * rng.uniform(0.5, 1.0),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    images = [{"id": image_id, "height": 300, "width": 400} for image_id in range(num_images)]
    categories = [{"id": id_, "name": name} for id_, name in zip(CATEGORIES.ids, CATEGORIES.names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def random_detections(rng: np.random.Generator, truth: dict, image_id: int) -> Detections:
    """The truth jittered, some of it missed, mislabelled or found twice, plus noise; scores repeat, to have ties."""
    rows = []
    for annotation in truth["annotations"]:
        if annotation["image_id"] == image_id:
            for _ in range(rng.choice((0, 1, 2), p=(0.2, 0.6, 0.2))):
                left, top, width, height = np.array(annotation["bbox"]) + rng.normal(0, 3, 4)
                label = CATEGORIES.label_of_id(annotation["category_id"])
                rows.append((left, top, left + abs(width), top + abs(height), label))
    for _ in range(rng.integers(0, 8)):
        left, top, width, height = rng.uniform(1, 200, 4)
        rows.append((left, top, left + width, top + height, rng.integers(len(CATEGORIES))))
    table = torch.tensor(np.array(rows).reshape(-1, 5))
    scores = torch.tensor(rng.uniform(0, 1, len(rows))).float()
    return Detections(table[:, :4].float(), (scores * 20).round() / 20, table[:, 4].long(), CATEGORIES, size=(300, 400))


def no_detections() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), CATEGORIES, (300, 400))


def reference(truth: dict, results: list[dict], what: str = "bbox") -> tuple[np.ndarray, np.ndarray]:
    """pycocotools' twelve numbers and AP per category."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), what)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, -1].mean((0, 1))


def filled(truth: dict, seed: int, skip: tuple[int, ...] = ()) -> CocoEvaluator:
    """An evaluator with random detections on every image but those to skip, given in two updates."""
    rng = np.random.default_rng(seed)
    evaluator = CocoEvaluator(truth)
    ids = [image["id"] for image in truth["images"] if image["id"] not in skip]
    detections = [random_detections(rng, truth, image_id) for image_id in ids]
    evaluator.update(ids[:7], detections[:7])
    evaluator.update(ids[7:], detections[7:])
    return evaluator


def shown(value: float | None) -> float:
    return -1.0 if value is None else value


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(seed):
    truth = random_truth(np.random.default_rng(100 + seed))
    evaluator = filled(truth, seed, skip=(3, 4, 10))
    metrics = evaluator.compute()
    stats, per_class = reference(truth, evaluator.results)
    assert 0.05 < stats[0] < 0.95  # the data tell evaluators apart
    np.testing.assert_allclose([shown(metrics[name]) for name in DETECTION_METRICS], stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose([shown(value) for value in metrics["per_class"].values()], per_class, rtol=0, atol=1e-12)


def test_annotation_id_0_is_an_ordinary_id():
    truth = random_truth(np.random.default_rng(5))
    expected = filled(truth, 5).compute()
    for annotation in truth["annotations"]:
        annotation["id"] -= 1
    assert filled(truth, 5).compute() == expected


def test_perfect_detections_score_1():
    truth = random_truth(np.random.default_rng(6))
    evaluator = CocoEvaluator(truth)
    for image in truth["images"]:
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        corners = torch.tensor([a["bbox"] for a in objects], dtype=torch.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = torch.tensor([CATEGORIES.label_of_id(a["category_id"]) for a in objects], dtype=torch.int64)
        evaluator.update([image["id"]], [Detections(corners, torch.ones(len(objects)), labels, CATEGORIES, (300, 400))])
    metrics = evaluator.compute()
    assert metrics["AP"] == pytest.approx(1.0) and metrics["AR100"] == pytest.approx(1.0)
    assert metrics["per_class"] == {"cell": 1.0, "unseen": None, "cat": 1.0, "rare": 1.0}


@pytest.mark.parametrize("updated", [False, True])
def test_no_detection_at_all_scores_0(updated, capfd):
    truth = random_truth(np.random.default_rng(7))
    evaluator = CocoEvaluator(truth)
    if updated:
        evaluator.update([0, 1], [no_detections(), no_detections()])
    metrics = evaluator.compute()
    assert metrics["AP"] == 0.0 and metrics["AR100"] == 0.0 and evaluator.results == []
    assert capfd.readouterr().out == ""


def test_a_truth_without_objects_has_no_score():
    truth = random_truth(np.random.default_rng(8)) | {"annotations": []}
    evaluator = CocoEvaluator(truth)
    evaluator.update([1], [random_detections(np.random.default_rng(0), truth, 1)])
    metrics = evaluator.compute()
    assert metrics["AP"] is None and set(metrics["per_class"].values()) == {None}


def test_the_truth_is_left_as_it_was_and_prints_nothing(capfd):
    truth = random_truth(np.random.default_rng(9))
    before = copy.deepcopy(truth)
    filled(truth, 9).compute()
    assert truth == before
    assert capfd.readouterr() == ("", "")


def test_images_that_are_never_given_count():
    truth = random_truth(np.random.default_rng(10))
    whole = filled(truth, 10).compute()["AR100"]
    assert filled(truth, 10, skip=tuple(range(15))).compute()["AR100"] < 0.8 * whole


def test_an_image_given_again_replaces_what_was_there():
    truth = random_truth(np.random.default_rng(11))
    detections = random_detections(np.random.default_rng(1), truth, 1)
    once, twice = CocoEvaluator(truth), CocoEvaluator(truth)
    once.update([1], [detections])
    twice.update([1, 1], [detections, detections])
    assert twice.results == once.results and twice.compute() == once.compute()


def test_results_are_the_rows_of_the_detections():
    truth = random_truth(np.random.default_rng(16))
    detections = random_detections(np.random.default_rng(2), truth, 1)
    evaluator = CocoEvaluator(truth)
    evaluator.update([1], [detections])
    assert evaluator.results == detections.to_coco(1) and len(detections)


def test_area_and_crowd_may_be_absent():
    truth = random_truth(np.random.default_rng(12))
    for annotation in truth["annotations"]:
        annotation |= {"area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0}
    expected = filled(truth, 12).compute()
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    assert filled(truth, 12).compute() == expected


def full_truth(rng: np.random.Generator) -> dict:
    """Two images with 150 objects each, most of them of one class."""
    boxes = np.concatenate([rng.uniform(0, 200, (2, 150, 2)), rng.uniform(8, 150, (2, 150, 2))], -1)
    rows = [(image_id, box) for image_id in range(2) for box in boxes[image_id].tolist()]
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": (0, 7)[number % 8 == 0],
            "bbox": box,
            "area": box[2] * box[3],
        }
        for number, (image_id, box) in enumerate(rows, 1)
    ]
    return random_truth(rng, num_images=2) | {"annotations": [row | {"iscrowd": 0} for row in annotations]}


@pytest.mark.parametrize("limit", [20, 300])
def test_other_limits_equal_pycocotools(limit):
    """Its summary knows a limit of 100 alone, so the numbers are taken from its tables."""
    rng = np.random.default_rng(13)
    truth = full_truth(rng)
    evaluator, usual = CocoEvaluator(truth, max_detections=limit), CocoEvaluator(truth)
    for image_id in range(2):
        rows = [row for row in truth["annotations"] if row["image_id"] == image_id]
        corners = torch.tensor([row["bbox"] for row in rows])
        corners[:, 2:] += corners[:, :2]
        labels = torch.tensor([CATEGORIES.label_of_id(row["category_id"]) for row in rows])
        noise = torch.from_numpy(rng.normal(0, 4, (2, len(rows), 4))).float()
        scores = torch.from_numpy(rng.uniform(0, 1, 2 * len(rows))).float()
        boxes = (corners + noise).flatten(0, 1)
        boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2] + 1)
        found = Detections(boxes, scores, labels.repeat(2), CATEGORIES, (300, 400))
        evaluator.update([image_id], [found])
        usual.update([image_id], [found])
    metrics = evaluator.compute()
    assert "AR100" not in metrics and metrics["AP"] != pytest.approx(usual.compute()["AP"], rel=0.02)
    with contextlib.redirect_stdout(io.StringIO()):
        truth_coco = COCO()
        truth_coco.dataset = copy.deepcopy(truth)
        truth_coco.createIndex()
        evaluation = COCOeval(truth_coco, truth_coco.loadRes(evaluator.results), "bbox")
        evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = (np.ma.masked_equal(evaluation.eval[name], -1) for name in ("precision", "recall"))
    expected = {
        "AP": precision[..., 0, 2], "AP50": precision[0, ..., 0, 2], "AP75": precision[5, ..., 0, 2],
        "AP_S": precision[..., 1, 2], "AP_M": precision[..., 2, 2], "AP_L": precision[..., 3, 2],
        "AR1": recall[..., 0, 0], "AR10": recall[..., 0, 1], f"AR{limit}": recall[..., 0, 2],
        "AR_S": recall[..., 1, 2], "AR_M": recall[..., 2, 2], "AR_L": recall[..., 3, 2],
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == pytest.approx({k: v.mean() for k, v in expected.items()})
    per_class = precision[..., 0, 2].mean((0, 1)).filled(-1)
    np.testing.assert_allclose([shown(value) for value in metrics["per_class"].values()], per_class, atol=1e-12)


def test_equal_names_are_told_apart():
    truth = random_truth(np.random.default_rng(14))
    truth["categories"][2]["name"] = "cell"
    assert list(CocoEvaluator(truth).compute()["per_class"]) == ["cell (0)", "unseen", "cell (7)", "rare"]


def test_bad_input_is_refused_in_one_line():
    truth = random_truth(np.random.default_rng(15))
    evaluator = CocoEvaluator(truth)
    diverged = Detections(torch.full((1, 4), torch.nan), torch.ones(1), torch.zeros(1).long(), CATEGORIES, (300, 400))
    with pytest.raises(ValueError, match="image 999 is not in the ground truth"):
        evaluator.update([999], [no_detections()])
    with pytest.raises(ValueError, match="image 2: a score or box is not finite"):
        evaluator.update([2], [diverged])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        evaluator.update([1, 2], [no_detections()])
    with pytest.raises(ValueError, match="no 'categories'"):
        CocoEvaluator({"images": [], "annotations": []})
    with pytest.raises(ValueError, match="more than 10"):
        CocoEvaluator(truth, max_detections=10)


# ---------------------------------------------------------------------------------------------------------------- masks


def ellipse(box: list[float]) -> np.ndarray:
    """The (300, 400) bool mask of an ellipse that fills a box."""
    left, top, width, height = box
    y, x = np.mgrid[:300, :400] + 0.5
    return ((x - left) / width * 2 - 1) ** 2 + ((y - top) / height * 2 - 1) ** 2 <= 1


def masked_truth(rng: np.random.Generator) -> dict:
    """`random_truth` of ellipses: polygons, RLE for every third and for crowd regions."""
    truth = random_truth(rng, num_images=12)
    kept = []
    for annotation in truth["annotations"]:
        mask = ellipse(annotation["bbox"])
        if mask.any():
            as_runs = annotation["iscrowd"] or annotation["id"] % 3 == 0
            annotation["segmentation"] = mask_to_rle(mask) if as_runs else mask_to_polygons(mask)
            annotation["area"] = int(mask.sum())
            kept.append(annotation)
    return truth | {"annotations": kept}


def masked_detections(rng: np.random.Generator, truth: dict, image_id: int) -> Detections:
    """`random_detections` with ellipses that do not quite fill their boxes, some of them empty."""
    found = random_detections(rng, truth, image_id)
    x0, y0, x1, y1 = found.boxes.unbind(1)
    boxes = torch.stack([x0, y0, (x1 - x0) * 0.97, (y1 - y0) * (0.9 + 0.1 * found.scores)], 1).tolist()
    masks = [ellipse(box) if rng.random() < 0.95 else np.zeros((300, 400), dtype=bool) for box in boxes]
    return replace(found, masks=torch.from_numpy(np.array(masks).reshape(-1, 300, 400)))


def with_masks(seed: int) -> tuple[CocoEvaluator, dict]:
    rng = np.random.default_rng(seed)
    truth = masked_truth(rng)
    evaluator = CocoEvaluator(truth, masks=True)
    for image in truth["images"]:
        evaluator.update([image["id"]], [masked_detections(rng, truth, image["id"])])
    return evaluator, truth


@pytest.mark.parametrize("seed", range(2))
def test_masks_equal_pycocotools(seed):
    evaluator, truth = with_masks(seed)
    metrics = evaluator.compute()
    rows = [{key: value for key, value in row.items() if key != "bbox"} for row in evaluator.results]
    stats, per_class = reference(truth, rows, "segm")
    assert 0.05 < stats[0] < 0.95
    np.testing.assert_allclose([shown(metrics[name]) for name in DETECTION_METRICS], stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose([shown(value) for value in metrics["per_class"].values()], per_class, rtol=0, atol=1e-12)


def test_masks_are_held_as_run_lengths():
    evaluator, _ = with_masks(3)
    held = pickle.dumps(evaluator._outlines)
    assert len(held) < len(evaluator.results) * 2_000  # as bits they are 15,000 bytes each


def test_masks_are_compared_where_there_are_some():
    rng = np.random.default_rng(4)
    truth = masked_truth(rng)
    evaluator = CocoEvaluator(truth, masks=True)
    assert evaluator.compute()["AP"] == 0
    with pytest.raises(ValueError, match="image 1: the detections have no masks"):
        evaluator.update([1], [random_detections(rng, truth, 1)])
    with pytest.raises(ValueError, match="image 1: an annotation has no outline to evaluate"):
        CocoEvaluator(random_truth(rng), masks=True)
    found = masked_detections(rng, truth, 1)
    boxes = CocoEvaluator(truth)
    boxes.update([1], [found])
    assert all("segmentation" not in row for row in boxes.results)


def test_true_outlines_may_follow_and_come_from_all_processes(monkeypatch):
    """Image by image, each in the process that scores it."""
    rng = np.random.default_rng(5)
    truth = masked_truth(rng)
    by_image = {image["id"]: [] for image in truth["images"]}
    for row in truth["annotations"]:
        by_image[row["image_id"]].append(row["segmentation"])
    bare = truth | {"annotations": [{**row, "segmentation": None} for row in truth["annotations"]]}
    found = {image_id: masked_detections(rng, truth, image_id) for image_id in by_image}
    whole = CocoEvaluator(truth, masks=True)
    whole.update(list(found), list(found.values()))
    parts = [CocoEvaluator(bare, masks=True, outlines_follow=True) for _ in range(2)]
    for index, (image_id, detections) in enumerate(found.items()):
        parts[index % 2].update([image_id], [detections])
        parts[index % 2].outline(image_id, by_image[image_id])
    with pytest.raises(ValueError, match="its outlines are missing; add them with `outline`"):
        parts[0].compute()
    with pytest.raises(ValueError, match=f"image 1: expected outlines of {len(by_image[1])} annotations, got 0"):
        parts[0].outline(1, [])
    collected = [(part._rows, part._outlines, part._true_outlines) for part in parts]
    monkeypatch.setattr(coco, "gather", lambda own: collected)
    parts[0].gather()
    assert parts[0].without_outlines == []
    assert parts[0].compute() == whole.compute()
    assert whole.compute()["AP"] > 0.05
