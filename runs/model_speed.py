"""Measures the time that each model of the catalogue takes for one image, relative to detr-r50.

    python runs/model_speed.py --repeats 2

Each model predicts one random image of 4:3 at its own image size, in one thread on the CPU and without gradients.
Models with a mask head also compute the masks of ten objects. A model that locates patches gets one patch of 128
pixels, one that takes text a caption of 12 tokens, and a tracker the first frame of a video. The time is the processor
time of the fastest repeat, which hardly depends on other work of the machine. It does not include the decoding of image
files. `opendetr models` shows the table in `src/opendetr/presets/about.py`, whose lines this script prints.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from opendetr.presets import create, get_preset, list_models
from opendetr.structures import ImageBatch, Tokens

REFERENCE, NUM_TOKENS = "detr-r50", 12


def image_of(name: str) -> ImageBatch:
    """A random image with the size of the model's input: the short side as in prediction, and 4:3."""
    config = get_preset(name).data
    multiple = config.side_multiple
    width = min(round(config.image_size * 4 / 3), config.max_size)
    sides = [round(side / multiple) * multiple for side in (config.image_size, width)]
    return ImageBatch.from_images([torch.randn(3, *sides)])


@torch.inference_mode()
def seconds(name: str) -> float:
    """The processor time for one image."""
    model, image = create(name).eval(), image_of(name)
    prompt: list[Any] = [torch.randn(1, 1, 3, 128, 128)] if model.max_patches else []
    if model.takes_text:
        ids = torch.arange(10, 10 + NUM_TOKENS)[None]
        prompt = [
            Tokens(ids, torch.zeros_like(ids, dtype=torch.bool), torch.zeros(1, NUM_TOKENS, 2, dtype=torch.int64))
        ]
    began = time.process_time()
    output = model(image, *prompt)
    if output.masks is not None:
        output.masks(torch.zeros(10, dtype=torch.long), torch.arange(10))
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--models", nargs="*", help="names of models; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = dict.fromkeys([REFERENCE, *(arguments.models or list_models())])
    rounds = [{name: seconds(name) for name in names} for _ in range(arguments.repeats)]
    fastest = {name: min(times[name] for times in rounds) for name in names}
    print(f"# {REFERENCE}: {fastest[REFERENCE]:.2f} s")
    for name, own in fastest.items():
        print(f'    "{name}": {float(f"{own / fastest[REFERENCE]:.2g}")},')


if __name__ == "__main__":
    main()
