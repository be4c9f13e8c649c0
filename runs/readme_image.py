"""Draws the image of the README: ground truth, detections and panoptic maps of drawn scenes, by the shipped detectors.

    python runs/readme_image.py --out docs/images/predictions.jpg

The scenes are the first ones of `opendetr demo` that contain 2 to 6 objects. The detectors were not trained on them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import opendetr
from opendetr.data.formats.recognise import open_split
from opendetr.data.images import read_record
from opendetr.results import draw_detections, draw_panoptic
from opendetr.synthetic import write_scenes
from opendetr.visualize import contact_sheet, draw_truth

NUM_SCENES = 2
NUM_DRAWN = 24
MIN_OBJECTS, MAX_OBJECTS = 2, 6
COLUMNS = "ground truth", "detections", "panoptic map"
WIDTH = 1200  # pixels


def main(out: Path) -> None:
    boxes = opendetr.load("deformable-detr-tiny", device="cpu")
    maps = opendetr.load("deformable-detr-tiny-panoptic", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), counts={"val": NUM_DRAWN})
        data = open_split(Path(folder), "val")
        chosen = [record for record in data.images if MIN_OBJECTS <= len(record.objects) <= MAX_OBJECTS][:NUM_SCENES]
        images = []
        for record in chosen:
            pixels = read_record(record)
            images += [
                draw_truth(pixels, record.objects, data.categories),
                draw_detections(boxes.predict(pixels)),
                draw_panoptic(maps.predict(pixels, panoptic=True)),
            ]
    sheet = contact_sheet(images, len(COLUMNS), COLUMNS * len(chosen))
    sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width))).save(out, quality=80, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the image to write, such as predictions.jpg")
    main(parser.parse_args().out)
