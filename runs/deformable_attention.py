"""Deformable attention in an encoder layer at the sizes of an 800x1066 image: seconds and memory.

    python runs/deformable_attention.py --repeats 5

Seconds beside the loop over levels with `grid_sample` that transformers uses, interleaved, medians. Memory is what a
fresh process grows by over its inputs while the whole module computes, relative to the bytes of value, sampling
locations, attention weights and output. It is read from /proc, so on Linux alone, and glibc is told to hand freed
memory back at once: by itself it keeps blocks of up to 32 MiB, and the figure would be that of its habits.
Expected on a CPU: at least 1.5 times as fast, forward and backward; at most 2 times the bytes without gradients, 4
times with them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from opendetr.nn.deformable_attention import DeformableAttention, sample_and_sum

SHAPES = ((100, 134), (50, 67), (25, 34), (13, 17))
NUM_TOKENS = sum(h * w for h, w in SHAPES)
WIDTH, HEADS, LEVELS, POINTS = 256, 8, len(SHAPES), 4
NUM_BYTES = 4 * NUM_TOKENS * (WIDTH + HEADS * LEVELS * POINTS * 3 + WIDTH)
BARS = {"inference": 2, "training": 4}

Sampler = Callable[[Tensor, Tensor, Tensor], Tensor]


def centres() -> Tensor:
    """(1, N, L, 2): every token's own place, on all levels."""
    grids = []
    for h, w in SHAPES:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        grids.append(torch.stack((x, y), -1).flatten(0, 1))
    return torch.cat(grids)[None, :, None].expand(-1, -1, LEVELS, -1)


def sampler_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations some cells around every token, weights; each wants a gradient."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, NUM_TOKENS, HEADS, WIDTH // HEADS, generator=generator)
    offsets = 2 * torch.randn(1, NUM_TOKENS, HEADS, LEVELS, POINTS, 2, generator=generator)
    sizes = torch.tensor([(w, h) for h, w in SHAPES])
    locations = centres()[:, :, None, :, None] + offsets / sizes[:, None]
    weights = torch.randn(1, NUM_TOKENS, HEADS, LEVELS * POINTS, generator=generator).softmax(-1)
    leaves = value, locations, weights.unflatten(-1, (LEVELS, POINTS))
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves


def ours(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return sample_and_sum(value, SHAPES, locations, weights)


def theirs() -> Sampler:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module, shapes = MultiScaleDeformableAttention(), torch.tensor(SHAPES)
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), shapes.prod(1).cumsum(0)[:-1]))
    return lambda value, locations, weights: module(value, shapes, list(SHAPES), starts, locations, weights, 64)


def seconds(sample: Sampler, leaves: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Of a forward pass without gradients, and of a forward and backward pass."""
    began = time.perf_counter()
    with torch.no_grad():
        out = sample(*leaves)
    middle = time.perf_counter()
    torch.autograd.grad(sample(*leaves), leaves, out)
    return middle - began, time.perf_counter() - middle


def print_seconds(repeats: int) -> None:
    leaves, samplers = sampler_inputs(), {"opendetr": ours, "transformers": theirs()}
    with torch.no_grad():
        one, other = (sample(*leaves) for sample in samplers.values())
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in samplers}
    for repeat in range(repeats + 1):
        for name, sample in samplers.items():
            taken = seconds(sample, leaves)
            if repeat:  # the first one warms up
                times[name].append(taken)
    for index, what in enumerate(("forward", "forward and backward")):
        row = {name: statistics.median(taken[index] for taken in times[name]) for name in samplers}
        ratio = statistics.median(b[index] / a[index] for a, b in zip(*times.values(), strict=True))
        print(f"{what:22}" + "".join(f"{name} {value:.3f} s   " for name, value in row.items()) + f"{ratio:.2f} x")


def resident_bytes(field: str) -> int:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_bytes(mode: str, num_threads: int) -> int:
    """What one pass of the module takes beyond its inputs; `mode` is "inference" or "training"."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    module = DeformableAttention(WIDTH, HEADS, LEVELS, POINTS)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
    training = mode == "training"
    query, memory = (torch.randn(1, NUM_TOKENS, WIDTH).requires_grad_(training) for _ in range(2))
    reference, gradient = centres().contiguous(), torch.randn(1, NUM_TOKENS, WIDTH)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes("VmRSS")
    with torch.set_grad_enabled(training):
        out = module(query, reference, memory, SHAPES)
    if training:
        out.backward(gradient)
    return resident_bytes("VmHWM") - before


def print_memory() -> None:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "262144"
    for mode, bar in BARS.items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            peak = fresh.submit(peak_bytes, mode, torch.get_num_threads()).result()
        print(f"{mode:22}{peak / 2**20:.0f} MiB above the inputs   {peak / NUM_BYTES:.2f} x   expected at most {bar} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{NUM_TOKENS} tokens, {NUM_BYTES / 2**20:.0f} MiB of value, locations, weights and output")
    print_memory()
    print_seconds(options.repeats)


if __name__ == "__main__":
    main()
