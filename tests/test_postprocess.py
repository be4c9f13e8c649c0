"""Detections in original pixels: the published numbers, and what reaches the public."""

from pathlib import Path

import numpy as np
import pytest
import torch

from opendetr.categories import Categories, coco_categories
from opendetr.postprocess import detect
from opendetr.scoring import SoftmaxNoObject
from opendetr.structures import Predictions

GOLDENS = Path(__file__).parent / "goldens" / "detr"
ORIGINAL_SIZES = torch.tensor([[480, 640], [333, 500], [640, 427]])
PETS = Categories(("cat", "N/A", "dog"), (1, 2, 3), used=(True, False, True))


def pets(scores: list[tuple[float, float, float]], boxes: list[tuple[float, ...]] | None = None) -> Predictions:
    """Predictions for one image with the given probabilities of the three classes."""
    known = torch.tensor(scores)
    logits = torch.cat((known, 1 - known.sum(-1, keepdim=True)), -1).log()
    logits = logits.clamp(min=-200.0)  # finite, and still 0 as a probability
    centred = torch.tensor(boxes or [(0.5, 0.5, 0.2, 0.4)] * len(scores))
    return Predictions(logits[None], centred[None], SoftmaxNoObject())


def test_golden_post_processing():
    golden = np.load(GOLDENS / "criterion_synthetic.npz")
    predictions = Predictions(torch.tensor(golden["logits"]), torch.tensor(golden["boxes"]), SoftmaxNoObject())
    found = detect(predictions, ORIGINAL_SIZES, coco_categories(), raw=True)
    assert [detections.size for detections in found] == [(480, 640), (333, 500), (640, 427)]
    unused = 0
    for index, detections in enumerate(found):
        np.testing.assert_array_equal(detections.labels, golden[f"post{index}_labels"])
        np.testing.assert_allclose(detections.scores, golden[f"post{index}_scores"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(detections.boxes, golden[f"post{index}_boxes"], rtol=1e-5, atol=1e-3)
        unused += sum(not coco_categories().used[label] for label in detections.labels.tolist())
    assert unused  # the published rule does emit labels that no image uses
    public = detect(predictions, ORIGINAL_SIZES, coco_categories())
    assert sum(map(len, public)) == sum(map(len, found)) - unused


def test_the_public_gets_used_categories_best_first():
    predictions = pets([(0.3, 0.1, 0.2), (0.1, 0.8, 0.05), (0.1, 0.1, 0.6)])
    (detections,) = detect(predictions, torch.tensor([[100, 200]]), PETS)
    assert detections.names == ["dog", "cat"]
    assert detections.scores.tolist() == pytest.approx([0.6, 0.3])
    (raw,) = detect(predictions, torch.tensor([[100, 200]]), PETS, raw=True)
    assert raw.names == ["cat", "N/A", "dog"]


def test_a_box_goes_with_its_query_and_is_not_clipped():
    boxes = [(0.5, 0.5, 0.2, 0.4), (0.1, 0.9, 0.4, 0.4)]
    (detections,) = detect(pets([(0.2, 0, 0.1), (0.1, 0, 0.7)], boxes), torch.tensor([[100, 200]]), PETS)
    torch.testing.assert_close(detections.boxes, torch.tensor([[-20.0, 70, 60, 110], [80.0, 30, 120, 70]]))


def test_top_k_and_min_score_leave_detections_out():
    predictions = pets([(0.3, 0.0, 0.2), (0.25, 0.1, 0.05), (0.1, 0.1, 0.6)])
    sizes = torch.tensor([[10, 10]])
    assert detect(predictions, sizes, PETS, top_k=2)[0].scores.tolist() == pytest.approx([0.6, 0.3])
    assert detect(predictions, sizes, PETS, min_score=0.28)[0].names == ["dog", "cat"]
    assert len(detect(predictions, sizes, PETS, min_score=0.9)[0]) == 0


def test_half_precision_is_scored_in_single():
    single = pets([(0.3, 0.0, 0.2), (0.25, 0.1, 0.05)])
    half = Predictions(single.logits.bfloat16(), single.boxes.bfloat16(), single.scoring)
    (detections,) = detect(half, torch.tensor([[100, 200]]), PETS)
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32


def test_what_scores_nothing_is_not_emitted():
    unsure = pets([(0.3, 0.0, 0.2), (0.1, 0.1, 0.6)])
    strict = Predictions(unsure.logits, unsure.boxes, SoftmaxNoObject(strict=True))
    assert detect(strict, torch.tensor([[10, 10]]), PETS)[0].names == ["dog"]
    assert detect(unsure, torch.tensor([[10, 10]]), PETS)[0].names == ["dog", "cat"]


def test_no_gradient_is_kept():
    predictions = pets([(0.3, 0.0, 0.2)])
    tracked = Predictions(predictions.logits.requires_grad_(), predictions.boxes, predictions.scoring)
    assert not detect(tracked, torch.tensor([[100, 200]]), PETS)[0].scores.requires_grad


def test_wrong_input_is_named():
    predictions = pets([(0.3, 0.0, 0.4)])
    with pytest.raises(ValueError, match=r"sizes of \(1, 2\), got \(2,\)"):
        detect(predictions, torch.tensor([10, 10]), PETS)
    with pytest.raises(ValueError, match="predicts label 2, but there are 2 categories"):
        detect(predictions, torch.tensor([[10, 10]]), Categories.from_names(["cat", "dog"]))
