"""Draws the images of docs/how-detr-works.md with the detectors of the package, in scenes that they have not seen.

    python runs/how_it_works_images.py --out docs/images

`matching.jpg`: the ground truth of a scene, the boxes of all queries, and the query that is matched with each object.
`decoder-layers.jpg`: the detections after each decoder layer. `learned-queries.png`: the boxes of 10 learned queries in
100 images.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import opendetr
from opendetr.analysis.queries import draw_queries
from opendetr.boxes import cxcywh_to_xyxy
from opendetr.data import DetectionData, eval_loader, read_record
from opendetr.data.formats import open_split
from opendetr.inference import Predictor
from opendetr.postprocess import detect
from opendetr.results import draw_detections
from opendetr.synthetic import write_captioned_scenes, write_scenes
from opendetr.visualize import contact_sheet, draw_boxes, draw_truth, save_image

DETECTOR, TEXT_MODEL = "deformable-detr-tiny", "mdetr-tiny"
SCENE, LAYER_SCENE = 5, 5  # of the validation scenes of `opendetr demo`
NUM_IMAGES, NUM_QUERIES = 100, 10
SIDE = 400  # of a panel in pixels
SCORE = 0.3
GREY = (90, 90, 90)
TEXT = 1.25  # labels stay legible in a narrow window


@torch.inference_mode()
def outputs(detector: Predictor, data: DetectionData, record):
    """The batch of one image and the model's output for it."""
    config = replace(detector.preset.data, num_workers=0)
    loader = eval_loader(data.subset([record], data.split), config, batch_size=1)
    (batch,) = (batch for group in loader.groups() for batch in group)
    detector.session.reset()
    return batch, detector.session.step(batch.images, detector.preset.prompt(batch))


def draw_matching(detector: Predictor, data: DetectionData) -> Image.Image:
    """Ground truth, the boxes of all queries, and the matched ones."""
    record = data.images[SCENE]
    pixels = read_record(record)
    batch, output = outputs(detector, data, record)
    task = opendetr.create_task(DETECTOR, model=detector.model)
    matches = task.match(output, batch.targets)
    matches = matches.of_layer(int(matches.layer.max()))
    size = torch.tensor([record.width, record.height] * 2)
    boxes = (cxcywh_to_xyxy(output.final.boxes[0]) * size).numpy()
    labels = batch.targets[0].labels[matches.target].tolist()
    pairs = zip(labels, matches.query.tolist(), strict=True)
    names = [f"{data.categories.names[label]}: query {query}" for label, query in pairs]
    colours = [data.categories.colours[label] for label in labels]
    scale = SIDE / record.width
    every = draw_boxes(pixels, boxes, [""] * len(boxes), [GREY] * len(boxes), scale=scale)
    matched = draw_boxes(pixels, boxes[matches.query], names, colours, scale=scale, text=TEXT)
    truth = draw_truth(pixels, record.objects, data.categories, scale=scale, text=TEXT)
    titles = [
        f"ground truth: {len(record.objects)} objects",
        f"the boxes of all {len(boxes)} queries",
        "the query that is matched with each object",
    ]
    return contact_sheet([truth, every, matched], 3, titles)


def draw_layers(detector: Predictor, data: DetectionData) -> Image.Image:
    """The detections after each decoder layer."""
    record = data.images[LAYER_SCENE]
    pixels = read_record(record)
    _, output = outputs(detector, data, record)
    sizes = torch.tensor([[record.height, record.width]])
    images, titles = [], []
    for number, layer in enumerate(output.layers, 1):
        (found,) = detect(layer, sizes, detector.categories, min_score=SCORE)
        images.append(draw_detections(found, pixels, scale=SIDE / record.width, text=TEXT))
        titles.append(f"decoder layer {number}: {len(found)} detections")
    return contact_sheet(images, len(images), titles)


def draw_learned_queries(folder: Path) -> Image.Image:
    """The boxes of some learned queries over many images."""
    write_captioned_scenes(folder, counts={"test": NUM_IMAGES})
    data = open_split(folder, "test")
    detector = opendetr.load(TEXT_MODEL, device="cpu")
    first = {record.path: record for record in data.images}  # one caption per image
    boxes = [outputs(detector, data, record)[1].final.boxes[0].numpy() for record in first.values()]
    return draw_queries(np.stack(boxes), NUM_QUERIES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "scenes", counts={"val": max(SCENE, LAYER_SCENE) + 1})
        data = open_split(Path(folder) / "scenes", "val", masks="none")
        detector = opendetr.load(DETECTOR, device="cpu")
        drawn = {
            "matching.jpg": draw_matching(detector, data),
            "decoder-layers.jpg": draw_layers(detector, data),
            "learned-queries.png": draw_learned_queries(Path(folder) / "captioned"),
        }
    for name, image in drawn.items():
        save_image(image, options.out / name)
        print(options.out / name)


if __name__ == "__main__":
    main()
