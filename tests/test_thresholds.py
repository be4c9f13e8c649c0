"""Score thresholds: chosen by F1, stored with the model, used by prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from folders import coco_content, make_image, write_coco_folder, write_image
from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.config import to_dict
from opendetr.evaluation import CocoEvaluator, OperatingPoint, OperatingPoints, match_boxes
from opendetr.evaluation.thresholds import operating_point
from opendetr.inference import load
from opendetr.presets import build_model, miniature
from opendetr.results import Detections
from opendetr.scoring import ScoreThresholds
from opendetr.weights import ModelCard, read_card, save_weights

CLASSES = Categories.from_names(["cat", "dog", "newt"])
SEEDS = range(12)


def random_dataset(seed: int) -> tuple[dict, dict[int, Detections]]:
    """A ground truth with crowd regions and an absent class, and detections near and far, some with equal scores."""
    rng = np.random.default_rng(seed)
    images, annotations, detections = [], [], {}
    for image_id in range(1, 5):
        images.append({"id": image_id, "height": 64, "width": 64})
        boxes = np.concatenate((rng.uniform(0, 40, (5, 2)), rng.uniform(8, 24, (5, 2))), 1)
        labels = rng.integers(0, 2, 5)  # no newt anywhere
        for box, label in zip(boxes, labels, strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id,
                                "category_id": CLASSES.ids[label], "bbox": box.tolist(),
                                "iscrowd": int(rng.random() < 0.2)})  # fmt: skip
        near = boxes[rng.integers(0, 5, 12)] + rng.normal(0, 2.0, (12, 4))
        near[:, 2:] = near[:, 2:].clip(1)
        scores = rng.integers(1, 20, 12) / 20
        corners = np.concatenate((near[:, :2], near[:, :2] + near[:, 2:]), 1)
        detections[image_id] = Detections(
            torch.tensor(corners), torch.tensor(scores).float(), torch.tensor(rng.integers(0, 3, 12)), CLASSES, (64, 64)
        )
    categories = [{"id": id_, "name": name} for id_, name in zip(CLASSES.ids, CLASSES.names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def evaluated(truth: dict, detections: dict[int, Detections]) -> CocoEvaluator:
    evaluator = CocoEvaluator(truth)
    evaluator.update(list(detections), list(detections.values()))
    return evaluator


def matched_above(truth: dict, detections: dict[int, Detections], threshold: float, names: set[str]) -> list[int]:
    """True positives, false positives and objects, of detections filtered before they are matched."""
    counts = np.zeros(3, int)
    for image_id, all_found in detections.items():
        found = all_found[all_found.scores >= threshold]
        for label, name in enumerate(CLASSES.names):
            if name in names:
                rows = [row for row in truth["annotations"] if row["image_id"] == image_id]
                rows = [row for row in rows if row["category_id"] == CLASSES.ids[label]]
                objects = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
                crowd = np.array([row["iscrowd"] for row in rows], bool)
                of_class = found[found.labels == label]
                boxes = of_class.boxes.double().numpy()
                boxes = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
                result = match_boxes(boxes, of_class.scores.double().numpy(), objects, crowd)
                counts += result.correct.sum(), (~result.correct).sum(), result.num_objects
    return counts.tolist()


def check_point(point: OperatingPoint, truth: dict, detections: dict[int, Detections], names: set[str]) -> None:
    """Compare with all thresholds, each applied before the matching."""
    scores = sorted({score for found in detections.values() for score in found.scores.tolist()})
    results = {score: matched_above(truth, detections, score, names) for score in scores}
    f1 = {score: 2 * hits / (hits + misses + objects) for score, (hits, misses, objects) in results.items()}
    assert point.f1 == pytest.approx(max(f1.values()))
    if point.threshold is None:
        assert point.f1 == 0
        return
    hits, misses, objects = matched_above(truth, detections, point.threshold, names)
    assert (point.precision, point.recall) == pytest.approx((hits / (hits + misses), hits / objects))
    assert 2 * hits / (hits + misses + objects) == pytest.approx(point.f1)
    fewer = [score for score in scores if score > point.threshold and results[score] != [hits, misses, objects]]
    assert not any(f1[score] == pytest.approx(point.f1) for score in fewer), "a higher threshold is as good"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_threshold_is_the_best_of_all(seed):
    truth, detections = random_dataset(seed)
    points = evaluated(truth, detections).operating_points()
    assert list(points.per_class) == list(CLASSES.names)
    for name in ("cat", "dog"):
        check_point(points.per_class[name], truth, detections, {name})
    check_point(points.overall, truth, detections, set(CLASSES.names))
    assert points.per_class["newt"] == OperatingPoint()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_matching_is_that_of_coco(seed):
    truth, detections = random_dataset(seed)
    for label, name in enumerate(("cat", "dog")):
        parts = []
        for image_id, found in detections.items():
            key = (image_id, CLASSES.ids[label])
            rows = [row for row in truth["annotations"] if (row["image_id"], row["category_id"]) == key]
            boxes = found[found.labels == label].boxes.numpy()
            boxes = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
            scores = found.scores[found.labels == label].double().numpy()
            objects = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
            parts.append(match_boxes(boxes, scores, objects, np.array([row["iscrowd"] for row in rows], bool)))
        order = np.argsort(-np.concatenate([part.scores for part in parts]), kind="stable")
        hits = np.cumsum(np.concatenate([part.correct for part in parts])[order])
        recall = hits / sum(part.num_objects for part in parts)
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        index = np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-12)
        ap50 = np.append(precision, 0)[index].mean()
        of_class = [row for row in truth["annotations"] if row["category_id"] == CLASSES.ids[label]]
        one_class = {**truth, "annotations": of_class}
        assert ap50 == pytest.approx(evaluated(one_class, detections).compute()["AP50"]), name


def test_without_objects_or_matches_there_is_no_threshold():
    nothing = np.empty((0, 4))
    box, far = np.array([[0.0, 0, 4, 4]]), np.array([[20.0, 20, 4, 4]])
    score, none = np.array([0.5]), np.zeros(0, bool)
    assert operating_point(match_boxes(box, score, nothing, none)) == OperatingPoint()
    missed = OperatingPoint(recall=0.0, f1=0.0)
    assert operating_point(match_boxes(box, score, far, np.array([False]))) == missed
    assert OperatingPoints({"cat": missed}, missed).thresholds is None
    in_crowd = match_boxes(box, score, box, np.array([True]))
    assert (len(in_crowd.scores), in_crowd.num_objects) == (0, 0)


# ------------------------------------------------------------------------------------------------------ stored and used


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A miniature detector whose card has no thresholds."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    preset = miniature("conditional-detr-tiny")
    torch.manual_seed(0)
    save_weights(path, build_model(preset, len(CLASSES)), ModelCard(to_dict(preset), CLASSES, {}))
    return path


@pytest.fixture(scope="module")
def scores(weights) -> torch.Tensor:
    return load(weights, device="cpu").predict(make_image(), min_score=0).scores


def with_thresholds(weights: Path, path: Path, thresholds: ScoreThresholds) -> Path:
    card = read_card(weights)
    assert card is not None and card.thresholds is None
    changed = ModelCard(card.config, card.categories, card.facts, thresholds)
    save_file(load_file(weights), path, changed.to_metadata())
    return path


def test_stored_thresholds_are_used_unless_others_are_given(weights, scores, tmp_path, capsys):
    middle = float(scores.median())
    path = with_thresholds(weights, tmp_path / "model.safetensors", ScoreThresholds(middle, {"dog": 1.0}))
    card = read_card(path)
    assert card is not None and card.thresholds == ScoreThresholds(middle, {"dog": 1.0})
    detector = load(path, device="cpu")
    everything = detector.predict(make_image(), min_score=0)
    assert len(everything) == len(scores) and not capsys.readouterr().err
    found = detector.predict(make_image())
    dogs = everything.labels == CLASSES.names.index("dog")
    assert torch.equal(found.scores, everything.scores[(everything.scores >= middle) & ~dogs])
    assert 0 < len(found) < len(everything)
    assert capsys.readouterr().err == (
        "score thresholds: dog 1.00, stored with the model (best F1 on its validation images); 2 classes (cat, newt) "
        f"have none and use the threshold of all classes together, {middle:.2f}; a min score replaces them\n"
    )
    given = detector.predict(make_image(), class_min_scores={"dog": 0.0})
    assert torch.equal(given.scores, everything.scores[(everything.scores >= middle) | dogs])
    assert not capsys.readouterr().err, "it says so once"


@pytest.mark.parametrize(
    ("by_class", "text"),
    [
        ({"cat": 0.4, "dog": 0.5, "newt": 0.6}, "cat 0.40, dog 0.50, newt 0.60, stored"),
        ({"cat": 0.4, "newt": 0.6}, "cat 0.40, newt 0.60, stored; dog has none and uses the threshold of all classes "
         "together, 0.30"),
        ({}, "0.30 for every class, stored"),
        ({"bird": 0.9}, "0.30 for every class, stored"),
    ],
)  # fmt: skip
def test_classes_without_a_threshold_of_their_own_are_named(by_class, text):
    assert ScoreThresholds(0.3, by_class).describe(CLASSES.names, "stored") == text


def test_thresholds_of_many_classes_are_a_range():
    names = [f"class {number}" for number in range(20)]
    thresholds = ScoreThresholds(0.3, {name: 0.5 + 0.01 * number for number, name in enumerate(names[:12])})
    assert thresholds.describe(names, "stored") == (
        "0.50 to 0.61 by class, stored; 8 classes (class 12, class 13, class 14, class 15, class 16, ...) have none "
        "and use the threshold of all classes together, 0.30"
    )
    assert ScoreThresholds(0.3, dict.fromkeys(names, 0.5)).describe(names, "stored") == "0.50 for 20 classes, stored"


def test_a_card_without_thresholds_behaves_as_before(weights, scores, capsys):
    found = load(weights, device="cpu").predict(make_image())
    assert torch.equal(found.scores, scores[scores >= 0.5])
    assert not capsys.readouterr().err


def test_the_command_uses_them_and_says_so(weights, scores, tmp_path):
    path = with_thresholds(weights, tmp_path / "model.safetensors", ScoreThresholds(float(scores.median())))
    write_image(tmp_path / "photo.png")

    def predict(*options: str):
        arguments = ["predict", str(tmp_path / "photo.png"), "--weights", str(path), "--device", "cpu", "--no-draw"]
        return CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), *options], catch_exceptions=False)

    result = predict()
    assert result.exit_code == 0 and result.stderr.count("score thresholds") == 1
    assert result.stdout.startswith(f"{int((scores >= scores.median()).sum())} objects")
    result = predict("--min-score", "0", "--overwrite")
    assert "score thresholds" not in result.stderr
    assert result.stdout.startswith(f"{len(scores)} objects")


def test_eval_prints_the_thresholds_of_each_class(weights, tmp_path):
    data = write_coco_folder(tmp_path / "data", {"val": coco_content(2)})
    arguments = ["eval", str(data), "--weights", str(weights), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    header = next(line for line in result.stdout.splitlines() if "threshold" in line)
    assert header.split() == ["class", "objects", "AP", "threshold", "precision", "recall", "F1"]
    assert "all classes" in result.stdout
    assert "no ground truth" not in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    points = json.loads(result.stdout)["operating_points"]
    assert set(points["per_class"]) == {"cat", "dog"}
    assert set(points["overall"]) == {"threshold", "precision", "recall", "f1"}


def test_eval_leaves_out_classes_without_ground_truth(weights, tmp_path):
    content = coco_content(2)
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] == 3]
    data = write_coco_folder(tmp_path / "data", {"val": content})
    arguments = ["eval", str(data), "--weights", str(weights), "--device", "cpu"]
    lines = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout.splitlines()
    table = lines[next(number for number, line in enumerate(lines) if line.startswith("class ")) :]
    assert [line.split()[0] for line in table[1:3]] == ["cat", "all"]
    assert table[1].split()[1] == table[2].split()[2] == str(len(content["annotations"]))
    assert table[4] == "no ground truth for 1 of 2 classes: dog"
