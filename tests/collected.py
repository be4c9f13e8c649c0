"""Predictions and ground truth made of numbers, for tests of the analysis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opendetr.analysis import Collected
from opendetr.categories import Categories
from opendetr.data import DetectionData, ImageRecord
from opendetr.data.records import ObjectRecord
from opendetr.evaluation import CocoEvaluator, Found, Objects
from opendetr.results import Detections

SIDE = 300
NAMES = ("cat", "dog", "owl")


def categories(names: tuple[str, ...] = NAMES) -> Categories:
    return Categories(names, tuple(range(1, len(names) + 1)))


def data_of(objects: Objects, num_images: int, names: tuple[str, ...] = NAMES) -> DetectionData:
    """A dataset with these objects; its images do not exist."""
    images = []
    for image in range(num_images):
        rows = np.flatnonzero(objects.image == image)
        records = tuple(
            ObjectRecord(
                id=int(row) + 1,
                category_id=int(objects.label[row]) + 1,
                box=tuple(objects.box[row].tolist()),
                area=float(objects.area[row]),
                crowd=bool(objects.crowd[row]),
            )
            for row in rows
        )
        images.append(ImageRecord(id=image, path=Path(f"{image}.png"), height=SIDE, width=SIDE, objects=records))
    return DetectionData(categories=categories(names), images=tuple(images), split="val", folder=Path("data"))


def objects_of(rows: list[tuple[int, int, tuple[float, float, float, float]]], crowd: tuple[int, ...] = ()) -> Objects:
    """Objects from triples of image, label and box."""
    image, label, box = zip(*rows, strict=True) if rows else ((), (), ())
    boxes = np.array(box, np.float64).reshape(-1, 4)
    crowds = np.isin(np.arange(len(rows)), crowd)
    return Objects(np.array(image, np.int64), np.array(label, np.int64), boxes, boxes[:, 2:].prod(1), crowds)


def found_of(rows: list[tuple[int, int, float, tuple[float, float, float, float]]]) -> Found:
    """Detections from image, label, score and box."""
    rows = sorted(rows, key=lambda row: (row[0], -row[2]))
    image, label, score, box = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Found(
        np.array(image, np.int64),
        np.array(label, np.int64),
        np.array(score, np.float64),
        np.array(box, np.float64).reshape(-1, 4),
        np.arange(len(rows)),
    )


def collected_of(objects: Objects, *layers: Found, num_images: int, **changes: Any) -> Collected:
    """The predictions of a model without queries."""
    plain = Collected(
        data=data_of(objects, num_images),
        objects=objects,
        found=layers[-1],
        layers=layers,
        strict=None,
        query_boxes=np.zeros((num_images, 1, 4), np.float32),
        query_scores=np.zeros((num_images, 1), np.float32),
        query_labels=np.zeros((num_images, 1), np.int64),
        query_images=np.arange(num_images),
        learned_queries=True,
        known=frozenset(range(len(NAMES))),
        seconds_per_image=0.1,
        unreadable=(),
    )
    return replace(plain, **changes)


def random_case(seed: int, *, num_images: int = 12, crowds: bool = True) -> tuple[Objects, Found]:
    """Objects, and detections that resemble them: shifted, repeated, of other classes, of nothing, of equal scores."""
    rng = np.random.default_rng(seed)
    objects, found = [], []
    crowd = []
    for image in range(num_images):
        for _ in range(rng.integers(0, 6)):
            label, box = int(rng.integers(3)), (*rng.uniform(0, 150, 2), *rng.uniform(10, 140, 2))
            if crowds and rng.random() < 0.1:
                crowd.append(len(objects))
            objects.append((image, label, box))
            for _ in range(rng.integers(0, 4)):
                noise = rng.normal(0, rng.choice([1, 6, 25]), 4)
                moved = tuple(np.maximum(np.array(box) + noise, 1).tolist())
                other = int(rng.integers(3)) if rng.random() < 0.2 else label
                found.append((image, other, round(float(rng.random()), 2), moved))
        found += [
            (image, int(rng.integers(3)), round(float(rng.random() * 0.6), 2),
             (*rng.uniform(0, 150, 2), *rng.uniform(10, 140, 2)))
            for _ in range(rng.integers(0, 3))
        ]  # fmt: skip
    return objects_of(objects, tuple(crowd)), found_of(found)


def coco_scores(collected: Collected, found: Found) -> dict[str, Any]:
    """What COCO's own code gives."""
    evaluator = CocoEvaluator(collected.data.to_coco())
    for image in range(collected.num_images):
        own = found[found.image == image]
        corners = np.concatenate((own.box[:, :2], own.box[:, :2] + own.box[:, 2:]), 1)
        detections = Detections(
            torch.from_numpy(corners), torch.from_numpy(own.score), torch.from_numpy(own.label),
            collected.data.categories, (SIDE, SIDE),
        )  # fmt: skip
        evaluator.update([image], [detections])
    return evaluator.compute()
