"""Measures the share of the patches' backbone pass in a train step of UP-DETR.

    python runs/up_detr_patch_share.py --models up-detr-tiny

A step is a forward and a backward pass on random images at the model's image size, in one thread on the CPU. The
patches of all images form one batch. Their share is what a step takes less if their features are given. Times are the
processor times of the fastest repeat, which hardly depend on other work of the machine.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import torch
from torch import Tensor

from opendetr.presets import build_model, build_task, get_preset, trained_from_nothing
from opendetr.structures import ImageBatch, PatchBatch, Target
from opendetr.tasks import Task

BATCH_SIZES = {"up-detr-tiny": 8, "up-detr-r50": 2}


def batch_of(name: str) -> PatchBatch:
    """Random square images with patches."""
    data, count = get_preset(name).data, BATCH_SIZES[name]
    size, num_patches = data.image_size, data.num_patches
    boxes = 0.25 + 0.5 * torch.rand(count, num_patches, 4)
    labels = torch.ones(num_patches, dtype=torch.int64)
    targets = tuple(Target(labels, each, (size, size), (size, size), 0) for each in boxes)
    patches = torch.randn(count, num_patches, 3, data.patch_size, data.patch_size)
    images = ImageBatch.from_images([torch.randn(3, size, size) for _ in range(count)])
    return PatchBatch(images, targets, patches=patches, sample_seeds=tuple(range(count)))


def seconds(task: Task, batch: PatchBatch) -> float:
    """The processor time of a forward and a backward pass."""
    began = time.process_time()
    task.total(task(batch)).backward()
    return time.process_time() - began


def measure(name: str, repeats: int) -> tuple[float, float]:
    """The time of a step, and of a step with given patch features."""
    preset = get_preset(name)
    preset = preset if preset.model.backbone.imagenet_url() else trained_from_nothing(preset)
    model, batch = build_model(preset, 2), batch_of(name)
    task = build_task(preset, model, 2).train()
    with torch.no_grad():
        features: Tensor = model.encode_patches(batch.patches)
    whole, without = [], []
    for _ in range(repeats):
        whole.append(seconds(task, batch))
        with mock.patch.object(model, "encode_patches", lambda patches: features):
            without.append(seconds(task, batch))
    return min(whole), min(without)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="*", default=list(BATCH_SIZES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in arguments.models:
        whole, without = measure(name, arguments.repeats)
        print(f"{name}: {whole:.2f} s for {BATCH_SIZES[name]} images, {1 - without / whole:.0%} of it for the patches")


if __name__ == "__main__":
    main()
