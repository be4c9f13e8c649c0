"""Seconds of a training step of detr-r50 (batch 2, 640x640) beside transformers' DETR of the same size, interleaved.

    python runs/training_step.py --repeats 7

Both train 41.3 million parameters: transformers freezes its whole ResNet, so its last three stages are unfrozen here.
A step is forward, loss, backward and AdamW with clipping. Expected on 2 cores: a ratio (ours / theirs) of at most 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from opendetr.presets import create, create_task
from opendetr.structures import Batch, ImageBatch, Target

SIZE, OBJECTS = 640, 7


def boxes() -> torch.Tensor:
    return torch.rand(OBJECTS, 4) * 0.3 + 0.3


def stepper(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(f"{type(model).__name__}: {sum(parameter.numel() for parameter in trained):,} trainable parameters")
    optimiser = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 0.1)
        optimiser.step()
        optimiser.zero_grad()

    return step


def ours(pixels: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor) -> Callable[[], None]:
    model = create("detr-r50").train()
    task = create_task("detr-r50", model=model)
    size = (SIZE, SIZE)
    batch = Batch(ImageBatch.from_images(list(pixels)), tuple(Target(labels, truth, size, size, i) for i in range(2)))
    return stepper(model, lambda: task.total(task(batch)))


def theirs(pixels: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor) -> Callable[[], None]:
    from transformers import DetrConfig, DetrForObjectDetection

    config = DetrConfig(use_pretrained_backbone=False, use_timm_backbone=False, backbone=None, num_labels=91,
                        backbone_config={"model_type": "resnet", "out_features": ["stage4"]},
                        auxiliary_loss=True)  # fmt: skip
    model = DetrForObjectDetection(config).train()
    for name, parameter in model.named_parameters():
        if "backbone" in name and any(f"stages.{stage}." in name for stage in (1, 2, 3)):
            parameter.requires_grad_(True)
    targets = [{"class_labels": labels, "boxes": truth} for _ in range(2)]
    return stepper(model, lambda: model(pixel_values=pixels, labels=targets).loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, SIZE, SIZE), torch.randint(0, 91, (OBJECTS,)), boxes()
    steps = {"opendetr": ours(*inputs), "transformers": theirs(*inputs)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if repeat:  # the first one warms up
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["opendetr"], times["transformers"], strict=True)]
    for name, median in medians.items():
        least, most = min(times[name]), max(times[name])
        print(f"{name}: median {median:.2f} s of {options.repeats} steps ({least:.2f} to {most:.2f})")
    print(f"ratio ours / theirs, pair by pair: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
