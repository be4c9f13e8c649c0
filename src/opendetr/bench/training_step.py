"""A training step of detr-r50 (batch 2, 640x640), compared with DETR of the same size in transformers.

Both train 41.3 million parameters: transformers freezes its whole ResNet, so its last three stages are unfrozen here.
A step is forward, loss, backward and AdamW with clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from opendetr.bench.figure import Figure
from opendetr.bench.measuring import interleaved
from opendetr.presets import create, create_task
from opendetr.structures import Batch, ImageBatch, Target

SIZE, OBJECTS = 640, 7


def _boxes() -> torch.Tensor:
    return torch.rand(OBJECTS, 4) * 0.3 + 0.3


def _stepper(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _ours(pixels: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor) -> Callable[[], None]:
    model = create("detr-r50").train()
    task = create_task("detr-r50", model=model)
    size = (SIZE, SIZE)
    batch = Batch(ImageBatch.from_images(list(pixels)), tuple(Target(labels, truth, size, size, i) for i in range(2)))
    return _stepper(model, lambda: task.total(task(batch)))


def _theirs(pixels: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor) -> Callable[[], None]:
    from transformers import DetrConfig, DetrForObjectDetection

    settings: dict[str, Any] = {
        "use_pretrained_backbone": False, "use_timm_backbone": False, "backbone": None, "num_labels": 91,
        "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}, "auxiliary_loss": True,
    }  # fmt: skip
    config = DetrConfig(**settings)
    model = DetrForObjectDetection(config).train()
    for name, parameter in model.named_parameters():
        if "backbone" in name and any(f"stages.{stage}." in name for stage in (1, 2, 3)):
            parameter.requires_grad_(True)
    targets = [{"class_labels": labels, "boxes": truth} for _ in range(2)]
    return _stepper(model, lambda: model(pixel_values=pixels, labels=targets).loss)


def measure(repeats: int) -> Iterator[Figure]:
    """Yield the seconds of a step."""
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, SIZE, SIZE), torch.randint(0, 91, (OBJECTS,)), _boxes()
    steps = {"opendetr": _ours(*inputs), "transformers": _theirs(*inputs)}
    yield Figure.of_seconds("a step", interleaved(steps, repeats), expected=1.0)
