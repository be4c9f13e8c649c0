"""Loss terms and dense supervision: golden values, brute force, edges."""

from __future__ import annotations

import pytest
import torch

from golden import Golden, target
from opendetr.losses.class_terms import sigmoid_focal
from opendetr.losses.dense import DenseConfig, DenseSupervision, assign_cells
from opendetr.structures import FeatureMap


def test_focal_golden():
    arrays = Golden("detr/box_ops").arrays
    logits = arrays["mask_logits"].clone().requires_grad_()
    loss = sigmoid_focal(logits, arrays["mask_targets"]).mean(1).sum() / 3
    loss.backward()
    assert loss.item() == pytest.approx(arrays["focal"].item(), rel=1e-5)
    assert torch.allclose(logits.grad, arrays["focal_grad"], atol=1e-6)


def test_cells_go_to_the_smallest_object_and_none_is_left_out():
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.3, 0.3, 0.4, 0.4], [0.95, 0.05, 0.01, 0.01]])
    cells = assign_cells(boxes, 8, 8, (8, 8), reach=0.6).view(8, 8)
    for row in range(8):
        for column in range(8):
            x, y = (column + 0.5) / 8, (row + 0.5) / 8
            inside = [
                (w * h, index)
                for index, (cx, cy, w, h) in enumerate(boxes.tolist())
                if abs(x - cx) <= max(0.3 * w, 1 / 16) and abs(y - cy) <= max(0.3 * h, 1 / 16)
            ]
            assert cells[row, column].item() == (min(inside)[1] if inside else -1)
    assert cells[0, 7].item() == 2


def test_padding_changes_no_assignment():
    boxes = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.2
    alone = assign_cells(boxes, 6, 5, (6, 5), reach=0.6).view(6, 5)
    padded = assign_cells(boxes, 9, 8, (6, 5), reach=0.6).view(9, 8)
    assert torch.equal(padded[:6, :5], alone)
    assert (padded[6:] == -1).all() and (padded[:, 5:] == -1).all()


@pytest.mark.parametrize("count", [0, 3])
def test_dense_loss_is_finite_and_reaches_the_memory(count):
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(2, 16, 4, 5, generator=generator).requires_grad_()
    truth = target(torch.arange(count), torch.rand(count, 4, generator=generator) * 0.3 + 0.3)
    empty = target(torch.zeros(0), torch.zeros(0, 4))
    dense = DenseSupervision(DenseConfig(weight=1.0), 16, 4)
    loss = dense.loss(FeatureMap(memory), [truth, empty], 1.0)
    loss.backward()
    assert loss.isfinite() and memory.grad.abs().sum() > 0
