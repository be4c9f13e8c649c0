"""What an optimiser step is made of beside the model: its parts, its random numbers, its precision.

Shape letters: B batch, H W image.
"""

from __future__ import annotations

import ctypes
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from opendetr.distributed import DeviceError, has_bfloat16, rank
from opendetr.structures import Batch, ImageBatch


@contextmanager
def step_randomness(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Within it, what draws from torch's global generator (dropout can do no other) gets the numbers of this step.

    They are a function of seed, step and process alone; afterwards the generator is as it was before.
    """
    state = np.random.SeedSequence((seed, step, rank())).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(state[0]))
        yield


def keep_freed_memory() -> None:
    """Have this process keep what it frees for the next step, which asks for pieces of the same sizes again.

    glibc hands large pieces back to the system at once and has them zeroed page by page when they are asked for again:
    a tenth of a small detector's step on a CPU. Other systems do as they do.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for trim_or_map in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(trim_or_map, 2**31 - 1)


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Cut a batch into `num_parts` micro-batches (fewer if it has fewer images), padded as the whole is."""
    size = math.ceil(len(batch) / num_parts)
    parts = []
    for start in range(0, len(batch), size):
        cut = slice(start, start + size)
        padding = None if batch.images.padding is None else batch.images.padding[cut]
        images = ImageBatch(batch.images.pixels[cut], padding, batch.images.sizes[cut])
        parts.append(Batch(images, batch.targets[cut], batch.names[cut]))
    return parts


def padded_to(batch: Batch, height: int, width: int) -> Batch:
    """The batch with its images (B, 3, H, W) padded, right and bottom, to a height and width."""
    images = batch.images
    right, bottom = width - images.pixels.shape[3], height - images.pixels.shape[2]
    if not (right or bottom):
        return batch
    padding = torch.zeros_like(images.pixels[:, 0], dtype=torch.bool) if images.padding is None else images.padding
    padding = F.pad(padding, (0, right, 0, bottom), value=True)
    return replace(batch, images=ImageBatch(F.pad(images.pixels, (0, right, 0, bottom)), padding, images.sizes))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What the model computes in under autocast, None for float32 throughout.

    Args:
        precision: as in `Recipe`.
        device: where it computes.

    Raises:
        DeviceError: fp16 away from a CUDA GPU.
    """
    if precision == "fp16":
        if device.type != "cuda":
            raise DeviceError(f"precision fp16: needs a CUDA GPU, and this run is on {device.type}; use bf16 or fp32")
        return torch.float16
    wanted = precision == "bf16" or (precision == "auto" and has_bfloat16(device))
    return torch.bfloat16 if wanted else None
