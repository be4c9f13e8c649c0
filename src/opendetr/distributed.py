"""Where this process computes and which of several it is; with one process everything here does nothing.

Several processes run the same program. What one of them alone can meet (a signal, a broken file, its clock) is agreed
on before it changes what the process does: else the others would wait for it for ever.
"""

from __future__ import annotations

import atexit
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")


class DeviceError(ValueError):
    """A device that this machine does not have, or that cannot do what is asked; the message is one line."""


class ProcessError(ValueError):
    """Raised for what ended another process of the run; the main process is the one to say it."""


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


# ----------------------------------------------------------------------------------------------------------- processes


def is_launched() -> bool:
    """Whether torchrun, or another launcher, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_processes(name: str = "auto") -> torch.device:
    """Meet the other processes, if a launcher started any; returns the device of this one.

    Args:
        name: as for `best_device`. Of several GPUs each process of a machine has its own.

    Raises:
        DeviceError: the machine has no such device, or not one for each process; the launcher has not set all variables
            that torch needs; or the processes cannot connect.
    """
    device = best_device(name)
    if not is_launched():
        return device
    if device.type == "mps":
        if name != "auto":
            raise DeviceError("device 'mps': serves one process only; leave --processes out, or use --device cpu")
        device = torch.device("cpu")
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and on_machine > torch.cuda.device_count():
        raise DeviceError(f"{on_machine} processes, but this machine has {torch.cuda.device_count()} GPUs")
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


def gather(value: Value, failure: ValueError | None = None) -> list[Value]:
    """The `value` of every process, in order of rank.

    Args:
        value: anything that can be pickled.
        failure: what went wrong in this process. One such failure ends all processes.

    Raises:
        ValueError: the failure of this process, or ProcessError with the message of another's.
    """
    if not _several():
        if failure is not None:
            raise failure
        return [value]
    met: list[tuple[Value, str | None] | None] = [None] * world_size()
    distributed.all_gather_object(met, (value, None if failure is None else str(failure)))
    told: list[tuple[Value, str | None]] = met  # type: ignore[assignment]
    messages = [message for _, message in told if message is not None]
    if failure is not None and is_main():
        raise failure
    if messages:
        raise ProcessError(messages[0])
    return [each for each, _ in told]


def from_main(value: Value) -> Value:
    """The main process's `value`, in every process."""
    return gather(value)[0]


@contextmanager
def together() -> Iterator[None]:
    """What fails in it with a ValueError, in whichever process, fails in all; each leaves it when all have come."""
    failure = None
    try:
        yield
    except ValueError as error:
        failure = error
    gather(None, failure)


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turns what torch raises when another process is gone into a ProcessError."""
    try:
        yield
    except RuntimeError as error:
        of_connection = isinstance(error, distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error)
        if not (_several() and of_connection):
            raise
        raise ProcessError("another process of this run has ended; go on with --resume") from error


# --------------------------------------------------------------------------------------------------------------- model


def parallel(module: nn.Module, device: torch.device, *, some_without_gradient: bool = False) -> nn.Module:
    """The module as it is called in training: with several processes, gradients are their mean after `backward`.

    Args:
        module: what is trained.
        device: of this process.
        some_without_gradient: whether there are steps in which a parameter takes no part. Finding them costs time.
    """
    if not _several():
        return module
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of kernels of one pixel
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=some_without_gradient,
    )


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Within it, gradients of a module from `parallel` are only added up, to be shared by a later `backward`."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def share_norms(module: nn.Module, device: torch.device) -> tuple[nn.Module, str | None]:
    """Let batch norms see the images of all processes, where torch can; returns the module and a line if it cannot."""
    has_norms = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    if not (_several() and has_norms):
        return module, None
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module), None
    return module, f"batch norm: on {device.type} each process normalises over its own images; process 0's are kept"


@torch.no_grad()
def copy_buffers(module: nn.Module) -> None:
    """Give every process the main one's buffers, such as the statistics of batch norms."""
    if _several():
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)
