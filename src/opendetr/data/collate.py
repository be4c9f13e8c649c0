"""Collates samples into a batch, padded to a common height and width.

Shape letters: B batch, H W batch, h w image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from opendetr.data.resizing import normalise
from opendetr.structures import Batch, ImageBatch, Sample


class Collate(Protocol):
    """Makes a batch of samples; see `DataConfig.collate`."""

    def __call__(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> Batch:
        """The batch of B samples, on `device`.

        Args:
            samples: the B samples of this process, on the CPU.
            shape: height and width to pad the images to, the same in all processes. If an image is larger, the images
                are padded to its height or width.
            device: the device of the batch.
        """
        ...


def collate_samples(samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> Batch:
    """Collate samples for detection: images, targets and names; see `Collate`."""
    return Batch(
        collate_images(samples, shape, device),
        tuple(sample.target for sample in samples),
        tuple(sample.name for sample in samples),
    )


def collate_images(samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> ImageBatch:
    """The images of B samples, normalised and padded; the arguments are those of `Collate`.

    Pixels are sent to the device as uint8 and become float there, so a quarter of the bytes is transferred.
    """
    sizes = [(sample.pixels.shape[-2], sample.pixels.shape[-1]) for sample in samples]
    height, width = (max(lengths) for lengths in zip(shape, *sizes, strict=True))
    pixels = torch.empty((len(samples), 3, height, width), dtype=torch.float32, device=device)
    padding = torch.ones((len(samples), height, width), dtype=torch.bool, device=device)
    for index, ((h, w), sample) in enumerate(zip(sizes, samples, strict=True)):
        normalise(sample.pixels.to(device), out=pixels[index, :, :h, :w])
        pixels[index, :, h:] = 0
        pixels[index, :, :h, w:] = 0
        padding[index, :h, :w] = False
    is_padded = any(size != (height, width) for size in sizes)
    return ImageBatch(pixels, padding if is_padded else None, torch.tensor(sizes, device=device))
