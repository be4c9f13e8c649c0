"""Deformable attention's sampling in C, built on its first use by the machine's own compiler.

It reads and writes every number once, where tensors would pass over arrays of all samples again and again. Where there
is no compiler, nothing is built and the caller goes on with tensors; so it does with OPENDETR_NATIVE=0.

Shape letters: B batch, N tokens of all levels, Q queries, H heads, L levels, P points of a head on a level, d width of
a head.
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

from opendetr.cache import cache_folder

SWITCH = "OPENDETR_NATIVE"
_SOURCE = "deformable_attention.c"
# Sums keep their order, but for the dot products that the source marks; -march=native is left out where it is unknown.
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
    """The compiled functions, or None where they are not wanted or cannot be had."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if os.environ.get(SWITCH, "").lower() in ("0", "no", "false") or compiler is None:
        return None
    source = (resources.files("opendetr") / "nn" / _SOURCE).read_text(encoding="utf-8")
    key = hashlib.sha256("\n".join((source, *_FLAGS, platform.platform(), _processor())).encode()).hexdigest()[:16]
    try:
        return ctypes.CDLL(str(_built(compiler, source, cache_folder() / "native" / f"deformable_attention-{key}.so")))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(
            f"{compiler}: could not build the sampling of deformable attention, which stays slower: "
            f"{' '.join(str(reason).split())[:300]}",
            stacklevel=2,
        )
        return None


def _processor() -> str:
    """What this processor can do: a folder may be shared with other machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _built(compiler: str, source: str, path: Path) -> Path:
    """The library's file, made whole or not at all: several processes may build it at the same time."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, made = Path(folder) / _SOURCE, Path(folder) / path.name
        code.write_text(source, encoding="utf-8")
        command = [compiler, *_FLAGS, str(code), "-o", str(made), "-lm"]
        tries = [[*command, "-march=native"], command]
        for attempt in tries:
            done = subprocess.run(attempt, capture_output=True, text=True, timeout=_SECONDS, check=attempt is command)
            if done.returncode == 0:
                break
        made.replace(path)
    return path


# -------------------------------------------------------------------------------------------------------------- calling


class SampleNative(torch.autograd.Function):
    """`sample_and_sum` by the library, which must be there. Nothing is kept for backward but the arguments."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        """(B, N, H, d), L pairs h w, (B, Q, H, L, P, 2), (B, Q, H, L, P) -> (B, Q, H d), float32 throughout."""
        value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        batch, num_queries, heads = weights.shape[:3]
        sums = value.new_empty(batch, num_queries, heads * value.shape[3])
        sizes, pointers = _sizes(value, shapes, weights), _pointers(value, locations, weights, sums)
        pairs = batch * heads
        parts = -(-torch.get_num_threads() // pairs)  # of the queries, where there are fewer pairs than threads

        def work(part: int) -> None:
            pair, queries = part // parts, part % parts
            first, last = queries * num_queries // parts, (queries + 1) * num_queries // parts
            _functions().opendetr_sum(sizes, *map(ctypes.c_int64, (pair, pair + 1, first, last)), *pointers)

        _in_threads(work, pairs * parts)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        """The gradients of value, locations and weights."""
        value, locations, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        found = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
        sizes = _sizes(value, ctx.shapes, weights)
        pointers = _pointers(value, locations, weights, gradient, *found)

        def work(pair: int) -> None:
            _functions().opendetr_spread(sizes, ctypes.c_int64(pair), ctypes.c_int64(pair + 1), *pointers)

        _in_threads(work, weights.shape[0] * weights.shape[2])
        return found[0], None, found[1], found[2]


def _functions() -> ctypes.CDLL:
    functions = library()
    assert functions is not None, "callers ask for the library first"
    return functions


def _sizes(value: Tensor, shapes: Shapes, weights: Tensor) -> Any:
    _, num_tokens, heads, width = value.shape
    numbers = (num_tokens, weights.shape[1], heads, width, len(shapes), weights.shape[4])
    flat = [side for shape in shapes for side in shape]
    return ctypes.byref(_Sizes(*numbers, (ctypes.c_int64 * len(flat))(*flat)))


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """Do the parts 0..count - 1, at most as many at a time as torch has threads; the library lets others run."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        for part in range(count):
            work(part)
    else:
        for _ in _pool(os.getpid(), threads).map(work, range(count)):
            pass


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: they do not live on in a fork of it."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"opendetr-native-{process}")
