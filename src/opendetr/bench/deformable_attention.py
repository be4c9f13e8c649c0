"""Deformable attention in an encoder layer at the sizes of an 800x1066 image, compared with transformers.

Time is compared with the loop over levels with `grid_sample` in transformers. Memory is the growth of a fresh process
over its inputs while the whole module computes. It is compared with the bytes of value, sampling locations, attention
weights and output. It is read from /proc, so this benchmark needs Linux.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from opendetr.bench.figure import Figure
from opendetr.bench.measuring import in_fresh_process, interleaved, peak_bytes_above
from opendetr.nn import DeformableAttention, sample_and_sum

SHAPES = ((100, 134), (50, 67), (25, 34), (13, 17))
NUM_TOKENS = sum(h * w for h, w in SHAPES)
WIDTH, HEADS, LEVELS, POINTS = 256, 8, len(SHAPES), 4
NUM_BYTES = 4 * NUM_TOKENS * (WIDTH + HEADS * LEVELS * POINTS * 3 + WIDTH)
MOST_MEMORY = {"inference": 2, "training": 4}  # times the bytes of the inputs

Sampler = Callable[[Tensor, Tensor, Tensor], Tensor]


def _centres() -> Tensor:
    """(1, N, L, 2): the centre of every token, in 0..1, on all levels."""
    grids = []
    for h, w in SHAPES:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        grids.append(torch.stack((x, y), -1).flatten(0, 1))
    return torch.cat(grids)[None, :, None].expand(-1, -1, LEVELS, -1)


def _sampler_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Value, sampling locations a few cells around every token, attention weights; each requires a gradient."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, NUM_TOKENS, HEADS, WIDTH // HEADS, generator=generator)
    offsets = 2 * torch.randn(1, NUM_TOKENS, HEADS, LEVELS, POINTS, 2, generator=generator)
    sizes = torch.tensor([(w, h) for h, w in SHAPES])
    locations = _centres()[:, :, None, :, None] + offsets / sizes[:, None]
    weights = torch.randn(1, NUM_TOKENS, HEADS, LEVELS * POINTS, generator=generator).softmax(-1)
    leaves = value, locations, weights.unflatten(-1, (LEVELS, POINTS))
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves


def _ours(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return sample_and_sum(value, SHAPES, locations, weights)


def _theirs() -> Sampler:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module, shapes = MultiScaleDeformableAttention(), torch.tensor(SHAPES)
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), shapes.prod(1).cumsum(0)[:-1]))
    return lambda value, locations, weights: module(value, shapes, list(SHAPES), starts, locations, weights, 64)


def measure(repeats: int) -> Iterator[Figure]:
    """Yield memory, then seconds."""
    for mode, most in MOST_MEMORY.items():
        peak = in_fresh_process(_peak_bytes, mode, torch.get_num_threads())
        yield Figure.of_bytes(f"memory, {mode}", peak, "its inputs and output", NUM_BYTES, 1 / most)
    leaves, samplers = _sampler_inputs(), {"opendetr": _ours, "transformers": _theirs()}
    with torch.no_grad():
        one, other = (sample(*leaves) for sample in samplers.values())
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)

    def forward(sample: Sampler) -> None:
        with torch.no_grad():
            sample(*leaves)

    def forward_and_backward(sample: Sampler) -> None:
        torch.autograd.grad(sample(*leaves), leaves, one)

    for label, work in (("forward", forward), ("forward and backward", forward_and_backward)):
        seconds = interleaved({name: partial(work, sample) for name, sample in samplers.items()}, repeats)
        yield Figure.of_seconds(label, seconds, expected=1.5)


def _peak_bytes(mode: str, num_threads: int) -> int:
    """The bytes that one pass of the module allocates beyond its inputs; `mode` is "inference" or "training"."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    module = DeformableAttention(WIDTH, HEADS, LEVELS, POINTS)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
    training = mode == "training"
    query, memory = (torch.randn(1, NUM_TOKENS, WIDTH).requires_grad_(training) for _ in range(2))
    reference, gradient = _centres().contiguous(), torch.randn(1, NUM_TOKENS, WIDTH)

    def work() -> Tensor:
        with torch.set_grad_enabled(training):
            out = module(query, reference, memory, SHAPES)
        if training:
            out.backward(gradient)
        return out

    return peak_bytes_above(work)
