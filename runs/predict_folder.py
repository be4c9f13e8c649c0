"""Measures memory and time of `opendetr predict` on folders of small images.

    python runs/predict_folder.py memory --few 1000 --many 20000
    python runs/predict_folder.py overlap --images 1100 --rounds 11

`memory` runs the command with its default options on folders of generated 64x64 JPEGs, and prints the peak resident
memory of each run. The model is a miniature, so 20,000 images take minutes. Expected: a ratio of at most 1.1 (measured:
811 MiB and 816 MiB, 1.006).

`overlap` predicts as the command does, with the same miniature, and also measures the parts separately: reading and
resizing, the model, drawing and writing. It repeats this in rounds, so other work on the machine affects both alike.
Expected if a core is free: a ratio (together / sum of the parts) below 1. With `--wait 0.01` the model also waits 0.01
seconds for each image, as for an accelerator. Then no free core is needed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from opendetr import load
from opendetr.categories import Categories
from opendetr.config import to_dict
from opendetr.data.listing import images_in
from opendetr.data.transforms import evaluation_transform
from opendetr.inference.predictor import Predictor
from opendetr.inference.sources.reading import read_source
from opendetr.inference.writers.folder import OutputConfig, results_folder
from opendetr.postprocess import detect
from opendetr.presets import build_model, miniature
from opendetr.results import Detections
from opendetr.structures import ImageBatch
from opendetr.weights import ModelCard, save_weights

SIDE = 64
_CLASSES = ("one", "two", "three")


def write_images(folder: Path, number: int, side: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (2 * side, 2 * side, 3), dtype=np.uint8)
    for index in range(number):
        top, left = rng.integers(0, side, 2)
        Image.fromarray(texture[top : top + side, left : left + side]).save(folder / f"{index:06}.jpg")
    return folder


def write_miniature(path: Path) -> Path:
    torch.manual_seed(0)
    preset = miniature("detr-tiny")
    card = ModelCard(to_dict(preset), Categories.from_names(_CLASSES), {})
    save_weights(path, build_model(preset, len(_CLASSES)), card)
    return path


def peak_memory(images: Path, weights: Path, out: Path) -> float:
    """Peak resident memory of the command in MiB (Linux). Its results are deleted."""
    code = (
        "import atexit, pathlib, sys; "
        "atexit.register(lambda: print(pathlib.Path('/proc/self/status').read_text(), file=sys.stderr)); "
        "from opendetr.cli.main import main; main()"
    )
    options = ["predict", images, "--weights", weights, "--out", out, "--device", "cpu", "--min-score", "0.2"]
    command = [sys.executable, "-c", code, *map(str, options)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(done.stdout.strip(), flush=True)
    shutil.rmtree(out)
    line = next(line for line in done.stderr.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def memory(few: int, many: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_miniature(folder / "miniature.safetensors")
        peaks = {}
        for number in (few, many):
            images = write_images(folder / str(number), number, SIDE)
            began = time.perf_counter()
            peaks[number] = peak_memory(images, weights, folder / "out")
            print(f"{number} images: {peaks[number]:.0f} MiB peak, {time.perf_counter() - began:.0f} s", flush=True)
    print(f"ratio {peaks[many] / peaks[few]:.3f}")


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def overlap_of(images: Path, out: Path, detector: Predictor, batch_size: int) -> tuple[float, dict[str, float]]:
    """Seconds for a folder as in the command, and for each part alone in one thread."""
    transform = evaluation_transform(detector.preset.data)
    results: list[Detections] = []

    def together() -> None:
        with results_folder(out / "together", detector.categories, OutputConfig()) as write:
            for detections in detector.predict(images, batch_size=batch_size):
                write(detections)
                results.append(detections)

    def read() -> None:
        for path in images_in(images):
            transform.pixels(read_source(path).pixels)

    @torch.inference_mode()
    def run_model() -> None:
        for _ in range(0, len(results), batch_size):
            detect(detector.model(ImageBatch.from_images(inputs)).final, sizes, detector.categories)

    def draw() -> None:
        for index, detections in enumerate(results):
            detections.plot().save(out / f"{index:06}.jpg")

    total = seconds(together)
    inputs = [transform.pixels(detections.image) for detections in results[:batch_size]]
    sizes = torch.tensor([detections.size for detections in results[:batch_size]])
    parts = {"reading": read, "the model": run_model, "drawing and writing": draw}
    return total, {part: seconds(work) for part, work in parts.items()}


def wait_for_device(model: torch.nn.Module, wait: float) -> None:
    model.register_forward_hook(lambda _model, inputs, _output: time.sleep(wait * len(inputs[0])))


def overlap(number: int, rounds: int, batch_size: int, wait: float) -> None:
    ratios = []
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            detector = load(write_miniature(Path(name) / "miniature.safetensors"), device="cpu")
            wait_for_device(detector.model, wait)
            images = write_images(Path(name) / "in", number // rounds, SIDE)
            total, parts = overlap_of(images, Path(name), detector, batch_size)
        if turn:  # the first round warms up and is not counted
            ratios.append(total / sum(parts.values()))
            shown = ", ".join(f"{part} {spent:.1f} s" for part, spent in parts.items())
            print(f"together {total:.1f} s; {shown}: {ratios[-1]:.2f}", flush=True)
    print(f"ratio, median of {len(ratios)}: {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    of_memory = commands.add_parser("memory")
    of_memory.add_argument("--few", type=int, default=1000)
    of_memory.add_argument("--many", type=int, default=20_000)
    of_overlap = commands.add_parser("overlap")
    of_overlap.add_argument("--images", type=int, default=1100)
    of_overlap.add_argument("--rounds", type=int, default=11)
    of_overlap.add_argument("--batch-size", type=int, default=8)
    of_overlap.add_argument("--wait", type=float, default=0.0, help="seconds that the model waits per image")
    options = parser.parse_args()
    if options.command == "memory":
        memory(options.few, options.many)
    else:
        overlap(options.images, options.rounds, options.batch_size, options.wait)


if __name__ == "__main__":
    main()
