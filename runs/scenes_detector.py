"""Makes the detector that ships with the package: deformable-detr-tiny for scenes, with masks, without a GPU.

    python runs/scenes_detector.py --folder WORK --backbone-minutes 20 --minutes 120 --mask-minutes 25

First the backbone learns to name objects, as the published models' backbones learned from ImageNet: from cut-outs, ten
times as many objects a second as the whole detector sees. Then the detector is trained, things and stuff, on scenes
with more objects than the default ones have, the backbone still naming cut-outs between its steps. At last the mask
head is trained around the detector, which stays as it is. Scenes are drawn at 256 pixels and shown at 320: small
objects are what is named wrong most often, and larger ones cover more cells. WORK/detector.safetensors and
WORK/panoptic.safetensors are moving averages of the weights; `opendetr demo` scores the second on 300 unseen scenes.

The one that ships has a history: two hours and a half of detection alone (AP 0.400), 22 minutes of naming and 118 of
detection (AP 0.543), on one busy core 100 minutes of detection (5,180 steps, AP 0.556) and 25 of masks, all at 256
pixels; then, on one busy core again, 92 minutes (3,600 steps) and 20 (600) of the stages as they are here:

    python runs/scenes_detector.py --folder WORK --start FILE --backbone-minutes 0 --minutes 92 --mask-minutes 20

FILE may be the one that ships.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from opendetr.data.transforms import normalise, resize_fast, resize_masks
from opendetr.models.detector import Detector
from opendetr.presets import (
    Preset,
    build_model,
    build_task,
    get_preset,
    trained_from_nothing,
    with_frozen_detector,
)
from opendetr.structures import Batch, FeatureMap, ImageBatch, Target
from opendetr.synthetic import CATEGORIES, SceneConfig, draw_scene
from opendetr.tasks import Task
from opendetr.training.train_step import keep_freed_memory
from opendetr.weights import ModelCard, read_card, read_state, save_weights, transfer

MODEL = "deformable-detr-tiny"
WITH_MASKS = "deformable-detr-tiny-panoptic"
SIZE = 256  # scenes are drawn in pixels
SHOWN = 320  # and shown to the detector in
TRAINED_ON = SceneConfig(size=SIZE, min_objects=4, max_objects=18)  # twice the objects of default scenes
CLASSES = Categories.from_coco(CATEGORIES)
NUM_THINGS = sum(CLASSES.isthing)
BATCH = 8
RATE = 4e-4
BACKBONE_RATE = 3e-4
CLIP = 1.0
WARMUP = 300
AVERAGED = 0.998
FLOOR = 0.01
NAMING_RATE = 8e-4
NAMING_WEIGHT = 0.5
NAMING_HEAD_RATE = 2e-3
MASK_RATE = 6e-4
CUT_OUTS = {64: (96, 5), 128: (28, 7), 192: (13, 8)}  # side in pixels: how many in a batch, and of 20 batches how many


class Scenes:
    """Training scenes in memory, kept in files, and their targets, plain and mirrored.

    Attributes:
        pixels: (n, H, W, 3) uint8.
        segments: (n, H, W) uint8, the segment that each pixel belongs to.
        labels: (m, 7), a row (scene, x0, y0, x1, y1, label, segment) of each thing and stuff.
    """

    def __init__(self, folder: Path, count: int) -> None:
        if not (folder / "labels.npy").exists():
            _draw(folder, count)
        self.pixels, self.segments = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("scenes", "segments"))
        if len(self.pixels) != count:
            raise SystemExit(f"{folder}: holds {len(self.pixels)} scenes, not {count}; name another folder")
        self.labels = labels = np.load(folder / "labels.npy")
        self.rows = np.split(labels, np.searchsorted(labels[:, 0], np.arange(1, count)))
        self.targets = [[_target(rows, mirrored) for mirrored in (False, True)] for rows in self.rows]

    def batches(self, rng: np.random.Generator, *, masks: bool = False) -> Iterator[Batch]:
        """Batches without end: every scene once, half of them mirrored, then all in another order."""
        while True:
            order = rng.permutation(len(self.pixels))
            for chosen in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
                mirrored = (rng.random(BATCH) < 0.5).tolist()
                pairs = list(zip(chosen.tolist(), mirrored, strict=True))
                images = ImageBatch.from_images([self._image(*pair) for pair in pairs])
                targets = (self.targets[index][flip] for index, flip in pairs)
                if masks:
                    targets = (self._with_masks(target, *pair) for target, pair in zip(targets, pairs, strict=True))
                yield Batch(images, tuple(targets))

    def _image(self, index: int, mirrored: bool) -> Tensor:
        pixels = self.pixels[index]
        pixels = np.array(pixels[:, ::-1] if mirrored else pixels)
        return _shown(pixels)

    def _with_masks(self, target: Target, index: int, mirrored: bool) -> Target:
        segments = torch.from_numpy(np.array(self.segments[index]))
        segments = segments.flip(1) if mirrored else segments
        masks = segments == torch.from_numpy(self.rows[index][:, 6, None, None])
        return replace(target, masks=torch.from_numpy(resize_masks(masks.numpy(), SHOWN, SHOWN)))


class CutOuts:
    """Squares of scenes around an object, turned and mirrored, with all objects that lie in them."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes
        longer, things = (scenes.labels[:, 3:5] - scenes.labels[:, 1:3]).max(1), scenes.labels[:, 5] < NUM_THINGS
        self.small, self.large = np.nonzero(things & (longer <= 52))[0], np.nonzero(things & (longer > 52))[0]

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of one side each, without end."""
        shares = np.array([share for _, share in CUT_OUTS.values()])
        while True:
            side = int(rng.choice(list(CUT_OUTS), p=shares / shares.sum()))
            centres = rng.choice(self.small if side == min(CUT_OUTS) else self.large, CUT_OUTS[side][0])
            images, targets = zip(*(self._cut(self.scenes.labels[row], side, rng) for row in centres), strict=True)
            yield Batch(ImageBatch.from_images(images), targets)

    def _cut(self, centre: np.ndarray, side: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        middle = (centre[1:3] + centre[3:5]) / 2 + rng.uniform(-0.1, 0.1, 2) * side
        left, top = np.clip(middle - side / 2, 0, SIZE - side).astype(int)
        pixels = self.scenes.pixels[centre[0], top : top + side, left : left + side]
        rows = self.scenes.rows[centre[0]]
        rows = rows[rows[:, 5] < NUM_THINGS]
        boxes = rows[:, 1:5].astype(np.float32) - [left, top, left, top]
        whole = (boxes > -4).all(1) & (boxes < side + 4).all(1)
        boxes, rows = boxes[whole], rows[whole]
        if rng.random() < 0.5:
            pixels, boxes = pixels[:, ::-1], boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [side, 0, side, 0]
        if rng.random() < 0.5:
            pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
        image = _shown(pixels)
        wanted = xyxy_to_cxcywh(torch.from_numpy(boxes.astype(np.float32)) / side)
        labels = torch.from_numpy(rows[:, 5].astype(np.int64))
        return image, Target(labels, wanted, tuple(image.shape[1:]), (side, side), 0)


class Naming(nn.Module):
    """Names objects by the mean features in their boxes, at each level alone: (B, C, h, w) levels -> a loss."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, NUM_THINGS)) for width in widths
        )

    def forward(self, levels: tuple[FeatureMap, ...], targets: Sequence[Target]) -> Tensor:
        labels, loss = torch.cat([target.labels for target in targets]), torch.zeros(())
        for level, head in zip(levels, self.heads, strict=True):
            sides = level.values.shape[-1]
            boxes = [cxcywh_to_xyxy(target.boxes) * sides for target in targets]
            means = roi_align(level.values.float(), boxes, 1, sampling_ratio=4, aligned=True).flatten(1)
            loss = loss + F.cross_entropy(head(means), labels)
        return loss


def named(task: Task, naming: Naming, batch: Batch) -> Tensor:
    """The loss of naming the objects of cut-outs."""
    with torch.autocast("cpu", torch.bfloat16):
        levels = task.model.backbone(batch.images)
    return naming(levels[1:], batch.targets)


def name_objects(task: Task, naming: Naming, scenes: Scenes, minutes: float) -> None:
    """Train the backbone by naming alone, for `minutes`."""
    backbone = task.model.backbone
    parameters = [*backbone.parameters(), *naming.parameters()]
    groups = [
        {"params": backbone.parameters(), "lr": NAMING_RATE},
        {"params": naming.parameters(), "lr": NAMING_HEAD_RATE},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-3, fused=True)
    batches = CutOuts(scenes).batches(np.random.default_rng(1))
    for _ in steps(optimiser, minutes, "naming objects"):
        loss = named(task, naming, next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2 * CLIP)
        log({"naming": loss.item()})


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, what batch norms see does not count: evaluation sees scenes, not cut-outs."""
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    momenta = [each.momentum for each in norms]
    for each in norms:
        each.momentum = 0.0
    try:
        yield
    finally:
        for each, momentum in zip(norms, momenta, strict=True):
            each.momentum = momentum


_sums: dict[str, float] = {}


def log(values: dict[str, float]) -> None:
    """Add to what the next line of `steps` shows the mean of."""
    for name, value in values.items():
        _sums[name] = _sums.get(name, 0.0) + value


def steps(optimiser: torch.optim.Optimizer, minutes: float, what: str) -> Iterator[int]:
    """Numbers of the steps that `minutes` hold: warm-up, then half a cosine; the caller computes gradients."""
    peaks, began, step = [group["lr"] for group in optimiser.param_groups], time.monotonic(), 0
    while (progress := (time.monotonic() - began) / max(60 * minutes, 1e-9)) < 1:
        factor = min(1.0, (step + 1) / WARMUP) * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        yield step
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % 100 == 0:
            shown = "  ".join(f"{name} {value / 100:.3f}" for name, value in _sums.items())
            print(f"{what}: {time.monotonic() - began:6.0f} s  step {step}  {shown}", flush=True)
            _sums.clear()
    _sums.clear()


def _draw(folder: Path, count: int) -> None:
    """Write scenes.npy, segments.npy and labels.npy (see `Scenes`)."""
    pixels = np.lib.format.open_memmap(folder / "scenes.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
    segments = np.lib.format.open_memmap(folder / "segments.npy", "w+", np.uint8, (count, SIZE, SIZE))
    rows = []
    for index in range(count):
        scene = draw_scene(index, config=TRAINED_ON)
        pixels[index], segments[index] = scene.image, scene.segments
        seen = (*(each for each in scene.objects if not each.iscrowd), *scene.stuff)
        rows += [(index, *each.box, CLASSES.label_of_id(each.category_id), each.id) for each in seen]
    pixels.flush()
    segments.flush()
    np.save(folder / "labels.npy", np.array(rows, np.int64).reshape(-1, 7))


def _shown(pixels: np.ndarray) -> Tensor:
    """(h, w, 3) pixels of a scene -> (3, h', w'), as large as the detector sees them."""
    height, width = (round(side * SHOWN / SIZE) for side in pixels.shape[:2])
    return normalise(torch.from_numpy(resize_fast(np.array(pixels), height, width)).permute(2, 0, 1))


def _target(rows: np.ndarray, mirrored: bool) -> Target:
    boxes = torch.from_numpy(rows[:, 1:5].astype(np.float32)) / SIZE
    if mirrored:
        boxes = torch.stack((1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]), 1)
    return Target(torch.from_numpy(rows[:, 5].astype(np.int64)), xyxy_to_cxcywh(boxes), (SHOWN, SHOWN), (SIZE, SIZE), 0)


def train(task: Task, naming: Naming, scenes: Scenes, folder: Path, config: Preset, minutes: float) -> Detector:
    """AdamW with clipped gradients; returns the moving average, which is saved every ten minutes."""
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED), use_buffers=False)
    backbone = list(task.model.backbone.parameters())
    of_backbone = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in task.parameters() if id(parameter) not in of_backbone]
    groups = [{"params": backbone, "lr": BACKBONE_RATE}, {"params": rest, "lr": RATE}]
    groups += [{"params": list(naming.parameters()), "lr": NAMING_HEAD_RATE}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
    batches, cut_outs = scenes.batches(np.random.default_rng(0)), CutOuts(scenes).batches(np.random.default_rng(2))
    began, saved, step = time.monotonic(), 0, 0
    for step in steps(optimiser, minutes, "detecting"):
        if step:
            average.update_parameters(task)
        with kept_statistics(task.model.backbone):
            of_names = named(task, naming, next(cut_outs))
        (NAMING_WEIGHT * of_names).backward()
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            output = task.model(batch.images)
        losses = task.losses(output, batch.targets)
        total = task.total(losses)
        total.backward()
        nn.utils.clip_grad_norm_(task.parameters(), CLIP)
        log(
            {
                "total": total.item(),
                "naming": of_names.item(),
                **{name: value[-1].item() for name, value in losses.items()},
            }
        )
        if (passed := int((time.monotonic() - began) // 600)) > saved:
            saved = passed
            _save(folder / "detector.safetensors", average.module.model, config, step)
    _save(folder / "detector.safetensors", average.module.model, config, step + 1)
    torch.save({"task": task.state_dict(), "naming": naming.state_dict()}, folder / "task.pth")
    return average.module.model


def train_masks(task: Task, scenes: Scenes, folder: Path, config: Preset, minutes: float) -> None:
    """Train the mask head alone, as `train`."""
    model = task.model
    parameters = [*model.attention.parameters(), *model.head.parameters()]
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED), use_buffers=False)
    optimiser = torch.optim.AdamW(parameters, lr=MASK_RATE, weight_decay=1e-4, fused=True)
    batches, step = scenes.batches(np.random.default_rng(3), masks=True), 0
    for step in steps(optimiser, minutes, "masks"):
        if step:
            average.update_parameters(task)
        with torch.autocast("cpu", torch.bfloat16):
            losses = task(next(batches))
        task.total(losses).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        log({name: value[-1].item() for name, value in losses.items()})
    _save(folder / "panoptic.safetensors", average.module.model, config, step + 1)


def _save(path: Path, model: nn.Module, config: Preset, steps: int) -> None:
    save_weights(path, model, ModelCard(to_dict(config), CLASSES, {"steps": steps, "batch": BATCH}), half=True)


def run(folder: Path, count: int, minutes: tuple[float, float, float], start: Path | None) -> None:
    """Minutes of naming, of detection and of masks."""
    torch.manual_seed(0)
    keep_freed_memory()
    config = trained_from_nothing(get_preset(MODEL))
    config = replace(config, data=config.data.resized(SHOWN))
    task = build_task(config, build_model(config, len(CLASSES)), len(CLASSES)).train()
    if start is not None:
        print(begin_with(task.model, start), flush=True)
    scenes, naming = Scenes(folder, count), Naming(task.model.backbone.num_channels[1:])
    name_objects(task, naming, scenes, minutes[0])
    detector = train(task, naming, scenes, folder, config, minutes[1])
    with_masks = get_preset(WITH_MASKS)
    config = replace(with_masks, model=config.model, data=with_masks.data.resized(SHOWN))
    model = build_model(config, len(CLASSES))
    if start is not None:  # its mask head, if it has one
        print(begin_with(model, start), flush=True)
    model.detector.load_state_dict(detector.state_dict())
    frozen = build_task(with_frozen_detector(config), model, len(CLASSES)).train()
    train_masks(frozen, scenes, folder, config, minutes[2])


def begin_with(model: Detector, path: Path) -> str:
    """The weights of another detector of the same kind, its classes fitted by name."""
    card = read_card(path)
    if card is None:
        raise SystemExit(f"{path}: does not say what its classes are")
    return str(transfer(model, read_state(path), card.categories, CLASSES))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16000)
    parser.add_argument("--backbone-minutes", type=float, default=20)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--mask-minutes", type=float, default=25)
    parser.add_argument("--start", type=Path, help="a detector to go on from")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    minutes = options.backbone_minutes, options.minutes, options.mask_minutes
    run(options.folder, options.scenes, minutes, options.start)
