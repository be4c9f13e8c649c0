"""Compares the speed of the training loader with that of PIL and torchvision's transforms, in images per second.

    python runs/loader_speed.py COCO128/images --repeats 7

Both loaders apply DETR's training augmentation at full size (short side 480 to 800) in one loader process. They use the
same images, flips, crops and sizes, in the same batches of 2 images. The reference does what DETR's own dataset class
does: PIL decodes, flips, resizes and crops, then ToTensor and Normalize, and the loader process pads the batches. The
two take turns, epoch by epoch.

The script first compares the pixels. They may differ by one grey level after one resize and by two after two. Expected
on 2 cores with 256 COCO images: a ratio (OpenDETR / reference) of at least 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from opendetr.categories import Categories
from opendetr.data.augmentation import training_transform
from opendetr.data.config import DataConfig
from opendetr.data.images import image_size
from opendetr.data.loader import TrainLoader, sample_rng, train_loader
from opendetr.data.records import DetectionData, ImageRecord, ObjectRecord
from opendetr.data.transforms import Crop, Flip
from opendetr.structures import Batch

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SEED = 0


def records(folder: Path) -> DetectionData:
    """The images of a folder, with seven boxes in each image."""
    images = []
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        height, width = image_size(path)
        boxes = [(width * k / 9, height * k / 9, width / 5, height / 5) for k in range(7)]
        objects = [ObjectRecord(id=k, category_id=0, box=box, area=box[2] * box[3]) for k, box in enumerate(boxes)]
        images.append(ImageRecord(id=number, path=path, height=height, width=width, objects=tuple(objects)))
    return DetectionData(categories=Categories(("thing",), (0,)), images=tuple(images), split="train", folder=folder)


class Classic(Dataset[torch.Tensor]):
    """The reference dataset: PIL and torchvision execute the flips, crops and resizes that our transform plans."""

    def __init__(self, data: DetectionData, config: DataConfig) -> None:
        self.images = data.images
        self.transform = training_transform(config)

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        epoch, index = key
        image = Image.open(self.images[index].path).convert("RGB")
        for step in self.transform.plan(image.height, image.width, sample_rng(SEED, epoch, index)):
            if isinstance(step, Flip):
                image = functional.hflip(image)
            elif isinstance(step, Crop):
                image = functional.crop(image, step.top, step.left, step.height, step.width)
            else:
                image = functional.resize(image, [step.height, step.width])
        return functional.normalize(functional.to_tensor(image), MEAN, STD)


class Order:
    """A batch sampler for `Classic`: our loader's batches of the epoch that is set before each pass."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, index) for index in draw.indices] for draw in self.loader._draws(self.epoch))


def padded(images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Collate images (3, h, w) as DETR does: pixels (B, 3, H, W) and a padding mask (B, H, W)."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for index, image in enumerate(images):
        pixels[index, :, : image.shape[1], : image.shape[2]] = image
        padding[index, : image.shape[1], : image.shape[2]] = False
    return pixels, padding


def compare(ours: Iterable[Batch], theirs: Iterable[tuple[torch.Tensor, torch.Tensor]], data: DetectionData) -> None:
    """Print how much the pixels differ. Raises AssertionError if they differ more than the resizes explain."""
    transform = training_transform(DataConfig())
    greatest, different, count = {False: 0.0, True: 0.0}, 0.0, 0
    for batch, (pixels, _) in zip(ours, theirs, strict=True):
        assert batch.images.pixels.shape == pixels.shape
        levels = ((batch.images.pixels - pixels) * torch.tensor(STD).view(3, 1, 1) * 255).abs()
        for target, level in zip(batch.targets, levels, strict=True):
            height, width = target.original_size
            steps = transform.plan(height, width, sample_rng(SEED, 0, target.image_id))
            is_cropped = any(isinstance(step, Crop) for step in steps)
            greatest[is_cropped] = max(greatest[is_cropped], round(float(level.max()), 3))
        different += float((levels > 0.5).sum())
        count += levels.numel()
    print(f"largest difference in grey levels: {greatest[False]} after one resize, {greatest[True]} after a crop "
          f"between two resizes; {different / count:.2%} of the values differ")  # fmt: skip
    assert greatest[False] <= 1
    assert greatest[True] <= 2


def rate(batches: Iterable[object], num_images: int) -> float:
    began = time.perf_counter()
    for _ in batches:
        pass
    return num_images / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, config = records(options.images), DataConfig(num_workers=options.workers)
    ours = train_loader(data, config, batch_size=options.batch_size, seed=SEED)
    order = Order(ours)
    theirs = DataLoader(
        Classic(data, config),
        batch_sampler=order,
        collate_fn=padded,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    compare(ours.epoch(0), theirs, data)
    num_images = len(ours) * options.batch_size
    rates: dict[str, list[float]] = {"opendetr": [], "PIL + torchvision": []}
    for epoch in range(1, options.repeats + 1):
        order.epoch = epoch
        rates["opendetr"].append(rate(ours.epoch(epoch), num_images))
        rates["PIL + torchvision"].append(rate(theirs, num_images))
    for name, values in rates.items():
        print(
            f"{name}: median {statistics.median(values):.0f} images per second ({min(values):.0f} to {max(values):.0f})"
        )
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"ratio OpenDETR / PIL + torchvision of each epoch: median {statistics.median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
