"""Where this process computes and which of several it is; with one process everything here does nothing."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


class DeviceError(ValueError):
    """A device that this machine does not have; the message is one line."""


def best_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes a GPU when there is one. Raises DeviceError when the machine lacks it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    kind = name.partition(":")[0]
    if not available.get(kind, False):
        choices = ", ".join(kind for kind, there in available.items() if there)
        raise DeviceError(f"device {name!r}: this machine has none; choose one of {choices}, or auto")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 itself; where it is imitated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot say
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if _several() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _several() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def reduce_sum(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, the same in each; `value` itself stays as it is."""
    if not _several():
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total


def gather(value: Value) -> list[Value]:
    """The `value` of every process, in order of rank."""
    if not _several():
        return [value]
    values: list[Value | None] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]
