"""A task and a loader as the trainer knows them, small enough for hundreds of steps a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from opendetr.models import Detector
from opendetr.structures import Batch, ImageBatch, Target
from opendetr.tasks import Task


class CountingTask(Task):
    """Guesses the number of objects of an image, through dropout and a batch norm; two "layers" of one loss."""

    def __init__(self, dropout: float = 0.2) -> None:
        nn.Module.__init__(self)  # no criterion: this task overrides all that the trainer uses
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, 2))
        self.steps_seen = 0
        self.parameter_rates = Detector.parameter_rates

    def forward(self, batch: Batch, normaliser: float) -> dict[str, Tensor]:
        self.steps_seen += 1
        guesses = self.head(self.backbone(batch.images.pixels).mean((2, 3)))
        counts = torch.tensor([float(len(target)) for target in batch.targets])
        return {"error": ((guesses - counts[:, None]) ** 2).sum(0) / normaliser}

    def normaliser(self, num_objects: Sequence[int]) -> float:
        return float(sum(num_objects))

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        return losses["error"].sum()


class RandomLoader:
    """Batches that are a function of (seed, epoch, position)."""

    def __init__(self, num_batches: int = 5, batch_size: int = 4, poison: tuple[int, int] | None = None) -> None:
        self.num_batches = num_batches
        self.batch_size = batch_size
        self.poison = poison  # epoch and position of a batch with a pixel that is no number

    def __len__(self) -> int:
        return self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for position in range(start, self.num_batches):
            yield self.batch(epoch, position)

    def batch(self, epoch: int, position: int) -> Batch:
        rng = np.random.default_rng([epoch, position])
        images, targets = [], []
        for index in range(self.batch_size):
            height, width = rng.integers(8, 14, 2).tolist()
            images.append(torch.from_numpy(rng.normal(size=(3, height, width)).astype(np.float32)))
            n = int(rng.integers(1, 4))
            boxes = torch.from_numpy(rng.uniform(0.3, 0.6, (n, 4)).astype(np.float32))
            targets.append(Target(torch.zeros(n, dtype=torch.int64), boxes, (height, width), (height, width), index))
        if self.poison == (epoch, position):
            images[1][0, 0, 0] = torch.nan
        names = tuple(f"image-{epoch}-{position}-{index}.png" for index in range(self.batch_size))
        return Batch(ImageBatch.from_images(images), tuple(targets), names)
