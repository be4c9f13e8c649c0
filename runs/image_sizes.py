"""How a trained detector scores at other image sizes, with sides as DETR leaves them and rounded to a multiple.

    python runs/image_sizes.py runs/mine my-data --split test --sizes 192 224 256 --multiples 1 32

Where a side is no multiple of a feature map's stride the last cells are half filled. Positions are counted in cells and
boxes in shares of the image, so they disagree by up to half a cell: much, where a map is a dozen cells wide.
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

SCORES = ("AP", "AP50", "AP_S", "AP_M", "AP_L")


def at_size(detector: Predictor, image_size: int, multiple: int) -> Predictor:
    """The same detector, given images of another short side."""
    data = replace(detector.preset.data.resized(image_size), side_multiple=multiple)
    return Predictor(detector.model, replace(detector.preset, data=data), detector.categories)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a run folder, a file of weights or a model's name")
    parser.add_argument("data", type=Path, help="the dataset folder")
    parser.add_argument("--split", default="val")
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 208, 224, 240, 256, 288])
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 32])
    options = parser.parse_args()
    try:
        detector, images = opendetr.load(options.weights), open_split(options.data, options.split)
        rows: list[tuple[str, ...]] = [("size", "multiple", "640x480 becomes", *SCORES)]
        for size, multiple in product(options.sizes, options.multiples):
            resized = at_size(detector, size, multiple)
            height, width = evaluation_transform(resized.preset.data).output_shape(480, 640)
            scores = resized.evaluate(images).metrics
            shown = [number(scores[name]) for name in SCORES]
            rows.append((str(size), str(multiple), f"{width}x{height}", *shown))
        print(table(rows))
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
