"""Memory and time of `opendetr predict` on folders of small images.

    python runs/predict_folder.py memory --few 1000 --many 20000
    python runs/predict_folder.py overlap --images 1100 --rounds 11

`memory` runs the command, with the options that are its defaults, on folders of generated 64x64 JPEGs and prints the
peak resident memory of each run; the model is a miniature, so that 20,000 images take minutes. Expected: a ratio of
at most 1.1 (measured: 811 MiB and 816 MiB, 1.006).

`overlap` predicts as the command does, with the same miniature, so that the parts take times of one order, and beside
that times them one after the other: reading and resizing, the model, drawing and writing; in rounds, so that other work
on the machine meets both alike. Expected, where a core is free: a ratio (together / sum of the parts) below 1.
With `--wait 0.01` the model also waits so long for each image, as for a device that computes by itself; then no free
core is needed.
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
from opendetr.data.transforms import evaluation_transform
from opendetr.inference.predictor import Predictor
from opendetr.inference.sources.files import images_in
from opendetr.inference.sources.reading import read_source
from opendetr.inference.writers.folder import OutputConfig, results_folder
from opendetr.postprocess import detect
from opendetr.presets import build_model, miniature
from opendetr.results import Detections
from opendetr.structures import ImageBatch
from opendetr.weights import ModelCard, save_weights

SIDE = 64
_CLASSES = ("one", "two", "three")


def write_pictures(folder: Path, number: int, side: int) -> Path:
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


def peak_memory(pictures: Path, weights: Path, out: Path) -> float:
    """MiB that the command needs at most, as Linux counts them; what it writes is thrown away."""
    code = (
        "import atexit, pathlib, sys; "
        "atexit.register(lambda: print(pathlib.Path('/proc/self/status').read_text(), file=sys.stderr)); "
        "from opendetr.cli.main import main; main()"
    )
    options = ["predict", pictures, "--weights", weights, "--out", out, "--device", "cpu", "--min-score", "0.2"]
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
            pictures = write_pictures(folder / str(number), number, SIDE)
            began = time.perf_counter()
            peaks[number] = peak_memory(pictures, weights, folder / "out")
            print(f"{number} images: {peaks[number]:.0f} MiB at most, {time.perf_counter() - began:.0f} s", flush=True)
    print(f"ratio {peaks[many] / peaks[few]:.3f}")


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def overlap_of(pictures: Path, out: Path, detector: Predictor, batch_size: int) -> tuple[float, dict[str, float]]:
    """Seconds for a folder as the command does it, and for each of its parts alone in one thread."""
    transform = evaluation_transform(detector.preset.data)
    found: list[Detections] = []

    def together() -> None:
        with results_folder(out / "together", detector.categories, OutputConfig()) as write:
            for detections in detector.predict(pictures, batch_size=batch_size):
                write(detections)
                found.append(detections)

    def read() -> None:
        for path in images_in(pictures):
            transform.pixels(read_source(path).pixels)

    @torch.inference_mode()
    def run_model() -> None:
        for _ in range(0, len(found), batch_size):
            detect(detector.model(ImageBatch.from_images(inputs)).final, sizes, detector.categories)

    def draw() -> None:
        for index, detections in enumerate(found):
            detections.plot().save(out / f"{index:06}.jpg")

    whole = seconds(together)
    inputs = [transform.pixels(each.image) for each in found[:batch_size]]
    sizes = torch.tensor([each.size for each in found[:batch_size]])
    parts = {"reading": read, "the model": run_model, "drawing and writing": draw}
    return whole, {part: seconds(work) for part, work in parts.items()}


def wait_for_device(model: torch.nn.Module, wait: float) -> None:
    model.register_forward_hook(lambda _model, inputs, _output: time.sleep(wait * len(inputs[0])))


def overlap(number: int, rounds: int, batch_size: int, wait: float) -> None:
    ratios = []
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            detector = load(write_miniature(Path(name) / "miniature.safetensors"), device="cpu")
            wait_for_device(detector.model, wait)
            pictures = write_pictures(Path(name) / "in", number // rounds, SIDE)
            whole, parts = overlap_of(pictures, Path(name), detector, batch_size)
        if turn:  # the first round also pays for what only the first images cost
            ratios.append(whole / sum(parts.values()))
            shown = ", ".join(f"{part} {spent:.1f} s" for part, spent in parts.items())
            print(f"together {whole:.1f} s; {shown}: {ratios[-1]:.2f}", flush=True)
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
    of_overlap.add_argument("--wait", type=float, default=0.0, help="seconds for each image")
    options = parser.parse_args()
    if options.command == "memory":
        memory(options.few, options.many)
    else:
        overlap(options.images, options.rounds, options.batch_size, options.wait)


if __name__ == "__main__":
    main()
