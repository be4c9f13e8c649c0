"""Makes the detector that ships with the package: deformable-detr-tiny for scenes, on a machine without a GPU.

    python runs/scenes_detector.py --folder WORK --minutes 95 --start detr-tiny.safetensors

writes WORK/detector.safetensors, the moving average of the weights; `opendetr demo` scores it on 300 unseen scenes:
AP 0.400, AP50 0.556 (one core of two, 9,591 steps of 8 scenes). The backbone began as that of a detr-tiny which had
been trained on the same scenes for some two hours (AP 0.366, AP50 0.508). To go on from the detector that ships:

    python runs/scenes_detector.py --folder WORK --start src/opendetr/assets/scenes-deformable-detr-tiny.safetensors
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opendetr.boxes import xyxy_to_cxcywh
from opendetr.categories import Categories
from opendetr.config import to_dict
from opendetr.data.scenes import CATEGORIES, draw_scene
from opendetr.data.transforms import normalise
from opendetr.models.detector import Detector
from opendetr.presets import Preset, build_model, build_task, get_preset, trained_from_nothing
from opendetr.structures import ImageBatch, Target
from opendetr.tasks import DetectionTask
from opendetr.weights import ModelCard, load_weights, read_card, read_state, save_weights

MODEL = "deformable-detr-tiny"
SIZE = 256
THINGS = Categories.from_coco([record for record in CATEGORIES if record["isthing"]])
BATCH = 8
RATE = 4e-4
BACKBONE_RATE = 3e-4
CLIP = 1.0
WARMUP = 300
AVERAGED = 0.998
FLOOR = 0.01


class Scenes:
    """Training scenes in memory: `pixels` (n, H, W, 3) uint8, kept in a file, and their targets, plain and mirrored."""

    def __init__(self, folder: Path, count: int) -> None:
        if not (folder / "labels.npy").exists():
            _draw(folder, count)
        self.pixels = np.load(folder / "scenes.npy", mmap_mode="r")
        if len(self.pixels) != count:
            raise SystemExit(f"{folder}: holds {len(self.pixels)} scenes, not {count}; name another folder")
        labels = np.load(folder / "labels.npy")
        rows = np.split(labels[:, 1:], np.searchsorted(labels[:, 0], np.arange(1, count)))
        self.targets = [[_target(boxes, mirrored) for mirrored in (False, True)] for boxes in rows]

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[ImageBatch, list[Target]]]:
        """Batches without end: every scene once, half of them mirrored, then all in another order."""
        while True:
            order = rng.permutation(len(self.pixels))
            for chosen in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
                mirrored = rng.random(BATCH) < 0.5
                images = [self._image(index, flip) for index, flip in zip(chosen, mirrored, strict=True)]
                targets = [self.targets[index][int(flip)] for index, flip in zip(chosen, mirrored, strict=True)]
                yield ImageBatch.from_images(images), targets

    def _image(self, index: int, mirrored: bool) -> Tensor:
        pixels = self.pixels[index]
        pixels = np.array(pixels[:, ::-1] if mirrored else pixels)
        return normalise(torch.from_numpy(pixels).permute(2, 0, 1))


def _draw(folder: Path, count: int) -> None:
    """Write scenes.npy, the pictures, and labels.npy, a row (scene, x0, y0, x1, y1, label) an object."""
    pixels = np.lib.format.open_memmap(folder / "scenes.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
    rows = []
    for index in range(count):
        scene = draw_scene(index)
        pixels[index] = scene.image
        rows += [(index, *o.box, THINGS.label_of_id(o.category_id)) for o in scene.objects if not o.iscrowd]
    pixels.flush()
    np.save(folder / "labels.npy", np.array(rows, np.int64).reshape(-1, 6))


def _target(rows: np.ndarray, mirrored: bool) -> Target:
    boxes = torch.from_numpy(rows[:, :4].astype(np.float32)) / SIZE
    if mirrored:
        boxes = torch.stack((1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]), 1)
    return Target(torch.from_numpy(rows[:, 4].astype(np.int64)), xyxy_to_cxcywh(boxes), (SIZE, SIZE), (SIZE, SIZE), 0)


def train(task: DetectionTask, scenes: Scenes, folder: Path, config: Preset, minutes: float) -> None:
    """AdamW for `minutes`: warm-up, half a cosine, clipped gradients; the moving average is saved every ten minutes."""
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED), use_buffers=False)
    backbone = list(task.model.backbone.parameters())
    of_backbone = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in task.parameters() if id(parameter) not in of_backbone]
    groups = [{"params": backbone, "lr": BACKBONE_RATE}, {"params": rest, "lr": RATE}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
    peaks = [group["lr"] for group in optimiser.param_groups]
    batches, sums, saved = scenes.batches(np.random.default_rng(0)), {}, 0
    began, steps = time.monotonic(), 0
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
        factor = min(1.0, (steps + 1) / WARMUP) * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        losses = step(task, *next(batches))
        nn.utils.clip_grad_norm_(task.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        average.update_parameters(task)
        steps += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value
        if steps % 100 == 0:
            shown = "  ".join(f"{name} {value / 100:.3f}" for name, value in sums.items())
            print(f"{time.monotonic() - began:6.0f} s  step {steps}  {shown}", flush=True)
            sums = {}
        if (passed := int((time.monotonic() - began) // 600)) > saved:
            saved = passed
            _save(folder / "detector.safetensors", average.module, config, steps)
    _save(folder / "detector.safetensors", average.module, config, steps)
    torch.save(task.state_dict(), folder / "task.pth")


def step(task: DetectionTask, images: ImageBatch, targets: list[Target]) -> dict[str, float]:
    """Gradients of one batch; returns the losses of the last layer."""
    with torch.autocast("cpu", torch.bfloat16):
        output = task.model(images)
    losses = task.training_losses(output, targets)
    total = task.total(losses)
    total.backward()
    return {"total": total.item(), **{name: values[-1].item() for name, values in losses.items()}}


def _save(path: Path, task: DetectionTask, config: Preset, steps: int) -> None:
    facts = {"steps": steps, "batch": BATCH}
    save_weights(path, task.model, ModelCard(to_dict(config), THINGS, facts), half=True)


def run(folder: Path, count: int, minutes: float, start: Path | None) -> None:
    torch.manual_seed(0)
    config = trained_from_nothing(get_preset(MODEL))
    task = build_task(config, build_model(config, len(THINGS)), len(THINGS)).train()
    if start is not None:
        begin_with(task.model, start)
    train(task, Scenes(folder, count), folder, config, minutes)


def begin_with(model: Detector, path: Path) -> None:
    """The weights of a detector of the same kind, or the backbone of another."""
    state, card = read_state(path), read_card(path)
    if card is not None and card.config["name"] == MODEL:
        load_weights(model, state)
    else:
        backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
        load_weights(model.backbone, {name.removeprefix("backbone."): value for name, value in backbone.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16000)
    parser.add_argument("--minutes", type=float, default=95)
    parser.add_argument("--start", type=Path, help="a detector to go on from, or whose backbone to begin with")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    run(options.folder, options.scenes, options.minutes, options.start)
