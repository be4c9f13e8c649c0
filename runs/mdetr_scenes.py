"""Trains mdetr-tiny on described scenes without a GPU, and evaluates it with the true captions and with blank ones.

    python runs/mdetr_scenes.py --folder WORK --minutes 100 --results docs/mdetr/scenes.json

WORK/data gets the scenes, WORK/run the run. The script continues an interrupted run from its checkpoint; the minutes
are those of the whole training. The backbone starts with the weights of the detector of the package, everything else
with random ones. With `--weights RUN`, all of the model starts with the weights of another run.

The results are those on 300 scenes that were neither trained on nor used to choose a checkpoint, with one referring
expression each: precision of the best box (P@1, IoU 0.5), by kind of expression, with the true captions and with blank
ones. A model that ignores the text has the same precision in both. The accuracy of answers to one question per scene
stands beside that of the most frequent answer of each type.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from opendetr import load, train
from opendetr.categories import Categories
from opendetr.config import to_dict
from opendetr.data import DetectionData, open_data
from opendetr.inference import Predictor
from opendetr.presets import build_model, get_preset, shipped_weights
from opendetr.synthetic import write_captioned_scenes
from opendetr.training import resume
from opendetr.weights import ModelCard, read_state, save_weights

MODEL, BACKBONE_OF = "mdetr-tiny", "deformable-detr-tiny-panoptic"
# The scenes have 256 pixels; 160 cost less than half of the time. They are only flipped: in smaller images, textures
# could not be told apart. Dense supervision tells the cells of the memory which of them show an object of the caption.
CHANGES = (
    "data.image_size=160",
    "data.max_size=267",
    "data.augmentation.multi_scale=false",
    "data.augmentation.crop=false",
    "data.num_workers=1",
    "dense.weight=1",
    "recipe.learning_rate=5e-4",
    "recipe.backbone_learning_rate=2e-4",
)
NUM_VAL, NUM_TEST = 100, 300
PREFIXES = ("detector.backbone.", "backbone.")


def make_data(folder: Path, count: int) -> dict[str, DetectionData]:
    """The splits of the scenes, which are drawn unless they exist."""
    if not (folder / "annotations" / "captions_test.json").is_file():
        write_captioned_scenes(folder, counts={"train": count, "val": NUM_VAL, "test": NUM_TEST})
    return open_data(folder)


def write_start(path: Path) -> None:
    """Write the initial weights: the backbone of the shipped detector in a model that answers questions."""
    torch.manual_seed(0)
    preset = get_preset(MODEL)
    preset = replace(preset, model=replace(preset.model, questions="scenes"))
    model = build_model(preset, preset.num_classes(Categories.from_names(["object"])))
    shipped = shipped_weights(BACKBONE_OF)
    assert shipped is not None, "the package contains these weights"
    state = read_state(shipped)
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in state))
    backbone = {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}
    model.backbone.load_state_dict(backbone)
    save_weights(path, model, ModelCard(to_dict(preset), preset.published_categories(), {}))


def train_model(data: Path, folder: Path, minutes: float, weights: Path | None) -> Predictor:
    """Train until the minutes are over, or continue an interrupted run, and load the best checkpoint."""
    start, run = folder / "start.safetensors", folder / "run"
    if (run / "config.yaml").is_file():
        resume(run, say=print)
    else:
        if weights is None:
            write_start(start)
        train(data, model=MODEL, weights=weights or start, out=run, time=60 * minutes, changes=CHANGES, say=print)
    return load(run)


def measure(predictor: Predictor, test: DetectionData) -> dict[str, Any]:
    """The metrics on the expressions, with true and with blank captions, and those on the questions."""
    expressions = [image for image in test.images if "expression_kind" in image.extras]
    questions = [image for image in test.images if "answer" in image.extras]
    blank = [replace(image, extras={**image.extras, "caption": ""}) for image in expressions]
    parts = {"expressions": expressions, "blank": blank, "questions": questions}
    results = {}
    for name, images in parts.items():
        metrics = predictor.metrics(replace(test, images=tuple(images)), batch_size=20)
        results[name] = {metric: round(value, 4) for metric, value in metrics.items() if value is not None}
    return results


def main(folder: Path, minutes: float, count: int, weights: Path | None, results: Path | None) -> None:
    """Make the data, train, measure, and write the results."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = make_data(folder / "data", count)
    predictor = train_model(folder / "data", folder, minutes, weights)
    record = {"model": MODEL, "scenes": count, "minutes": minutes, **measure(predictor, splits["test"])}
    text = json.dumps(record, indent=1)
    print(text)
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--weights", type=Path, help="a run folder or a weights file to start from")
    parser.add_argument("--results", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    main(options.folder, options.minutes, options.scenes, options.weights, options.results)
