"""Miniature runs for tests of the diagnosis: a drawn dataset that is learned in seconds, and trainings on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from opendetr import training
from opendetr.config import to_dict
from opendetr.presets import get_preset, miniature
from opendetr.training.run_facts import PredictionFacts, RunFacts, SplitFacts, collect_facts

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
SIDE = 64


def write_blocks(
    folder: Path,
    *,
    seed: int = 0,
    train: int = 12,
    val: int = 4,
    most: int = 1,
    classes: int = 2,
    grey: int = 120,
    sides: tuple[int, int] = (26, 38),
) -> Path:
    """A COCO folder of images of 64x64, each with up to `most` blocks; the colour of a block is its class."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)[:classes]
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        (folder / split).mkdir(parents=True)
        for index in range(1, count + 1):
            pixels = rng.integers(grey - 20, grey + 20, (SIDE, SIDE, 3)).astype(np.uint8)
            images.append({"id": index, "file_name": f"{index}.png", "height": SIDE, "width": SIDE})
            for number in range(1 + index % most):
                label = (index + number) % classes
                width, height = (int(side) for side in rng.integers(*sides, 2))
                left, top = (int(offset) for offset in rng.integers(10, 18, 2))
                pixels[top : top + height, left : left + width] = COLOURS[names[label]]
                annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": label + 1,
                                    "bbox": [left, top, width, height], "area": width * height,
                                    "iscrowd": 0})  # fmt: skip
            Image.fromarray(pixels).save(folder / split / f"{index}.png")
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def train_miniature(
    data: Path, out: Path, model: str, *, steps: int, changes: Mapping[str, Any] | None = None, **options: Any
) -> tuple[training.Run, list[str]]:
    """Train the miniature of a model from random weights. Returns the run and the lines that it printed."""
    small = to_dict(miniature(model))
    settings = {
        "model": {**small["model"], "backbone": {**small["model"]["backbone"], "norm": "batch", "frozen_stages": 0}},
        "data": small["data"],
        "recipe": {"batch_size": 4, "num_evaluations": 1, "warmup_steps": 5, "precision": "fp32", "ema_decay": 0.0,
                   "schedule": "cosine", "clip_norm": 1.0, "learning_rate": 2e-3, "backbone_learning_rate": 2e-3},
    }  # fmt: skip
    if get_preset(model).has_masks:
        settings["data"]["masks"] = "none"
    lines: list[str] = []
    run = training.train(
        data, model=model, weights="none", out=out, max_steps=steps, device="cpu", say=lines.append,
        changes=[settings, changes or {}], **options,
    )  # fmt: skip
    return run, lines


@dataclass(frozen=True)
class Healthy:
    """A training that learns: model, length, dataset and settings."""

    model: str
    steps: int = 60
    data: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


HEALTHY: dict[str, Healthy] = {
    "detr": Healthy("detr-tiny"),
    "detr, shorter": Healthy("detr-tiny", 40),
    "detr, longer": Healthy("detr-tiny", 120),
    "detr-r18": Healthy("detr-r18"),
    "detr-r50": Healthy("detr-r50", 80, data={"most": 2, "seed": 6}),
    "detr-r50-dc5": Healthy("detr-r50-dc5"),
    "conditional": Healthy("conditional-detr-tiny"),
    "conditional, longer": Healthy("conditional-detr-tiny", 120),
    "conditional-r50": Healthy("conditional-detr-r50"),
    "deformable": Healthy("deformable-detr-tiny"),
    "deformable, longer": Healthy("deformable-detr-tiny", 120),
    "single scale": Healthy("deformable-detr-r50-single-scale", 80),
    "refine": Healthy("deformable-detr-r50-refine", 80),
    "two stage": Healthy("deformable-detr-r50-two-stage"),
    "one class": Healthy("detr-tiny", data={"classes": 1, "seed": 1}),
    "three classes": Healthy("conditional-detr-tiny", 80, data={"classes": 3, "seed": 2}),
    "several objects": Healthy("deformable-detr-tiny", 80, data={"most": 3, "seed": 3}),
    "few images": Healthy("detr-tiny", data={"train": 4, "val": 2, "seed": 4}),
    "more images": Healthy("detr-tiny", data={"train": 30, "val": 8, "seed": 5, "grey": 60}),
    "EMA": Healthy("detr-tiny", 80, changes={"recipe": {"ema_decay": 0.9}}),
}
"""Twenty trainings that learn, by name."""


def train_healthy(name: str, folder: Path) -> tuple[training.Run, list[str]]:
    """Train one of `HEALTHY`. Returns the run and the lines that it printed."""
    chosen = HEALTHY[name]
    data = write_blocks(folder / "data", **chosen.data)
    return train_miniature(data, folder / "run", chosen.model, steps=chosen.steps, changes=chosen.changes)


def facts_from_dict(record: Mapping[str, Any]) -> RunFacts:
    """The inverse of `RunFacts.to_dict`, also after a detour through JSON."""
    splits = {role: SplitFacts(**record[role]) for role in ("train", "val")}
    names = ("train_predictions", "val_predictions")
    predictions = {name: record[name] and PredictionFacts(**record[name]) for name in names}
    return RunFacts(**{**record, **splits, **predictions})


def record_facts(path: Path) -> None:
    """Train all of `HEALTHY`, and write the facts about them as JSON."""
    recorded = {}
    for name in HEALTHY:
        with TemporaryDirectory() as folder:
            run, _ = train_healthy(name, Path(folder))
            facts = collect_facts(run.folder, device="cpu").to_dict()
            print(name, facts["best"], flush=True)
            recorded[name] = facts | {"losses": facts["losses"][::5], "rates": facts["rates"][::5]}
    path.write_text(json.dumps(recorded, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record_facts(Path(__file__).parent / "goldens" / "healthy_runs.json")
