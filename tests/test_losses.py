"""Loss terms and dense supervision: golden values, brute force, edges."""

from __future__ import annotations

import math

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


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def focal_by_hand(logit: float, is_class: bool) -> float:
    p = sigmoid(logit)
    return -0.25 * (1 - p) ** 2 * math.log(p) if is_class else -0.75 * p**2 * math.log(1 - p)


def giou_by_hand(one: list[float], other: list[float]) -> float:
    """Of two boxes cx, cy, w, h."""
    (ax0, ax1), (ay0, ay1) = ((one[i] - one[i + 2] / 2, one[i] + one[i + 2] / 2) for i in (0, 1))
    (bx0, bx1), (by0, by1) = ((other[i] - other[i + 2] / 2, other[i] + other[i + 2] / 2) for i in (0, 1))
    overlap = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = one[2] * one[3] + other[2] * other[3] - overlap
    around = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return overlap / union - (around - union) / around


# Rows of the memory, as objects of the image; `reach` decides whether the first object has one cell of a row or three.
CELLS = {
    0.9: (((-1, -1, -1, -1), (0, 0, 0, 1), (-1, -1, -1, 1)), ((0, 0, 0, -1), (-1, -1, -1, -1), (-1, -1, -1, -1))),
    0.4: (((-1, -1, -1, -1), (-1, 0, -1, 1), (-1, -1, -1, -1)), ((-1, 0, -1, -1), (-1, -1, -1, -1), (-1, -1, -1, -1))),
}


@pytest.mark.parametrize("reach", CELLS)
def test_dense_loss_by_hand(reach):
    """The heads hand on what lies in the memory, of 3 rows and 4 columns; the second image has 2 rows and 3 columns."""
    labels = ((2, 0), (1,))
    boxes = (([0.4, 0.5, 0.7, 0.5], [0.875, 0.55, 0.2, 0.7]), ([0.5, 0.3, 0.9, 0.3],))
    memory = torch.rand(2, 4, 3, 4, generator=torch.Generator().manual_seed(0))  # positive, so that no ReLU cuts it
    padding = torch.zeros(2, 3, 4, dtype=torch.bool)
    padding[1, 2:] = padding[1, :, 3:] = True
    config = DenseConfig(weight=3.0, class_weight=0.7, l1_weight=1.3, giou_weight=2.1, reach=reach)
    dense = DenseSupervision(config, 4, 3)
    with torch.no_grad():
        for layer in dense.box_head.layers:
            layer.weight.copy_(torch.eye(4))
            layer.bias.zero_()
        dense.class_head.weight.copy_(torch.eye(3, 4))
        dense.class_head.bias.copy_(torch.tensor([0.5, -1.0, -2.0]))
        targets = [target(torch.tensor(a), torch.tensor(b)) for a, b in zip(labels, boxes, strict=True)]
        loss = dense.loss(FeatureMap(memory, padding), targets, 2.0).item()

    expected = 0.0
    for image, cells in enumerate(CELLS[reach]):
        counts = [sum(row.count(index) for row in cells) for index in range(2)]
        for row, column in [(row, column) for row in range(3) for column in range(4)]:
            values, index = memory[image, :, row, column].tolist(), cells[row][column]
            logits = [value + bias for value, bias in zip(values[:3], (0.5, -1.0, -2.0), strict=True)]
            expected += 0.7 * sum(
                focal_by_hand(x, index >= 0 and label == labels[image][index]) for label, x in enumerate(logits)
            )
            if index >= 0:
                box, wanted = [sigmoid(value) for value in values], boxes[image][index]
                l1 = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
                expected += (1.3 * l1 + 2.1 * (1 - giou_by_hand(box, wanted))) / counts[index]
    assert loss == pytest.approx(3.0 * expected / 2.0, rel=1e-5)
