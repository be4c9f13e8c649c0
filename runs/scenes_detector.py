"""Makes the detector that ships with the package: deformable-detr-tiny for scenes, on a machine without a GPU.

    python runs/scenes_detector.py --folder WORK --backbone-minutes 20 --minutes 120

First the backbone learns to name objects, as the published models' backbones learned from ImageNet: from cut-outs, some
900 objects a second on one core where the whole detector sees 80. Then the detector is trained, the backbone still
naming beside it. WORK/detector.safetensors is the moving average of the weights; `opendetr demo` scores it on 300
unseen scenes: AP 0.543, AP50 0.746, AP of small objects 0.430. That one began with an earlier detector (AP 0.400, of
two hours and a half), whose backbone then named objects for 22 minutes; 118 minutes of the second stage followed,
11,600 steps on one busy core. To go on from the detector that ships:

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
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import roi_align

from opendetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from opendetr.categories import Categories
from opendetr.config import to_dict
from opendetr.data.scenes import CATEGORIES, draw_scene
from opendetr.data.transforms import normalise
from opendetr.models.detector import Detector
from opendetr.presets import Preset, build_model, build_task, get_preset, trained_from_nothing
from opendetr.stepping import keep_freed_memory
from opendetr.structures import FeatureMap, ImageBatch, Target
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
NAMING_RATE = 8e-4
NAMING_WEIGHT = 0.5
CUT_OUTS = {64: (96, 5), 128: (28, 7), 192: (13, 8)}  # side in pixels: how many in a batch, and of 20 batches how many


class Scenes:
    """Training scenes in memory: `pixels` (n, H, W, 3) uint8, kept in a file, and their targets, plain and mirrored."""

    def __init__(self, folder: Path, count: int) -> None:
        if not (folder / "labels.npy").exists():
            _draw(folder, count)
        self.pixels = np.load(folder / "scenes.npy", mmap_mode="r")
        if len(self.pixels) != count:
            raise SystemExit(f"{folder}: holds {len(self.pixels)} scenes, not {count}; name another folder")
        self.labels = labels = np.load(folder / "labels.npy")
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


class CutOuts:
    """Squares of scenes around an object, turned and mirrored, with all objects that lie in them."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes
        self.rows = np.split(scenes.labels, np.searchsorted(scenes.labels[:, 0], np.arange(1, len(scenes.pixels))))
        longer = (scenes.labels[:, 3:5] - scenes.labels[:, 1:3]).max(1)
        self.small, self.large = np.nonzero(longer <= 52)[0], np.nonzero(longer > 52)[0]

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[ImageBatch, list[Target]]]:
        """Batches of one side each, without end."""
        shares = np.array([share for _, share in CUT_OUTS.values()])
        while True:
            side = int(rng.choice(list(CUT_OUTS), p=shares / shares.sum()))
            centres = rng.choice(self.small if side == min(CUT_OUTS) else self.large, CUT_OUTS[side][0])
            images, targets = zip(*(self._cut(self.scenes.labels[row], side, rng) for row in centres), strict=True)
            yield ImageBatch.from_images(images), list(targets)

    def _cut(self, centre: np.ndarray, side: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        middle = (centre[1:3] + centre[3:5]) / 2 + rng.uniform(-0.1, 0.1, 2) * side
        left, top = np.clip(middle - side / 2, 0, SIZE - side).astype(int)
        pixels = self.scenes.pixels[centre[0], top : top + side, left : left + side]
        rows = self.rows[centre[0]]
        boxes = rows[:, 1:5].astype(np.float32) - [left, top, left, top]
        whole = (boxes > -4).all(1) & (boxes < side + 4).all(1)
        boxes, rows = boxes[whole], rows[whole]
        if rng.random() < 0.5:
            pixels, boxes = pixels[:, ::-1], boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [side, 0, side, 0]
        if rng.random() < 0.5:
            pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
        image = normalise(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))
        wanted = xyxy_to_cxcywh(torch.from_numpy(boxes.astype(np.float32)) / side)
        labels = torch.from_numpy(rows[:, 5].astype(np.int64))
        return image, Target(labels, wanted, (side, side), (side, side), 0)


class Naming(nn.Module):
    """Names objects by the mean features in their boxes, at each level alone: (B, C, h, w) levels -> a loss."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, len(THINGS))) for width in widths
        )

    def forward(self, levels: tuple[FeatureMap, ...], targets: list[Target]) -> Tensor:
        labels, loss = torch.cat([target.labels for target in targets]), torch.zeros(())
        for level, head in zip(levels, self.heads, strict=True):
            sides = level.values.shape[-1]
            boxes = [cxcywh_to_xyxy(target.boxes) * sides for target in targets]
            means = roi_align(level.values.float(), boxes, 1, sampling_ratio=4, aligned=True).flatten(1)
            loss = loss + F.cross_entropy(head(means), labels)
        return loss


def name_objects(task: DetectionTask, naming: Naming, scenes: Scenes, minutes: float) -> None:
    """Train the backbone by naming alone, for `minutes`."""
    backbone = task.model.backbone
    parameters = [*backbone.parameters(), *naming.parameters()]
    groups = [{"params": backbone.parameters(), "lr": NAMING_RATE}, {"params": naming.parameters(), "lr": 2e-3}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-3, fused=True)
    peaks = [group["lr"] for group in optimiser.param_groups]
    batches, began, steps, total = CutOuts(scenes).batches(np.random.default_rng(1)), time.monotonic(), 0, 0.0
    while (passed := time.monotonic() - began) < 60 * minutes:
        follow_schedule(optimiser, peaks, steps, passed / (60 * minutes))
        images, targets = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            levels = backbone(images)
        loss = naming(levels[1:], targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2 * CLIP)
        optimiser.step()
        optimiser.zero_grad()
        steps, total = steps + 1, total + loss.item()
        if steps % 100 == 0:
            print(f"{time.monotonic() - began:6.0f} s  step {steps}  naming {total / 100:.3f}", flush=True)
            total = 0.0


def follow_schedule(optimiser: torch.optim.Optimizer, peaks: list[float], steps: int, progress: float) -> None:
    """Warm-up, then half a cosine over `progress` 0..1."""
    factor = min(1.0, (steps + 1) / WARMUP) * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
    for group, peak in zip(optimiser.param_groups, peaks, strict=True):
        group["lr"] = peak * factor


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


def train(task: DetectionTask, naming: Naming, scenes: Scenes, folder: Path, config: Preset, minutes: float) -> None:
    """AdamW for `minutes`: warm-up, half a cosine, clipped gradients; the moving average is saved every ten minutes."""
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED), use_buffers=False)
    backbone = list(task.model.backbone.parameters())
    of_backbone = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in task.parameters() if id(parameter) not in of_backbone]
    rest += naming.parameters()
    groups = [{"params": backbone, "lr": BACKBONE_RATE}, {"params": rest, "lr": RATE}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
    peaks = [group["lr"] for group in optimiser.param_groups]
    batches, sums, saved = scenes.batches(np.random.default_rng(0)), {}, 0
    began, steps = time.monotonic(), 0
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
        follow_schedule(optimiser, peaks, steps, progress)
        losses = step(task, naming, *next(batches))
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
    torch.save({"task": task.state_dict(), "naming": naming.state_dict()}, folder / "task.pth")


def step(task: DetectionTask, naming: Naming, images: ImageBatch, targets: list[Target]) -> dict[str, float]:
    """Gradients of one batch; returns the losses of the last layer."""
    with torch.autocast("cpu", torch.bfloat16):
        output = task.model(images)
    losses = task.training_losses(output, targets)
    named = naming(output.features[1:], targets)
    total = task.total(losses) + NAMING_WEIGHT * named
    total.backward()
    return {
        "total": total.item(),
        "naming": named.item(),
        **{name: values[-1].item() for name, values in losses.items()},
    }


def _save(path: Path, task: DetectionTask, config: Preset, steps: int) -> None:
    facts = {"steps": steps, "batch": BATCH}
    save_weights(path, task.model, ModelCard(to_dict(config), THINGS, facts), half=True)


def run(folder: Path, count: int, backbone_minutes: float, minutes: float, start: Path | None) -> None:
    torch.manual_seed(0)
    keep_freed_memory()
    config = trained_from_nothing(get_preset(MODEL))
    task = build_task(config, build_model(config, len(THINGS)), len(THINGS)).train()
    if start is not None:
        begin_with(task.model, start)
    scenes, naming = Scenes(folder, count), Naming(task.model.backbone.num_channels[1:])
    name_objects(task, naming, scenes, backbone_minutes)
    train(task, naming, scenes, folder, config, minutes)


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
    parser.add_argument("--backbone-minutes", type=float, default=20)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--start", type=Path, help="a detector to go on from, or whose backbone to begin with")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    run(options.folder, options.scenes, options.backbone_minutes, options.minutes, options.start)
