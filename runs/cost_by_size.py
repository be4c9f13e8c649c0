"""Measures seconds and peak memory of DETR and Deformable DETR by image size, and their exponents in pixels.

    python runs/cost_by_size.py --repeats 3

One square image of each side from 320 to 1280 pixels is passed through detr-r50, detr-r50-dc5 and deformable-detr-r50,
in prediction and in training (forward pass, a loss of all outputs, backward pass). Seconds are those of the fastest
repeat. Memory is the growth of a separate process, without the model and the image. With an exponent of 1, twice the
pixels cost twice as much. The exponent is the slope of log cost over log pixels, over all sides and between the two
largest.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch

from opendetr.bench.measuring import in_fresh_process, peak_bytes_above
from opendetr.presets import create
from opendetr.structures import ImageBatch

MODELS = ("detr-r50", "detr-r50-dc5", "deformable-detr-r50")
SIDES = (320, 448, 640, 896, 1280)


def cost(name: str, side: int, training: bool, repeats: int, num_threads: int) -> tuple[float, int]:
    """Seconds and peak bytes for one image."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    model = create(name).train(training)
    images = ImageBatch.from_images([torch.randn(3, side, side)])

    def work() -> None:
        model.zero_grad()
        with torch.set_grad_enabled(training):
            final = model(images).final
        if training:
            (final.logits.square().mean() + final.boxes.square().mean()).backward()

    peak = peak_bytes_above(work)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds), peak


def exponents(costs: list[float]) -> tuple[float, float]:
    """Slopes of log cost over log pixels: fitted to all sides, and between the last two."""
    pixels = [math.log(side * side) for side in SIDES]
    logs = [math.log(value) for value in costs]
    return float(np.polyfit(pixels, logs, 1)[0]), (logs[-1] - logs[-2]) / (pixels[-1] - pixels[-2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    print(f"| model | | {' | '.join(f'{side} px' for side in SIDES)} | exponent | of the last step |")
    print("|---|---|" + "---|" * (len(SIDES) + 2))
    for training in (False, True):
        for name in options.models:
            costs = [
                in_fresh_process(cost, name, side, training, options.repeats, torch.get_num_threads()) for side in SIDES
            ]
            what = "training" if training else "prediction"
            seconds, peaks = [value for value, _ in costs], [peak / 2**20 for _, peak in costs]
            for unit, values in (("s", seconds), ("MiB", peaks)):
                cells = " | ".join(f"{value:.2f}" if unit == "s" else f"{value:,.0f}" for value in values)
                overall, last = exponents(values)
                print(f"| {name} | {what}, {unit} | {cells} | {overall:.2f} | {last:.2f} |", flush=True)


if __name__ == "__main__":
    main()
