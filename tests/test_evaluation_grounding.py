"""The evaluator of grounding: the numbers of the original, and what counts as a hit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caption_files import box, caption, read, write
from opendetr.data import DataError, DetectionData
from opendetr.evaluation import (
    GROUNDING_METRICS,
    GroundingEvaluator,
    GroundingResult,
    describe_metric,
    grounding_metrics,
)
from opendetr.evaluation.grounding import entities_phrases, expression_hits, flickr_recall
from opendetr.presets import get_preset
from opendetr.structures import Batch, CaptionBatch, ImageBatch, Target, Tokens

GOLDEN = json.loads((Path(__file__).parent / "goldens/mdetr/refexp_flickr_eval.json").read_text())


def batch_of(data: DetectionData, answers: Sequence[dict[str, int] | None] | None = None) -> Batch:
    """A batch with a target for each image; the evaluator reads nothing else of it."""
    given = answers or [None] * len(data)
    targets = tuple(
        Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (40, 60), (40, 60), image.id, answers=own)
        for image, own in zip(data.images, given, strict=True)
    )
    images = ImageBatch(torch.zeros(len(data), 3, 4, 4), None, torch.full((len(data), 2), 4))
    return Batch(images, targets)


def found(boxes: Any, scores: Any = None, **further: Any) -> GroundingResult:
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    scores = torch.linspace(0.9, 0.1, len(boxes)) if scores is None else torch.tensor(scores)
    return GroundingResult(scores=scores, boxes=boxes, **further)


# -------------------------------------------------------------------------------------------------------------- golden


def test_expressions_as_in_the_original(tmp_path: Path) -> None:
    images = GOLDEN["images"]
    captions = [
        caption("a dog", box(each["gt_bbox_xywh"], tokens_positive=[[2, 5]]), dataset_name=each["dataset_name"],
                height=1000, width=1000)
        for each in images
    ]  # fmt: skip
    data = read(write(tmp_path, *captions))
    evaluator = GroundingEvaluator(data)
    evaluator.update(batch_of(data), [found(each["boxes_xyxy"], each["scores"]) for each in images])
    metrics = evaluator.compute()
    for dataset, expected in GOLDEN["result_precision_at_1_5_10"].items():
        assert [metrics[f"P@{k}_giou/{dataset}"] for k in (1, 5, 10)] == pytest.approx(expected)


def test_iou_and_giou_differ() -> None:
    """The golden has a best box with IoU 0.535 and generalised IoU 0.495."""
    near = next(each for each in GOLDEN["images"] if 0.49 < each["giou_with_rank_box"] < 0.5)
    x, y, w, h = near["gt_bbox_xywh"]
    hits, as_published = expression_hits(
        torch.tensor(near["scores"]), torch.tensor(near["boxes_xyxy"]), torch.tensor([x, y, x + w, y + h])
    )
    assert (hits[0], as_published[0]) == (True, False)


def test_flickr_recall_as_in_the_original() -> None:
    flickr = GOLDEN["flickr"]
    predictions = {(str(each["image_id"]), each["sentence_id"]): each["boxes"] for each in flickr["predictions"]}
    metrics = flickr_recall(flickr["sentences"], flickr["boxes"], predictions)
    for prefix, expected in (("", "result_any_box"), ("merged_", "result_merged_box")):
        for name, value in flickr[expected].items():
            rank, _, type_ = name.replace("Upper_bound", "Recall@all").removeprefix("Recall@").partition("_")
            ours = f"{prefix}R@{rank}" + ("" if type_ == "all" else f"/{type_}")
            assert metrics[ours] == pytest.approx(value), name
    assert len(metrics) == 2 * len(flickr["result_any_box"])


def test_missing_predictions_of_a_sentence() -> None:
    flickr = GOLDEN["flickr"]
    with pytest.raises(DataError, match="image 101, sentence 0: 2 phrases, but predictions of 0"):
        flickr_recall(flickr["sentences"], flickr["boxes"], {})


def test_annotated_sentences() -> None:
    (sentence, *_), _ = GOLDEN["flickr"]["sentences"].values()
    assert entities_phrases(sentence) == [("1", ("people",)), ("2", ("other",)), ("3", ("scene",))]
    assert entities_phrases("nothing here") == []


# ------------------------------------------------------------------------------------------------------------- datasets


def test_expressions_by_kind_and_dataset(tmp_path: Path) -> None:
    kinds = ("attribute", "relational", "relational")
    boxes = box(tokens_positive=[[2, 5]])
    data = read(write(tmp_path, *(caption("a dog", boxes, expression_kind=kind) for kind in kinds)))
    evaluator = GroundingEvaluator(data)
    right, wrong = [2, 5, 22, 35], [40, 5, 50, 35]
    evaluator.update(batch_of(data), [found(right), found([wrong, right]), found([wrong] * 5 + [right])])
    metrics = evaluator.compute()
    assert (metrics["P@1"], metrics["P@5"], metrics["P@10"]) == pytest.approx((1 / 3, 2 / 3, 1))
    assert (metrics["P@1/attribute"], metrics["P@1/relational"], metrics["P@5/relational"]) == (1, 0, 0.5)
    assert "R@1" not in metrics
    best = evaluator.evaluation().results
    assert best[0]["bbox"] == [2, 5, 20, 30]
    assert [row["image_id"] for row in best] == [0, 1, 2]


def test_phrases_with_several_boxes(tmp_path: Path) -> None:
    """Any box counts, and so does the box around all of them in the other metric."""
    text = "two dogs and a cat"
    dogs = [box([0, 0, 20, 20], tokens_positive=[[4, 8]]), box([40, 0, 20, 20], tokens_positive=[[4, 8]])]
    cat = box([20, 20, 10, 10], tokens_positive=[[15, 18]])
    evaluated = [[[4, 8]], [[15, 18]], [[9, 12]]]
    data = read(write(tmp_path, caption(text, *dogs, cat, tokens_positive_eval=evaluated), caption(text, *dogs, cat)))
    evaluator = GroundingEvaluator(data)
    any_dog, both, nothing = [40.0, 0, 60, 20], [0.0, 0, 60, 20], [0.0, 30, 5, 40]
    phrases = torch.tensor([any_dog, nothing]), torch.tensor([nothing, [20.0, 20, 30, 30]])
    merged = torch.tensor([both, nothing]), torch.tensor([nothing, nothing])
    evaluator.update(batch_of(data), [found(nothing, phrases=phrases), found(nothing, phrases=merged)])
    metrics = evaluator.compute()
    assert (metrics["R@1"], metrics["R@5"]) == (0.25, 0.5)
    assert (metrics["merged_R@1"], metrics["merged_R@5"]) == (0.25, 0.5)
    assert "P@1" not in metrics


def test_answers_by_type(tmp_path: Path) -> None:
    asked = [("count", "2"), ("count", "2"), ("count", "3"), ("colour", "red"), ("colour", "blue")]
    data = read(
        write(tmp_path, *(caption("what?", question_type=type_, answer=answer) for type_, answer in asked),
              caption("a dog", box(tokens_positive=[[2, 5]])))
    )  # fmt: skip
    truths = [{"type": 2, "reg": 2}, {"type": 2, "reg": 2}, {"type": 2, "reg": 3}, {"type": 1, "attr": 0},
              {"type": 1, "attr": 4}, None]  # fmt: skip
    outputs: list[dict[str, int]] = [
        {"type": 2, "reg": 2, "attr": 9}, {"type": 1, "reg": 2, "attr": 9}, {"type": 2, "reg": 3, "attr": 9},
        {"type": 1, "reg": 0, "attr": 0}, {"type": 1, "reg": 0, "attr": 3}, {},
    ]  # fmt: skip
    evaluator = GroundingEvaluator(data)
    evaluator.update(batch_of(data, truths), [found([0, 0, 1, 1], answer=output) for output in outputs])
    metrics = evaluator.compute()
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert (metrics["accuracy/count"], metrics["accuracy/colour"]) == pytest.approx((2 / 3, 1 / 2))
    assert (metrics["majority/count"], metrics["majority/colour"]) == pytest.approx((2 / 3, 1 / 2))
    assert metrics["majority"] == pytest.approx(3 / 5)
    assert metrics["P@1"] == 0


def test_a_model_without_answers_is_not_asked(tmp_path: Path) -> None:
    asked = caption("why?", question_type="why", answer="yes")
    data = read(write(tmp_path, caption("a dog", box(tokens_positive=[[2, 5]])), asked))
    evaluator = GroundingEvaluator(data, answers=False)
    evaluator.update(batch_of(data), [found([2, 5, 22, 35]), found([0, 0, 1, 1])])
    names = set(evaluator.compute())
    assert "P@1" in names
    assert {"accuracy", "majority"}.isdisjoint(names)
    assert names == set(grounding_metrics(data, answers=False)) == set(get_preset("mdetr-tiny").metrics(data))
    only = replace(data, images=data.images[1:])
    for evaluate in (GroundingEvaluator, grounding_metrics):
        with pytest.raises(DataError, match="the split 'train' has only questions, and the model answers none"):
            evaluate(only, answers=False)


def test_masks_of_phrases(tmp_path: Path) -> None:
    square = [[0, 0, 20, 0, 20, 20, 0, 20]]
    boxes = box([0, 0, 20, 20], tokens_positive=[[2, 5]], segmentation=square)
    data = replace(read(write(tmp_path, caption("a dog", boxes), caption("a dog", boxes))), masks="instances")
    half = torch.zeros(40, 60, dtype=torch.bool)
    half[:20, :10] = True
    evaluator = GroundingEvaluator(data, has_masks=True)
    evaluator.update(
        batch_of(data), [found([0, 0, 20, 20], mask=half), found([0, 0, 20, 20], mask=torch.zeros_like(half))]
    )
    assert evaluator.compute()["mask_IoU"] == 0.25
    assert evaluator.compute()["mask_P@0.5"] == 0.5
    assert evaluator.compute()["mask_cumulative_IoU"] == 0.25


def test_unreadable_images_count_as_missed(tmp_path: Path) -> None:
    boxes = box(tokens_positive=[[2, 5]])
    data = read(write(tmp_path, caption("a dog", boxes), caption("a dog", boxes), caption("why?", answer="yes")))
    evaluator = GroundingEvaluator(data)
    first = replace(data, images=data.images[:1])
    evaluator.update(batch_of(first), [found([2, 5, 22, 35])])
    evaluator.leave_out([1, 2])
    evaluator.gather()
    metrics = evaluator.evaluation(0.1, ["1.png: broken"]).metrics
    assert (metrics["P@1"], metrics["P@10"], metrics["accuracy"]) == (0.5, 0.5, 0)


def test_names_of_metrics(tmp_path: Path) -> None:
    """The names that a run expects are those that the evaluator computes, and each has a description."""
    boxes = box([0, 0, 20, 20], tokens_positive=[[2, 5]], segmentation=[[0, 0, 20, 0, 20, 20]])
    asked = caption("why?", question_type="why", answer="yes")
    named = caption("a dog", boxes, tokens_positive_eval=[[[2, 5]]])
    data = replace(read(write(tmp_path, caption("a dog", boxes), asked, named)), masks="instances")
    evaluator = GroundingEvaluator(data, has_masks=True)
    phrases = (torch.tensor([[2.0, 5, 22, 35]]),)
    results = [found([2, 5, 22, 35]), found([0, 0, 1, 1]), found([2, 5, 22, 35], phrases=phrases)]
    evaluator.update(batch_of(data, [None, {"type": 0}, None]), results)
    computed = evaluator.compute()
    assert set(grounding_metrics(data, has_masks=True)) == {name for name in computed if "/" not in name}
    assert set(grounding_metrics(data, has_masks=True)) == set(GROUNDING_METRICS)
    assert all(map(describe_metric, computed))
    assert describe_metric("accuracy/count") == "questions with the right answer; only those of type count"
    assert not describe_metric("AP/count") and not describe_metric("P@2/count")
    preset = get_preset("mdetr-tiny")
    preset = replace(preset, model=replace(preset.model, questions="scenes"))
    assert preset.metrics(data)[0] == "P@1"
    assert preset.headlines(data) == ("P@1", "R@1", "accuracy")
    assert [row[0] for row in evaluator.evaluation().tables()[0]] == list(computed)


def test_data_without_captions(tmp_path: Path) -> None:
    data = read(write(tmp_path, caption("a dog", box(tokens_positive=[[2, 5]]))))
    plain = replace(data, images=tuple(replace(image, extras={}) for image in data.images))
    with pytest.raises(DataError, match="the split 'train' has no captions; this model needs them"):
        GroundingEvaluator(plain)


def test_results_of_an_output(tmp_path: Path) -> None:
    """Scores, boxes in pixels, phrases ranked by their most probable token, and the best answers."""
    from opendetr.scoring import SoftmaxNoObject
    from opendetr.structures import GroundingOutput, Predictions

    text = "a dog and a cat"
    boxes = box(tokens_positive=[[2, 5]]), box([30, 5, 20, 30], tokens_positive=[[12, 15]])
    data = read(write(tmp_path, caption(text, *boxes)))
    tokens: Tokens = get_preset("mdetr-tiny").data.tokenize([text])
    plain = batch_of(data)
    batch = CaptionBatch(plain.images, plain.targets, captions=(text,), tokens=tokens)
    logits = torch.zeros(1, 3, 256)
    logits[0, 0, 2] = logits[0, 1, 5] = logits[0, 2, 255] = 20.0  # dog, cat, no object
    logits[0, 0, 2] = 9.0
    corners = torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]])
    output = GroundingOutput(
        (Predictions(logits, corners, SoftmaxNoObject()),), torch.zeros(1, 1, 3, 8), (), (),
        tokens=tokens, answers={"type": torch.tensor([[0.0, 2.0, 1.0]]), "binary": torch.tensor([-1.0])},
    )  # fmt: skip
    (result,) = GroundingEvaluator(data).results(output, batch.images, batch)
    assert result.boxes[0].tolist() == [0, 0, 30, 40]
    assert result.scores.tolist() == pytest.approx([1, 1, 0], abs=0.04)
    first: list[Tensor] = [ranked[0] for ranked in result.phrases]
    assert [one.tolist() for one in first] == [[0, 0, 30, 40], [30, 0, 60, 40]]
    assert result.answer == {"type": 1, "binary": 0}
