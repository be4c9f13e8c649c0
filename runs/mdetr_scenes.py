"""Trains mdetr-tiny on described scenes without a GPU, and evaluates it with the true captions and with blank ones.

    python runs/mdetr_scenes.py --folder WORK --backbone-minutes 10 --minutes 100 --results docs/mdetr/scenes.json

WORK/data gets the scenes, WORK/run the run. The script continues an interrupted run from its checkpoint; the minutes
are those of the whole training. The training has two stages:

1. The backbone learns the shape, colour, texture and size of objects, whose boxes are given. It starts with the weights
   of the detector of the package. That detector has learned to ignore colours and textures: its deeper features do not
   contain them, and a model that is trained on captions alone does not find its way back to them.
2. The whole model is trained on expressions, captions and questions. All but the backbone starts with random weights.

With `--weights RUN`, the second stage starts with the weights of another run instead. `--export FILE` writes the best
weights in half precision, as the package contains them. They are those of a second run, 12 minutes that started from a
run that was interrupted by Ctrl-C after 49 of 92 minutes of its second stage:

    python runs/mdetr_scenes.py --folder WORK --backbone-minutes 8 --minutes 92
    python runs/mdetr_scenes.py --folder OTHER --weights WORK/run --minutes 12 --export FILE --results RESULTS.json

The results are those on 300 scenes that were neither trained on nor used to choose a checkpoint, with one referring
expression each: precision of the best box (P@1, IoU 0.5), by kind of expression, with the true captions and with blank
ones. A model that ignores the text has the same precision in both. The accuracy of answers to one question per scene
stands beside that of the most frequent answer of each type.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align
from torchvision.transforms.v2 import functional

from opendetr import load, train
from opendetr.categories import Categories
from opendetr.config import to_dict
from opendetr.data import DetectionData, open_data
from opendetr.data.resizing import normalise
from opendetr.distributed import has_bfloat16
from opendetr.evaluation import blank_expressions
from opendetr.inference import Predictor
from opendetr.nn import Backbone
from opendetr.presets import build_model, get_preset, shipped_weights, trained_from_nothing
from opendetr.structures import ImageBatch
from opendetr.synthetic import write_captioned_scenes
from opendetr.synthetic.config import THING_NAMES
from opendetr.synthetic.described import draw_described_scene
from opendetr.synthetic.language import SIZES, Thing
from opendetr.synthetic.looks import COLOURS
from opendetr.synthetic.textures import NAMED_TEXTURES
from opendetr.training import resume
from opendetr.training.callbacks import read_metrics
from opendetr.training.checkpoint import load_checkpoint
from opendetr.weights import ModelCard, read_state, save_weights

MODEL, BACKBONE_OF = "mdetr-tiny", "deformable-detr-tiny-panoptic"
SIDE = 160
# The scenes have 256 pixels; 160 cost less than half of the time. They are only flipped: in smaller images, textures
# could not be told apart. Dense supervision tells the cells of the memory which of them show an object of the caption.
CHANGES = (
    f"data.image_size={SIDE}",
    "data.max_size=267",
    "data.augmentation.multi_scale=false",
    "data.augmentation.crop=false",
    "data.num_workers=1",
    "dense.weight=1",
    "recipe.learning_rate=5e-4",
    "recipe.backbone_learning_rate=2e-4",
)
# Of the first stage.
WORDS = {"shape": THING_NAMES, "colour": COLOURS, "texture": tuple(NAMED_TEXTURES), "size": SIZES}
MIRROR = torch.tensor([-1.0, 1.0, -1.0, 1.0])
NUM_ATTRIBUTES, BATCH, RATE, MAX_NORM, WARMUP, REPORT_EVERY = 3000, 16, 1e-3, 5.0, 30, 25
NUM_VAL, NUM_TEST = 100, 300
CURVE = ("P@1", "R@1", "accuracy")
PREFIXES = ("detector.backbone.", "backbone.")


def make_data(folder: Path, count: int) -> dict[str, DetectionData]:
    """The splits of the scenes, which are drawn unless they exist."""
    if not (folder / "annotations" / "captions_test.json").is_file():
        write_captioned_scenes(folder, counts={"train": count, "val": NUM_VAL, "test": NUM_TEST})
    return open_data(folder)


class Attributes:
    """Scenes with the boxes and the attributes of all of their objects.

    Args:
        count: number of scenes, of a split of their own.

    Attributes:
        pixels: (n, 3, SIDE, SIDE) uint8.
        boxes: for each scene the boxes of its objects (m, 4), xyxy in pixels.
        labels: for each scene (m, 4) int64, an index for each of `WORDS`.
    """

    def __init__(self, count: int) -> None:
        scenes = [draw_described_scene(index, split="backbone") for index in range(count)]
        images = [torch.from_numpy(described.scene.image).permute(2, 0, 1) for described in scenes]
        self.pixels = torch.stack([functional.resize(image, [SIDE, SIDE], antialias=True) for image in images])
        scale = SIDE / images[0].shape[-1]
        self.boxes = [torch.tensor([each.box for each in described.scene.objects]) * scale for described in scenes]
        self.labels = [torch.tensor([_indices(thing) for thing in described.things]) for described in scenes]

    def batch(self, generator: torch.Generator) -> tuple[Tensor, list[Tensor], Tensor]:
        """Normalised images (B, 3, SIDE, SIDE), half of them mirrored, the boxes of each, and the labels of all."""
        chosen = torch.randint(len(self.pixels), (BATCH,), generator=generator)
        images, boxes = [], []
        for index in chosen.tolist():
            image, of_objects = normalise(self.pixels[index]), self.boxes[index]
            if torch.rand((), generator=generator) < 0.5:
                image, of_objects = image.flip(-1), (of_objects * MIRROR + SIDE * (1 - MIRROR) / 2)[:, [2, 1, 0, 3]]
            images.append(image)
            boxes.append(of_objects)
        return torch.stack(images), boxes, torch.cat([self.labels[index] for index in chosen.tolist()])


def _indices(thing: Thing) -> list[int]:
    return [words.index(getattr(thing, name)) for name, words in WORDS.items()]


def train_backbone(backbone: Backbone, scenes: Attributes, minutes: float) -> None:
    """Train the backbone to name the attributes of objects, from its features in their boxes."""
    heads = nn.ModuleList(nn.Linear(backbone.num_channels[-1], len(words)) for words in WORDS.values())
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-4)
    generator, began, step = torch.Generator().manual_seed(0), time.monotonic(), 0
    backbone.train()
    while (passed := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARMUP, (1 + math.cos(math.pi * passed)) / 2)
        images, boxes, labels = scenes.batch(generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            features = backbone(ImageBatch.from_images(list(images)))[-1].values.float()
        means = roi_align(features, boxes, 1, features.shape[-1] / SIDE, aligned=True).flatten(1)
        outputs = [head(means) for head in heads]
        torch.stack(
            [F.cross_entropy(output, labels[:, index]) for index, output in enumerate(outputs)]
        ).sum().backward()
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % REPORT_EVERY == 0:
            right = [(output.argmax(1) == labels[:, index]).float().mean() for index, output in enumerate(outputs)]
            print(f"backbone, step {step}:", *(f"{name} {share:.2f}" for name, share in zip(WORDS, right, strict=True)))


def write_start(path: Path, minutes: float) -> None:
    """Write the initial weights: a trained backbone in a model that answers questions."""
    torch.manual_seed(0)
    preset = get_preset(MODEL)
    preset = replace(preset, model=replace(preset.model, questions="scenes"))
    model = build_model(preset, preset.num_classes(Categories.from_names(["object"])))
    trainable = trained_from_nothing(preset).model.backbone.build()
    shipped = shipped_weights(BACKBONE_OF)
    assert shipped is not None, "the package contains these weights"
    state = read_state(shipped)
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in state))
    backbone = {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}
    trainable.load_state_dict(backbone)
    train_backbone(trainable, Attributes(NUM_ATTRIBUTES), minutes)
    names = model.backbone.state_dict().keys()  # without the counters of batch norm
    model.backbone.load_state_dict({name: value for name, value in trainable.state_dict().items() if name in names})
    save_weights(path, model, ModelCard(to_dict(preset), preset.published_categories(), {}))


def train_model(data: Path, folder: Path, stages: tuple[float, float], weights: Path | None) -> Predictor:
    """Train until the minutes are over, or continue an interrupted run, and load the best checkpoint."""
    start, run = folder / "start.safetensors", folder / "run"
    if (run / "config.yaml").is_file():
        resume(run, say=print)
    else:
        if weights is None:
            write_start(start, stages[0])
        train(data, model=MODEL, weights=weights or start, out=run, time=60 * stages[1], changes=CHANGES, say=print)
    return load(run)


def measure(predictor: Predictor, test: DetectionData) -> dict[str, Any]:
    """The metrics on the expressions, with true and with blank captions, and those on the questions."""
    expressions = [image for image in test.images if "expression_kind" in image.extras]
    questions = [image for image in test.images if "answer" in image.extras]
    parts = {"expressions": expressions, "blank": blank_expressions(test).images, "questions": questions}
    results = {}
    for name, images in parts.items():
        metrics = predictor.metrics(replace(test, images=tuple(images)), batch_size=20)
        results[name] = {metric: round(value, 4) for metric, value in metrics.items() if value is not None}
    return results


def facts(run: Path) -> dict[str, Any]:
    """The length of a run, and its metrics on the validation scenes."""
    curve = [
        {"step": row["step"], **{name: round(row["metrics"][name], 4) for name in CURVE}}
        for row in read_metrics(run)
        if row["kind"] == "evaluation"
    ]
    state = load_checkpoint(run / "last").facts
    images = state["step"] * state["recipe"]["batch_size"]
    return {"minutes": round(state["seconds"] / 60, 1), "images": images, "curve": curve}


def main(
    folder: Path,
    stages: tuple[float, float],
    count: int,
    weights: Path | None,
    export: Path | None,
    results: Path | None,
) -> None:
    """Make the data, train, measure, and write the results."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = make_data(folder / "data", count)
    predictor = train_model(folder / "data", folder, stages, weights)
    if export is not None:
        preset, categories = predictor.preset, predictor.categories
        save_weights(export, predictor.model, ModelCard(to_dict(preset), categories, {}), half=True)
        predictor = load(export)
    record = {
        "model": MODEL,
        "scenes": count,
        "backbone_minutes": stages[0],
        **facts(folder / "run"),
        **measure(predictor, splits["test"]),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--backbone-minutes", type=float, default=10)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--weights", type=Path, help="a run folder or a weights file to start from")
    parser.add_argument("--export", type=Path, help="a file for the best weights, in half precision")
    parser.add_argument("--results", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    stages = options.backbone_minutes, options.minutes
    main(options.folder, stages, options.scenes, options.weights, options.export, options.results)
