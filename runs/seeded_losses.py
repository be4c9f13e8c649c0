"""Prints fingerprints of seeded losses, gradients and two train steps of seven presets.

A refactoring must not change them: `python runs/seeded_losses.py > before`, change the code, then
`python runs/seeded_losses.py | diff before -`. The fingerprints depend on the machine and on the version of torch.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import opendetr
from opendetr.presets import build_model, build_task, miniature
from opendetr.structures import Batch, ImageBatch, Target

PRESETS = (
    "detr-r50",
    "detr-r50-dc5",
    "detr-r50-panoptic",
    "conditional-detr-r50",
    "deformable-detr-r50",
    "deformable-detr-r50-two-stage",
    "deformable-detr-tiny-panoptic",
)
NUM_CLASSES = 5


def fingerprint(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def seeded_batch() -> Batch:
    """Three images of different sizes with 3, 0 and 5 objects."""
    numbers = torch.Generator().manual_seed(7)
    sizes, counts = ((64, 80), (72, 64), (48, 96)), (3, 0, 5)
    images = [torch.randn(3, *size, generator=numbers) for size in sizes]
    targets = tuple(
        Target(
            labels=torch.randint(NUM_CLASSES, (count,), generator=numbers),
            boxes=torch.rand(count, 4, generator=numbers) * 0.3 + 0.2,
            size=size,
            original_size=size,
            image_id=index,
            masks=torch.rand(count, *size, generator=numbers) > 0.5,
        )
        for index, (size, count) in enumerate(zip(sizes, counts, strict=True))
    )
    return Batch(ImageBatch.from_images(images), targets)


def losses_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    preset = miniature(name)
    task = build_task(preset, build_model(preset, NUM_CLASSES), NUM_CLASSES)
    task.train()
    batch = seeded_batch()
    losses = task(batch, task.normaliser([len(target) for target in batch.targets]))
    total = task.total(losses)
    total.backward()
    gradients = (parameter.grad for parameter in task.parameters() if parameter.grad is not None)
    print(f"{name} losses {fingerprint(losses[key] for key in sorted(losses))} total {total.item():.9g}")
    print(f"{name} gradients {fingerprint(gradients)}")


def two_steps(name: str, data: Path, folder: Path) -> None:
    run = opendetr.train(
        data,
        model=name,
        weights="none",
        out=folder / name,
        max_steps=2,
        batch_size=2,
        image_size=64,
        changes=["model.transformer.encoder_layers=1", "model.transformer.decoder_layers=2", "data.num_workers=0"],
        device="cpu",
        say=lambda line: None,
    )
    tensors = load_file(run.folder / "last" / "model.safetensors")
    print(f"{name} two steps {fingerprint(tensors[key] for key in sorted(tensors))}")


def main() -> None:
    torch.set_num_threads(1)
    for name in PRESETS:
        losses_and_gradients(name)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        from typer.testing import CliRunner

        from opendetr.cli.main import app

        CliRunner().invoke(app, ["data", "make", str(data), "--train", "6", "--val", "2"], catch_exceptions=False)
        for name in PRESETS:
            two_steps(name, data, Path(folder))


if __name__ == "__main__":
    main()
