"""Evaluates a trained detector at other image sizes, with sides as in DETR and with sides rounded to a multiple.

    python runs/image_sizes.py runs/mine my-data --split test --sizes 192 224 256 --multiples 1 32

If a side is not a multiple of the stride of a feature map, the image fills the last cells only partly. Position
embeddings count cells, but boxes are fractions of the image, so the two differ by up to half a cell. On a feature map
that is only a dozen cells wide, this is a large error.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import opendetr
from opendetr.cli.output import number, table
from opendetr.data.formats.recognise import open_split
from opendetr.data.transforms import evaluation_transform
from opendetr.inference.predictor import Predictor

METRICS = ("AP", "AP50", "AP_S", "AP_M", "AP_L")


def at_size(detector: Predictor, image_size: int, multiple: int) -> Predictor:
    """The same detector with another short side of its input images."""
    data = replace(detector.preset.data.resized(image_size), side_multiple=multiple)
    return Predictor(detector.model, replace(detector.preset, data=data), detector.categories)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a run folder, a weights file or the name of a model")
    parser.add_argument("data", type=Path, help="the dataset folder")
    parser.add_argument("--split", default="val")
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 208, 224, 240, 256, 288])
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 32])
    options = parser.parse_args()
    try:
        detector, images = opendetr.load(options.weights), open_split(options.data, options.split)
        rows: list[tuple[str, ...]] = [("size", "multiple", "640x480 becomes", *METRICS)]
        for size, multiple in product(options.sizes, options.multiples):
            resized = at_size(detector, size, multiple)
            height, width = evaluation_transform(resized.preset.data).output_shape(480, 640)
            metrics = resized.evaluate(images).metrics
            shown = [number(metrics[name]) for name in METRICS]
            rows.append((str(size), str(multiple), f"{width}x{height}", *shown))
        print(table(rows))
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
