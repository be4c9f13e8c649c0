"""Evaluation gives what prediction gives, whatever the batch size: images of several shapes, and no padding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import opendetr
from opendetr.data.formats.recognise import open_split
from opendetr.data.records import DetectionData
from opendetr.evaluation import CocoEvaluator, Evaluation
from opendetr.inference.predictor import Predictor
from opendetr.results import Detections
from opendetr.synthetic import write_scenes

SIZES = ((160, 160), (160, 100), (100, 160), (160, 130), (130, 160))
NUM_IMAGES = 16


@pytest.fixture(scope="module")
def detector() -> Predictor:
    """The detector of the package, at half its image size for speed."""
    shipped = opendetr.load("deformable-detr-tiny", device="cpu")
    preset = replace(shipped.preset, data=replace(shipped.preset.data.resized(160), num_workers=0))
    return Predictor(shipped.model, preset, shipped.categories, device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Scenes cut to several shapes, so that a batch of neighbours would be padded."""
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "scenes", counts={"val": NUM_IMAGES})
    (folder / "mixed" / "val").mkdir(parents=True)
    for number, file in enumerate(sorted((folder / "scenes" / "val").glob("*.png"))):
        height, width = SIZES[number % len(SIZES)]
        Image.open(file).crop((0, 0, width, height)).save(folder / "mixed" / "val" / file.name)
    return folder / "mixed"


@pytest.fixture(scope="module")
def predicted(detector, images) -> list[Detections]:
    """What `predict` gives for each image by itself, whatever it scores."""
    return [detector.predict(path, min_score=0.0) for path in sorted((images / "val").glob("*.png"))]


@pytest.fixture(scope="module")
def data(images, predicted) -> DetectionData:
    """The ground truth is what was predicted with some confidence: then every box that moves costs AP."""
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number, found in enumerate(predicted):
        height, width = found.size
        name = Path(str(found.source)).name
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        content["annotations"] += found[found.scores >= 0.3].to_coco(number)
    for number, row in enumerate(content["annotations"], 1):
        row |= {"id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
    known = predicted[0].categories
    content["categories"] = [{"id": id_, "name": name} for id_, name in zip(known.ids, known.names, strict=True)]
    (images / "annotations").mkdir()
    (images / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return open_split(images, "val")


@pytest.fixture(scope="module", params=[1, 4, 16])
def scores(request, detector, data) -> Evaluation:
    return detector.evaluate(data, batch_size=request.param)


def test_the_results_are_the_predictions(predicted, data, scores):
    results: dict[int, list[dict[str, Any]]] = {}
    for row in scores.results:
        results.setdefault(row["image_id"], []).append(row)
    assert len(results) == len(data) == NUM_IMAGES
    for record in data.images:
        expected, got = predicted[record.id].to_coco(), results[record.id]
        assert len(expected) == len(got) >= 20
        for rows in (expected, got):  # two with the same score may change places
            rows.sort(key=lambda row: (row["category_id"], round(row["score"], 4), row["bbox"]))
        assert [row["category_id"] for row in got] == [row["category_id"] for row in expected]
        for name, tolerance in (("score", 1e-5), ("bbox", 1e-2)):
            values = ([row[name] for row in rows] for rows in (got, expected))
            np.testing.assert_allclose(*values, rtol=0, atol=tolerance)


def test_the_metrics_are_those_of_the_predictions(predicted, data, scores):
    evaluator = CocoEvaluator(data.to_coco())
    evaluator.update([image.id for image in data.images], predicted)
    expected = evaluator.compute()
    assert scores.per_class == pytest.approx(expected.pop("per_class"), abs=1e-6)
    assert scores.metrics == pytest.approx(expected, abs=1e-6)
    assert scores.metrics["AP"] > 0.9
