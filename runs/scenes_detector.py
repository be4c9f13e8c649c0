"""Makes the detector that ships with the package: detr-tiny for scenes, from nothing, on two cores without a GPU.

Plain DETR learns slowly because a random backbone hears little of the set loss. The work is therefore cut in five:
1. backbone and encoder alone, under dense supervision (`losses/dense.py`), the decoder left out;
2. the transformer alone, on backbone features computed once and kept, nearly three times the images a second;
3. everything together on enlarged images, with a moving average of the weights;
4. the decoder alone, on the memory of the enlarged images, computed once and kept: what is still missing then is that
   one query answers for an object and the others keep quiet, and that takes steps, not new features;
5. everything together again.

    python runs/scenes_detector.py --folder WORK --minutes 46 30 35

writes WORK/detector.safetensors; `opendetr demo` scores the one that ships on 300 unseen scenes: AP 0.298, AP50 0.419
(stage 2 left 0.188 and 0.270; both still rise). Other work shared the cores. To go on from it:

    python runs/scenes_detector.py --folder WORK --minutes 0 0 120 --first-stage 3 --start detector.safetensors
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opendetr.boxes import xyxy_to_cxcywh
from opendetr.categories import Categories
from opendetr.config import to_dict
from opendetr.data.scenes import CATEGORIES, draw_scene
from opendetr.data.transforms import normalise, resize
from opendetr.presets import Preset, build_model, build_task, get_preset, trained_from_nothing
from opendetr.structures import FeatureMap, ImageBatch, Target
from opendetr.tasks import DetectionTask
from opendetr.weights import ModelCard, load_weights, save_weights

SIZE = 256
TUNED_SIZE = 384  # half of the objects are smaller than two cells of stride 16; enlarged they are seen
THINGS = Categories.from_coco([record for record in CATEGORIES if record["isthing"]])
BATCH = 8


def preset() -> Preset:
    return trained_from_nothing(get_preset("detr-tiny"))


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

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, chosen: np.ndarray, mirrored: np.ndarray, size: int = SIZE) -> ImageBatch:
        images = []
        for index, flip in zip(chosen, mirrored, strict=True):
            pixels = np.ascontiguousarray(self.pixels[index][:, ::-1] if flip else self.pixels[index])
            images.append(normalise(resize(pixels, size, size) if size != SIZE else pixels))
        return ImageBatch.from_images(images)

    def batches(self, rng: np.random.Generator, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, list[Target]]]:
        while True:
            order = rng.permutation(len(self))
            for chosen in order[: len(order) // size * size].reshape(-1, size):
                mirrored = rng.random(size) < 0.5
                yield chosen, mirrored, [self.targets[i][int(m)] for i, m in zip(chosen, mirrored, strict=True)]


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


def optimise(groups: list[dict], minutes: float, loss_of: Callable[[], dict[str, Tensor]],
             after: Callable[[], None] = lambda: None) -> None:  # fmt: skip
    """AdamW for `minutes`: 300 steps of warm-up, half a cosine, clip 1.0."""
    groups = [group | {"peak": group["lr"]} for group in groups]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
    parameters = [parameter for group in groups for parameter in group["params"]]
    began, sums, step = time.monotonic(), {}, 0
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
        factor = min(1.0, (step + 1) / 300) * (0.02 + 0.98 * (1 + np.cos(np.pi * progress)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        losses = loss_of()
        losses["total"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        after()
        step += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach().item()
        if step % 100 == 0:
            shown = "  ".join(f"{name} {value / 100:.3f}" for name, value in sums.items())
            print(f"{time.monotonic() - began:6.0f} s  step {step}  {shown}", flush=True)
            sums = {}


def learn_features(task: DetectionTask, scenes: Scenes, minutes: float) -> None:
    """Stage 1: dense supervision of backbone and encoder."""
    model, batches = task.model, scenes.batches(np.random.default_rng(1), BATCH)

    @torch.compile
    def encode(pixels: Tensor) -> Tensor:
        images = ImageBatch(pixels, None, torch.full((len(pixels), 2), SIZE))
        with torch.autocast("cpu", torch.bfloat16):
            return model.encode(model.backbone(images)[-1]).values

    def loss_of() -> dict[str, Tensor]:
        chosen, mirrored, targets = next(batches)
        count = max(sum(map(len, targets)), 1)
        memory = FeatureMap(encode(scenes.images(chosen, mirrored).pixels))
        return {"total": task.dense(memory, targets, count)}

    rest = [model.project, model.encoder, task.dense]
    groups = [{"params": list(model.backbone.parameters()), "lr": 2e-3},
              {"params": [p for module in rest for p in module.parameters()], "lr": 5e-4}]  # fmt: skip
    optimise(groups, minutes, loss_of)


class Kept:
    """What `compute` gives for every scene, plain and mirrored, computed once: (n, 2, C, h, w) bfloat16."""

    def __init__(self, compute: Callable[[ImageBatch], FeatureMap], scenes: Scenes, size: int) -> None:
        step = 50
        for first in range(0, len(scenes), step):
            chosen = np.arange(first, min(first + step, len(scenes)))
            for mirrored in (False, True):
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                    values = compute(scenes.images(chosen, np.full(len(chosen), mirrored), size)).values
                if not first and not mirrored:
                    self.values = torch.empty((len(scenes), 2, *values.shape[1:]), dtype=torch.bfloat16)
                self.values[torch.from_numpy(chosen), int(mirrored)] = values.to(torch.bfloat16)

    def __call__(self, chosen: np.ndarray, mirrored: np.ndarray) -> FeatureMap:
        return FeatureMap(self.values[torch.from_numpy(chosen), torch.from_numpy(mirrored.astype(np.int64))])


def _losses(task: DetectionTask, features: tuple[FeatureMap, ...], targets: list[Target]) -> dict[str, Tensor]:
    """The set loss and the dense loss, from backbone features on."""
    with torch.autocast("cpu", torch.bfloat16):
        output = task.model.answer(features)
    losses = task.training_losses(output, targets)
    return {"total": task.total(losses), **{name: values[-1] for name, values in losses.items()}}


def learn_sets(task: DetectionTask, scenes: Scenes, minutes: float) -> None:
    """Stage 2: the transformer on kept features."""
    backbone = task.model.backbone.eval()
    features = Kept(lambda images: backbone(images)[-1], scenes, SIZE)
    batches = scenes.batches(np.random.default_rng(2), 2 * BATCH)

    def loss_of() -> dict[str, Tensor]:
        chosen, mirrored, targets = next(batches)
        return _losses(task, (features(chosen, mirrored),), targets)

    fixed = {id(parameter) for parameter in task.model.backbone.parameters()}
    trained = [parameter for parameter in task.parameters() if id(parameter) not in fixed]
    optimise([{"params": trained, "lr": 5e-4}], minutes, loss_of)


def tune(task: DetectionTask, scenes: Scenes, minutes: float) -> nn.Module:
    """Stage 3: everything together; returns the moving average of the task."""
    batches = scenes.batches(np.random.default_rng(3), 2 * BATCH)
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=False)
    task.train()

    def loss_of() -> dict[str, Tensor]:
        chosen, mirrored, targets = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            features = task.model.backbone(scenes.images(chosen, mirrored, TUNED_SIZE))
        return _losses(task, features, targets)

    backbone = list(task.model.backbone.parameters())
    of_backbone = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in task.parameters() if id(parameter) not in of_backbone]
    groups = [{"params": backbone, "lr": 5e-4}, {"params": rest, "lr": 3e-4}]
    optimise(groups, minutes, loss_of, lambda: average.update_parameters(task))
    return average.module


def learn_queries(task: DetectionTask, scenes: Scenes, minutes: float) -> None:
    """Stage 4: queries, decoder and heads on kept memory, the moving average of which stays."""
    model = task.eval().model
    memory = Kept(lambda images: model.encode(model.backbone(images)[-1]), scenes, TUNED_SIZE)
    batches = scenes.batches(np.random.default_rng(4), 4 * BATCH)
    parts = nn.ModuleList((model.queries, model.decoder, model.class_head, model.box_head)).train()
    average = AveragedModel(parts, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def loss_of() -> dict[str, Tensor]:
        chosen, mirrored, targets = next(batches)
        kept = memory(chosen, mirrored)
        with torch.autocast("cpu", torch.bfloat16):
            output = model.read(replace(kept, position=model.position(kept)), ())
        losses = task.losses(output, targets)
        return {"total": task.total(losses), **{name: values[-1] for name, values in losses.items()}}

    groups = [{"params": list(parts.parameters()), "lr": 4e-4}]
    optimise(groups, minutes, loss_of, lambda: average.update_parameters(parts))
    parts.load_state_dict(average.module.state_dict())


def run(folder: Path, count: int, minutes: list[float], first_stage: int, start: Path | None) -> None:
    """The five stages; each leaves its state, so that `first_stage` can go on from the one before."""
    torch.manual_seed(0)
    scenes, config = Scenes(folder, count), preset()
    task = build_task(config, build_model(config, len(THINGS)), len(THINGS))
    if start is not None:
        load_weights(task.model, start)
    elif first_stage > 1:
        task.load_state_dict(torch.load(folder / f"stage{first_stage - 1}.pth"))
    task.train()
    for stage, learn in enumerate((learn_features, learn_sets, tune, learn_queries, tune), start=1):
        if stage >= first_stage:
            print(f"stage {stage}", flush=True)
            task = learn(task, scenes, minutes[stage - 1]) or task
            torch.save(task.state_dict(), folder / f"stage{stage}.pth")
    facts = {"trained on": f"{count} training scenes, mirrored", "minutes of each stage": list(minutes)}
    config = replace(config, data=config.data.resized(TUNED_SIZE))
    card = ModelCard(to_dict(config), THINGS, facts)
    save_weights(folder / "detector.safetensors", task.model, card, half=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16000)
    parser.add_argument("--minutes", type=float, nargs=5, default=(46, 30, 35, 25, 30))
    parser.add_argument("--first-stage", type=int, default=1, choices=(1, 2, 3, 4, 5))
    parser.add_argument("--start", type=Path, help="a detector to go on from, for example the shipped one")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    run(options.folder, options.scenes, options.minutes, options.first_stage, options.start)
