"""The device of this process, and communication between processes; without effect in a single process.

All processes run the same program. Before a process acts on something that the others cannot see (a signal, a broken
file, its clock), all processes agree on it. Otherwise the others would wait for it forever.
"""

from __future__ import annotations

import atexit
import math
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")
# The CPU time of a container in microseconds, and the period that it is for.
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


class DeviceError(ValueError):
    """The machine does not have a device, or the device does not support an operation. The message is one line."""


class ProcessError(ValueError):
    """Another process of the run has failed. The main process reports the message."""


def usable_cpus() -> int:
    """The number of CPU cores that this process may use: those of its affinity, within the limit of its container."""
    # macOS and Windows have no affinity in Python.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_LIMIT.read_text(encoding="ascii").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # there is no such file, or its quota is "max"
        return count


def best_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" selects a GPU if there is one. Raises DeviceError if there is no such device."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_available in available.items() if is_available)
    kind = name.partition(":")[0]
    if not available.get(kind, False):
        choices = ", ".join(kind for kind, is_available in available.items() if is_available)
        raise DeviceError(f"device {name!r}: this machine has none; choose one of {choices}, or auto")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device supports bfloat16 in hardware. Emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of torch
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


# ----------------------------------------------------------------------------------------------------------- processes


def is_launched() -> bool:
    """Whether torchrun or another launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_processes(name: str = "auto") -> torch.device:
    """Connect to the other processes, if a launcher started any; returns the device of this process.

    Args:
        name: as for `best_device`. With GPUs, each process of a machine has its own.

    Raises:
        DeviceError: the machine has no such device, or fewer GPUs than processes; the launcher has not set all the
            variables that torch needs; or the processes cannot connect.
    """
    device = best_device(name)
    if not is_launched():
        return device
    if device.type == "mps":
        if name != "auto":
            raise DeviceError("device 'mps': supports one process only; omit --processes, or use --device cpu")
        device = torch.device("cpu")
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and on_machine > torch.cuda.device_count():
        raise DeviceError(
            f"{on_machine} processes, but this machine has {torch.cuda.device_count()} GPUs; start fewer processes"
        )
    if not _several():
        _join(device)
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _join(device: torch.device) -> None:
    """Start the process group with the variables that the launcher has set."""
    needed = ["RANK", "MASTER_ADDR", "MASTER_PORT"] + ["LOCAL_RANK"] * (device.type == "cuda")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise DeviceError(f"WORLD_SIZE is set, but not {', '.join(missing)}; start several processes with torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:  # gloo carries what is not on a GPU
        distributed.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    except distributed.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise DeviceError(f"the processes cannot connect at {place}: {str(error).splitlines()[0]}") from error
    atexit.register(_leave)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:  # else each process would take all cores
        machines = gather(platform.node())
        torch.set_num_threads(max(1, torch.get_num_threads() // machines.count(platform.node())))


def _leave() -> None:
    if _several():
        distributed.destroy_process_group()


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The rank of this process, from 0."""
    return distributed.get_rank() if _several() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if _several() else 1


def is_main() -> bool:
    """Whether this is the main process, which writes files and prints messages."""
    return rank() == 0


def reduce_sum(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, the same in each; `value` itself is not modified."""
    if not _several():
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total


def gather(value: Value, failure: ValueError | None = None) -> list[Value]:
    """The `value` of every process, in order of rank.

    Args:
        value: any object that can be pickled.
        failure: the error of this process, or None. An error in one process is raised in all.

    Raises:
        ValueError: `failure`, in the main process or in a single process.
        ProcessError: the message of the first failure, in all other cases.
    """
    if not _several():
        if failure is not None:
            raise failure
        return [value]
    received: list[tuple[Value, str | None] | None] = [None] * world_size()
    distributed.all_gather_object(received, (value, None if failure is None else str(failure)))
    gathered: list[tuple[Value, str | None]] = received  # type: ignore[assignment]
    messages = [message for _, message in gathered if message is not None]
    if failure is not None and is_main():
        raise failure
    if messages:
        raise ProcessError(messages[0])
    return [each for each, _ in gathered]


def from_main(value: Value) -> Value:
    """The `value` of the main process, in every process."""
    return gather(value)[0]


@contextmanager
def together() -> Iterator[None]:
    """Context manager at whose end all processes wait for each other. A ValueError in one is raised in all."""
    failure = None
    try:
        yield
    except ValueError as error:
        failure = error
    gather(None, failure)


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Context manager that converts torch's errors about a lost process to ProcessError."""
    try:
        yield
    except RuntimeError as error:
        of_connection = isinstance(error, distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error)
        if not (_several() and of_connection):
            raise
        raise ProcessError("another process of this run has ended; continue with --resume") from error


# --------------------------------------------------------------------------------------------------------------- model


def parallel(module: nn.Module, device: torch.device, *, some_without_gradient: bool = False) -> nn.Module:
    """Wrap a module for training. With several processes, `backward` averages the gradients over them.

    Args:
        module: the module to train.
        device: the device of this process.
        some_without_gradient: whether some steps do not use every parameter. Detecting unused parameters takes time.
    """
    if not _several():
        return module
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of 1x1 convolutions
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=some_without_gradient,
    )


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Context in which a module from `parallel` accumulates gradients; the next `backward` outside averages them."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def share_norms(module: nn.Module, device: torch.device) -> tuple[nn.Module, str | None]:
    """Synchronise batch norms over all processes, where torch supports it.

    Returns:
        The module, and a warning where torch does not support it, otherwise None.
    """
    has_norms = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    if not (_several() and has_norms):
        return module, None
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module), None
    return module, (
        f"batch norm: on {device.type} each process uses statistics of its own images; those of process 0 are kept"
    )


@torch.no_grad()
def copy_buffers(module: nn.Module) -> None:
    """Copy the buffers of the main process, such as batch norm statistics, to all processes."""
    if _several():
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)
