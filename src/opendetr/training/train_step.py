"""Random numbers, memory and precision of a train step."""

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
    """Within it, torch's global generator, from which dropout draws, is seeded for this step.

    The seed is a function of `seed`, `step` and the rank of the process. The former state is restored at the end.
    """
    state = np.random.SeedSequence((seed, step, rank())).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(state[0]))
        yield


def keep_freed_memory() -> None:
    """Let this process keep freed memory, because the next step allocates blocks of the same sizes.

    glibc returns large blocks to the system at once, and the system zeroes them page by page when they are allocated
    again. This takes a tenth of a train step of a small detector on a CPU. Without glibc, nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for trim_or_map in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(trim_or_map, 2**31 - 1)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None for float32 without autocast.

    Args:
        precision: as in `Recipe`.
        device: the device of the model.

    Raises:
        DeviceError: fp16 on a device that is not a CUDA GPU.
    """
    if precision == "fp16":
        if device.type != "cuda":
            raise DeviceError(f"precision fp16: needs a CUDA GPU, and this run is on {device.type}; use bf16 or fp32")
        return torch.float16
    uses_bfloat16 = precision == "bf16" or (precision == "auto" and has_bfloat16(device))
    return torch.bfloat16 if uses_bfloat16 else None
