"""Trains the detector of the package: deformable-detr-tiny with a mask head, on drawn scenes, without a GPU.

    python runs/scenes_detector.py --folder WORK --backbone-minutes 20 --minutes 120 --mask-minutes 25

The training has three stages:

1. The backbone learns to classify objects in crops of scenes, as the backbones of published models learned from
   ImageNet. Crops contain ten times as many objects per second as the training of the whole detector.
2. The detector is trained on things and stuff, in scenes with more objects than default scenes. The backbone still
   classifies a batch of crops in every step.
3. The mask head is trained. The detector is frozen.

Scenes are drawn at 256 pixels and resized to 320 for the detector, because most wrong classes are those of small
objects, which then cover more cells. WORK/detector.safetensors and WORK/panoptic.safetensors contain EMA weights.
`opendetr demo` evaluates the second file on 300 new scenes.

The detector of the package was trained in several runs. The first ones used 256 pixels: two and a half hours of
detection (AP 0.400); 22 minutes of classification and 118 of detection (AP 0.543); 100 minutes of detection (5,180
steps on one busy core, AP 0.556) and 25 of masks. The last one is the one of this script, again on one busy core: 92
minutes of detection (3,600 steps) and 20 of masks (600 steps):

    python runs/scenes_detector.py --folder WORK --start FILE --backbone-minutes 0 --minutes 92 --mask-minutes 20

FILE can be the detector of the package.
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
from opendetr.data.resizing import normalise, resize_fast, resize_masks
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
SIZE = 256  # side of the drawn scenes, pixels
INPUT_SIZE = 320  # side of the detector's input images, pixels
TRAINED_ON = SceneConfig(size=SIZE, min_objects=4, max_objects=18)  # twice the objects of default scenes
CLASSES = Categories.from_coco(CATEGORIES)
NUM_THINGS = sum(CLASSES.isthing)
BATCH = 8
RATE = 4e-4
BACKBONE_RATE = 3e-4
CLIP = 1.0
WARMUP = 300
EMA_DECAY = 0.998
FLOOR = 0.01  # last learning rate / peak learning rate
CLASSIFY_RATE = 8e-4
CLASSIFY_WEIGHT = 0.5
CLASSIFY_HEAD_RATE = 2e-3
MASK_RATE = 6e-4
CROPS = {64: (96, 5), 128: (28, 7), 192: (13, 8)}  # side in pixels: crops per batch, batches out of 20


class Scenes:
    """Training scenes, memory-mapped from files, and their targets, original and mirrored.

    Attributes:
        pixels: (n, H, W, 3) uint8.
        segments: (n, H, W) uint8, the segment of each pixel.
        labels: (m, 7), one row (scene, x0, y0, x1, y1, label, segment) for each thing and stuff segment, in pixels.
    """

    def __init__(self, folder: Path, count: int) -> None:
        if not (folder / "labels.npy").exists():
            _draw(folder, count)
        self.pixels, self.segments = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("scenes", "segments"))
        if len(self.pixels) != count:
            raise SystemExit(f"{folder}: contains {len(self.pixels)} scenes, not {count}; give another --folder")
        self.labels = labels = np.load(folder / "labels.npy")
        self.rows = np.split(labels, np.searchsorted(labels[:, 0], np.arange(1, count)))
        self.targets = [[_target(rows, mirrored) for mirrored in (False, True)] for rows in self.rows]

    def batches(self, rng: np.random.Generator, *, masks: bool = False) -> Iterator[Batch]:
        """An endless iterator of batches. Each pass has a random order and mirrors half of the scenes."""
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
        return _as_input(pixels)

    def _with_masks(self, target: Target, index: int, mirrored: bool) -> Target:
        segments = torch.from_numpy(np.array(self.segments[index]))
        segments = segments.flip(1) if mirrored else segments
        masks = segments == torch.from_numpy(self.rows[index][:, 6, None, None])
        return replace(target, masks=torch.from_numpy(resize_masks(masks.numpy(), INPUT_SIZE, INPUT_SIZE)))


class Crops:
    """Square crops of scenes around an object, randomly mirrored and transposed, with all objects inside them."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes
        longer, things = (scenes.labels[:, 3:5] - scenes.labels[:, 1:3]).max(1), scenes.labels[:, 5] < NUM_THINGS
        self.small, self.large = np.nonzero(things & (longer <= 52))[0], np.nonzero(things & (longer > 52))[0]

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """An endless iterator of batches. All crops of a batch have the same side."""
        shares = np.array([share for _, share in CROPS.values()])
        while True:
            side = int(rng.choice(list(CROPS), p=shares / shares.sum()))
            centres = rng.choice(self.small if side == min(CROPS) else self.large, CROPS[side][0])
            images, targets = zip(*(self._crop(self.scenes.labels[row], side, rng) for row in centres), strict=True)
            yield Batch(ImageBatch.from_images(images), targets)

    def _crop(self, centre: np.ndarray, side: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        middle = (centre[1:3] + centre[3:5]) / 2 + rng.uniform(-0.1, 0.1, 2) * side
        left, top = np.clip(middle - side / 2, 0, SIZE - side).astype(int)
        pixels = self.scenes.pixels[centre[0], top : top + side, left : left + side]
        rows = self.scenes.rows[centre[0]]
        rows = rows[rows[:, 5] < NUM_THINGS]
        boxes = rows[:, 1:5].astype(np.float32) - [left, top, left, top]
        inside = (boxes > -4).all(1) & (boxes < side + 4).all(1)
        boxes, rows = boxes[inside], rows[inside]
        if rng.random() < 0.5:
            pixels, boxes = pixels[:, ::-1], boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [side, 0, side, 0]
        if rng.random() < 0.5:
            pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
        image = _as_input(pixels)
        normalised = xyxy_to_cxcywh(torch.from_numpy(boxes.astype(np.float32)) / side)
        labels = torch.from_numpy(rows[:, 5].astype(np.int64))
        return image, Target(labels, normalised, tuple(image.shape[1:]), (side, side), 0)


class Classifier(nn.Module):
    """Classifies objects from the mean features in their boxes, at each level separately.

    Its input are feature maps (B, C, h, w) of several levels; its output is the loss.
    """

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


def crops_loss(task: Task, classifier: Classifier, batch: Batch) -> Tensor:
    """The loss of classifying the objects in a batch of crops."""
    with torch.autocast("cpu", torch.bfloat16):
        levels = task.model.backbone(batch.images)
    return classifier(levels[1:], batch.targets)


def train_backbone(task: Task, classifier: Classifier, scenes: Scenes, minutes: float) -> None:
    """Train only the backbone, by classifying the objects in crops."""
    backbone = task.model.backbone
    parameters = [*backbone.parameters(), *classifier.parameters()]
    groups = [
        {"params": backbone.parameters(), "lr": CLASSIFY_RATE},
        {"params": classifier.parameters(), "lr": CLASSIFY_HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-3, fused=True)
    batches = Crops(scenes).batches(np.random.default_rng(1))
    for _ in steps(optimizer, minutes, "backbone"):
        loss = crops_loss(task, classifier, next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2 * CLIP)
        log({"crops": loss.item()})


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, batch norms do not update their running statistics, which must be those of scenes and not of crops."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


_sums: dict[str, float] = {}


def log(values: dict[str, float]) -> None:
    """Add values of which `steps` prints the means."""
    for name, value in values.items():
        _sums[name] = _sums.get(name, 0.0) + value


def steps(optimizer: torch.optim.Optimizer, minutes: float, stage: str) -> Iterator[int]:
    """Yield step numbers for `minutes`, and take an optimizer step after the caller has computed the gradients.

    The learning rate warms up and then decays as half a cosine.
    """
    peaks, began, step = [group["lr"] for group in optimizer.param_groups], time.monotonic(), 0
    while (progress := (time.monotonic() - began) / max(60 * minutes, 1e-9)) < 1:
        factor = min(1.0, (step + 1) / WARMUP) * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        yield step
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 100 == 0:
            shown = "  ".join(f"{name} {value / 100:.3f}" for name, value in _sums.items())
            print(f"{stage}: {time.monotonic() - began:6.0f} s  step {step}  {shown}", flush=True)
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
        visible = (*(thing for thing in scene.objects if not thing.iscrowd), *scene.stuff)
        rows += [(index, *segment.box, CLASSES.label_of_id(segment.category_id), segment.id) for segment in visible]
    pixels.flush()
    segments.flush()
    np.save(folder / "labels.npy", np.array(rows, np.int64).reshape(-1, 7))


def _as_input(pixels: np.ndarray) -> Tensor:
    """Resize pixels (h, w, 3) of a scene to the scale of the detector's input and normalise them: (3, h', w')."""
    height, width = (round(side * INPUT_SIZE / SIZE) for side in pixels.shape[:2])
    return normalise(torch.from_numpy(resize_fast(np.array(pixels), height, width)).permute(2, 0, 1))


def _target(rows: np.ndarray, mirrored: bool) -> Target:
    boxes = torch.from_numpy(rows[:, 1:5].astype(np.float32)) / SIZE
    if mirrored:
        boxes = torch.stack((1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]), 1)
    labels = torch.from_numpy(rows[:, 5].astype(np.int64))
    return Target(labels, xyxy_to_cxcywh(boxes), (INPUT_SIZE, INPUT_SIZE), (SIZE, SIZE), 0)


def train(task: Task, classifier: Classifier, scenes: Scenes, folder: Path, config: Preset, minutes: float) -> Detector:
    """Train the detector. Returns it with EMA weights, which are also saved every ten minutes."""
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=False)
    backbone = list(task.model.backbone.parameters())
    backbone_ids = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in task.parameters() if id(parameter) not in backbone_ids]
    groups = [{"params": backbone, "lr": BACKBONE_RATE}, {"params": rest, "lr": RATE}]
    groups += [{"params": list(classifier.parameters()), "lr": CLASSIFY_HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
    batches, crops = scenes.batches(np.random.default_rng(0)), Crops(scenes).batches(np.random.default_rng(2))
    began, saved, step = time.monotonic(), 0, 0
    for step in steps(optimizer, minutes, "detector"):
        if step:
            average.update_parameters(task)
        with kept_statistics(task.model.backbone):
            crops_value = crops_loss(task, classifier, next(crops))
        (CLASSIFY_WEIGHT * crops_value).backward()
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
                "crops": crops_value.item(),
                **{name: value[-1].item() for name, value in losses.items()},
            }
        )
        if (passed := int((time.monotonic() - began) // 600)) > saved:
            saved = passed
            _save(folder / "detector.safetensors", average.module.model, config, step)
    _save(folder / "detector.safetensors", average.module.model, config, step + 1)
    torch.save({"task": task.state_dict(), "classifier": classifier.state_dict()}, folder / "task.pth")
    return average.module.model


def train_masks(task: Task, scenes: Scenes, folder: Path, config: Preset, minutes: float) -> None:
    """Train only the mask head, and save the model with its EMA weights."""
    model = task.model
    parameters = [*model.attention.parameters(), *model.head.parameters()]
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=False)
    optimizer = torch.optim.AdamW(parameters, lr=MASK_RATE, weight_decay=1e-4, fused=True)
    batches, step = scenes.batches(np.random.default_rng(3), masks=True), 0
    for step in steps(optimizer, minutes, "masks"):
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
    """Run the three stages. `minutes` are those of the backbone, the detector and the mask head."""
    torch.manual_seed(0)
    keep_freed_memory()
    config = trained_from_nothing(get_preset(MODEL))
    config = replace(config, data=config.data.resized(INPUT_SIZE))
    task = build_task(config, build_model(config, len(CLASSES)), len(CLASSES)).train()
    if start is not None:
        print(load_start(task.model, start), flush=True)
    scenes, classifier = Scenes(folder, count), Classifier(task.model.backbone.num_channels[1:])
    train_backbone(task, classifier, scenes, minutes[0])
    detector = train(task, classifier, scenes, folder, config, minutes[1])
    with_masks = get_preset(WITH_MASKS)
    config = replace(with_masks, model=config.model, data=with_masks.data.resized(INPUT_SIZE))
    model = build_model(config, len(CLASSES))
    if start is not None:  # loads the mask head, if the file contains one
        print(load_start(model, start), flush=True)
    model.detector.load_state_dict(detector.state_dict())
    frozen = build_task(with_frozen_detector(config), model, len(CLASSES)).train()
    train_masks(frozen, scenes, folder, config, minutes[2])


def load_start(model: Detector, path: Path) -> str:
    """Load the weights of another detector of this family, with classes matched by name. Returns a report."""
    card = read_card(path)
    if card is None:
        raise SystemExit(f"{path}: does not contain the names of its classes; give a file of this script")
    return str(transfer(model, read_state(path), card.categories, CLASSES))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16000)
    parser.add_argument("--backbone-minutes", type=float, default=20)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--mask-minutes", type=float, default=25)
    parser.add_argument("--start", type=Path, help="a detector to start from")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    minutes = options.backbone_minutes, options.minutes, options.mask_minutes
    run(options.folder, options.scenes, minutes, options.start)
