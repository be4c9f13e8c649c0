"""What a training step needs beside the model: its random numbers, its memory, its precision."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from opendetr.distributed import DeviceError, has_bfloat16, rank


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
