"""The sampling of deformable attention in C, compiled on first use with the machine's compiler.

The C code reads and writes every number once. Tensor operations need many passes over arrays of all samples. Without a
compiler, or with OPENDETR_NATIVE=0, nothing is built and the caller uses tensor operations.

Shape letters: B batch, N tokens of all levels, Q queries, H heads, L levels, P points per head and level, d width of a
head.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opendetr.files import atomic_path, cache_folder

SWITCH = "OPENDETR_NATIVE"
_SOURCE = "deformable_attention.c"
# No -ffast-math: sums keep their order, except for the dot products with an omp pragma in the source.
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fopenmp-simd", "-ffp-contract=fast")
_SECONDS = 60

Shapes = Sequence[tuple[int, int]]


class _Sizes(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "queries", "heads", "width", "levels", "points")),
        ("shapes", ctypes.POINTER(ctypes.c_int64)),
    )


# ------------------------------------------------------------------------------------------------------------- building


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None if they are switched off or cannot be compiled."""
    enabled = os.environ.get(SWITCH, "").lower() not in ("0", "no", "off", "false")
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if os.name != "posix" or not enabled or compiler is None:
        return None
    try:
        return _loaded(compiler)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(
            f"{compiler}: cannot build the sampling of deformable attention, which will be slower: "
            f"{' '.join(str(reason).split())[:300]}",
            stacklevel=2,
        )
        return None


def _loaded(compiler: str) -> ctypes.CDLL:
    """Load the library from the cache. Builds it if it is missing or cannot be loaded."""
    source = (resources.files("opendetr") / "nn" / _SOURCE).read_text(encoding="utf-8")
    key = hashlib.sha256("\n".join((source, *_FLAGS, platform.platform(), _processor())).encode()).hexdigest()[:16]
    path = cache_folder() / "native" / f"deformable_attention-{key}.so"
    if path.is_file():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # possibly incomplete
            path.unlink()
    _build(compiler, source, path)
    return ctypes.CDLL(str(path))


def _processor() -> str:
    """The features of this processor, because machines with other processors may share the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _build(compiler: str, source: str, path: Path) -> None:
    """Compile the library and write it atomically, because several processes may build it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, atomic_path(path) as temporary:
        code = Path(folder) / _SOURCE
        code.write_text(source, encoding="utf-8")
        command = [compiler, *_FLAGS, str(code), "-o", str(temporary), "-lm"]
        if _run([*command, "-march=native"]).returncode:  # some compilers do not support it
            _run(command).check_returncode()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)


# -------------------------------------------------------------------------------------------------------------- calling


def sample_native(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample_and_sum` with the library, for float32 on the CPU. `library()` must not be None.

    Only the arguments are saved for backward.

    Raises:
        ValueError: the shapes do not fit each other, so the library would read outside the tensors.
    """
    _require_fitting(value, shapes, locations, weights)
    return _Sample.apply(value, [side for shape in shapes for side in shape], locations, weights)


def _require_fitting(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    batch, num_tokens, heads, _ = value.shape
    expected = (batch, weights.shape[1], heads, len(shapes), weights.shape[-1])
    if tuple(weights.shape) != expected or tuple(locations.shape) != (*expected, 2):
        raise ValueError(
            f"deformable attention: expected weights {expected} and locations {(*expected, 2)} for value "
            f"{tuple(value.shape)} and {len(shapes)} levels, got {tuple(weights.shape)} and {tuple(locations.shape)}"
        )
    if num_tokens != sum(h * w for h, w in shapes):
        raise ValueError(f"deformable attention: expected the tokens of levels {tuple(shapes)}, got {num_tokens}")


def _sum_samples(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """(B, N, H, d), h and w of each level, (B, Q, H, L, P, 2), (B, Q, H, L, P) -> (B, Q, H d)."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    sums = _sums_like(value, sides, locations, weights)
    batch, num_queries, heads = weights.shape[:3]
    sizes = _sizes(value, sides, weights)
    pairs = batch * heads
    parts = -(-torch.get_num_threads() // max(pairs, 1))  # splits the queries if there are fewer pairs than threads

    def work(part: int) -> None:
        pair, queries = part // parts, part % parts
        first, last = queries * num_queries // parts, (queries + 1) * num_queries // parts
        numbers = map(ctypes.c_int64, (pair, pair + 1, first, last))
        _functions().opendetr_sum(ctypes.byref(sizes), *numbers, *_pointers(value, locations, weights, sums))

    _in_threads(work, pairs * parts)
    return sums


def _sums_like(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])


def _spread_samples(
    value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights, from the gradient of the sums (B, Q, H d)."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    gradient = gradient.contiguous()
    gradients = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
    sizes = _sizes(value, sides, weights)

    def work(pair: int) -> None:
        pointers = _pointers(value, locations, weights, gradient, *gradients)
        _functions().opendetr_spread(ctypes.byref(sizes), ctypes.c_int64(pair), ctypes.c_int64(pair + 1), *pointers)

    _in_threads(work, weights.shape[0] * weights.shape[2])
    return gradients


def _gradients_like(
    value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)


# Registered as torch operators, so that fake tensors and operator counters support them. `custom_op` would need fewer
# lines, but its first call imports 150 MiB of torch.
_LIBRARY = torch.library.Library("opendetr", "DEF")
_ARGUMENTS = "Tensor value, int[] sides, Tensor locations, Tensor weights"
for _signature, _kernel, _fake in (
    (f"sum_samples({_ARGUMENTS}) -> Tensor", _sum_samples, _sums_like),
    (f"spread_samples({_ARGUMENTS}, Tensor gradient) -> (Tensor, Tensor, Tensor)", _spread_samples, _gradients_like),
):
    _name = _LIBRARY.define(_signature)
    _LIBRARY.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"opendetr::{_name}", _fake, lib=_LIBRARY)


class _Sample(torch.autograd.Function):
    """The sums and their gradients. Only the arguments are saved for backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, sides: list[int], locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.sides = sides
        return torch.ops.opendetr.sum_samples(value, sides, locations, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        gradients = torch.ops.opendetr.spread_samples(value, ctx.sides, locations, weights, gradient)
        return gradients[0], None, gradients[1], gradients[2]


def _functions() -> ctypes.CDLL:
    functions = library()
    assert functions is not None, "callers must check library() first"
    return functions


def _sizes(value: Tensor, sides: Sequence[int], weights: Tensor) -> _Sizes:
    _, num_tokens, heads, width = value.shape
    numbers = (num_tokens, weights.shape[1], heads, width, len(sides) // 2, weights.shape[4])
    return _Sizes(*numbers, (ctypes.c_int64 * len(sides))(*sides))


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """Run work(0) .. work(count - 1) in as many threads as torch uses. The library releases the GIL."""
    threads = min(torch.get_num_threads(), count)
    if threads > 1:
        try:
            parts = _pool(os.getpid(), threads).map(work, range(count))
        except RuntimeError:  # the interpreter is shutting down and starts no threads
            parts = map(work, range(count))
    else:
        parts = map(work, range(count))
    for _ in parts:
        pass


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """A thread pool per process, because threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"opendetr-native-{process}")
