"""The backbone where its kernels are at their limits."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from opendetr.nn.backbone import _convolve
from opendetr.presets import build_model, miniature
from opendetr.structures import ImageBatch
from opendetr.training.train_step import keep_freed_memory

bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
def test_narrow_maps_are_convolved_in_float32(width, norm):
    """Wider ones in bfloat16, which has three digits."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 128, 3, stride=2, padding=1)
    x = torch.randn(2, 64, 7, width)
    layer = norm(128) if norm is nn.BatchNorm2d else norm()
    with torch.no_grad():
        expected = _convolve(convolution, layer, x)
        with bfloat16():
            found = _convolve(convolution, layer, x)
    error = (found.float() - expected).abs().max().item()
    assert (error < 1e-6) == (width < 3)
    assert error < 0.1


def test_nothing_beyond_a_narrow_map_gets_into_it():
    """Freed memory that holds no numbers is what the next arrays are made of."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = build_model(miniature("deformable-detr-tiny"), 3).train()
    images = ImageBatch.from_images([torch.randn(3, 101, 59), torch.randn(3, 90, 30)])
    for _ in range(5):
        junk = [torch.full((size,), torch.nan) for size in (100, 1000, 10_000, 100_000) for _ in range(8)]
        del junk
        with bfloat16():
            final = model(images).final
        (final.logits.square().mean() + final.boxes.square().mean()).backward()
        assert final.logits.isfinite().all()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
