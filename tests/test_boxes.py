"""Box operations against the golden values, and their behaviour where the original has none."""

from __future__ import annotations

import torch

from golden import Golden
from opendetr import boxes

GOLDEN = Golden("detr/box_ops").arrays


def test_formats():
    assert torch.allclose(boxes.cxcywh_to_xyxy(GOLDEN["a_cxcywh"]), GOLDEN["a_xyxy"], atol=1e-6)
    assert torch.allclose(boxes.xyxy_to_cxcywh(GOLDEN["a_xyxy"]), GOLDEN["a_roundtrip"], atol=1e-6)


def test_iou_giou_matrices():
    a, b = GOLDEN["a_xyxy"][:, None], GOLDEN["b_xyxy"]
    overlap, union = boxes.iou_and_union(a, b)
    generalised = boxes.giou(a, b)
    assert torch.allclose(union, GOLDEN["union"], atol=1e-5)
    for ours, published in ((overlap, GOLDEN["iou"]), (generalised, GOLDEN["giou"])):
        defined = published.isfinite()
        assert torch.allclose(ours[defined], published[defined], atol=1e-5)
        assert ours.isfinite().all()  # the original gives NaN for two boxes without area in one place


def test_giou_gradient_is_finite_for_degenerate_boxes():
    degenerate = torch.tensor(
        [[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.0, 0.3], [0.5, 0.5, 1.0, 1.0], [0.1, 0.1, 1e-30, 1e-30]], requires_grad=True
    )
    corners = boxes.cxcywh_to_xyxy(degenerate)
    boxes.giou(corners[:, None], corners).sum().backward()
    assert degenerate.grad.isfinite().all()


def test_inverted_boxes_have_no_area():
    inverted = torch.tensor([[0.6, 0.6, 0.2, 0.2]])
    assert boxes.box_area(inverted).item() == 0
    assert boxes.giou(inverted, torch.tensor([[0.0, 0.0, 1.0, 1.0]])).isfinite().all()
