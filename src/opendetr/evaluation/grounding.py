"""Evaluate detection guided by text: referring expressions, phrases of captions, their masks, and questions.

Shape letters: Q queries, T tokens, n true boxes, H W original image.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opendetr.boxes import giou, iou
from opendetr.data import CAPTION, SPANS, DataError, DetectionData, ImageRecord, known_masks, require_captions
from opendetr.distributed import gather
from opendetr.postprocess import boxes_in_pixels, image_masks, phrase_scores, published_masks, referred_scores
from opendetr.structures import Batch, CaptionBatch, GroundingOutput, ImageBatch, Output

RANKS = (1, 5, 10)
"""The numbers of best boxes that may contain a hit."""
MASK_IOUS = (0.5, 0.7, 0.9)
"""The thresholds of IoU that PhraseCut's precision is reported at."""
_HITS = "IoU 0.5 or more"
GROUNDING_METRICS: Mapping[str, str] = {
    **{f"P@{k}": f"expressions with {_HITS} among the {k} best boxes" for k in RANKS},
    **{f"P@{k}_giou": f"expressions with generalised {_HITS}, as published, {k} best" for k in RANKS},
    **{f"R@{k}": f"phrases with {_HITS} with any of their boxes, {k} best" for k in (*RANKS, "all")},
    **{f"merged_R@{k}": f"phrases with {_HITS} with the box around all, {k} best" for k in (*RANKS, "all")},
    "mask_IoU": "mean IoU of the masks of a phrase",
    "mask_cumulative_IoU": "intersections of all masks over their unions",
    **{f"mask_P@{threshold}": f"phrases with mask IoU {threshold} or more" for threshold in MASK_IOUS},
    "accuracy": "questions with the right answer",
    "majority": "questions for which the most frequent answer of their type is right",
}
"""Metrics of `GroundingEvaluator` and their descriptions. A slash and a type, as in "P@1/relational", limit a metric to
the expressions, phrases or questions of that type."""
_HIT = 0.5  # IoU
_KEPT_MASKS = 0.7  # minimum score of a query whose mask counts, as published
_PHRASE = re.compile(r"\[/EN#(?P<id>[^/\s]+)/(?P<types>\S+) (?P<words>[^\]]*)\]")


class Phrase(NamedTuple):
    """A phrase to find.

    Attributes:
        boxes: (n, 4) true boxes, xyxy in pixels; n is at least 1.
        types: the kinds of phrases that it belongs to; may be empty.
    """

    boxes: Tensor
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroundingResult:
    """The results of a model for one image and its caption.

    Attributes:
        scores: (Q,) probability that a query found an object of the caption.
        boxes: (Q, 4) xyxy in pixels of the original image.
        phrases: for each phrase to find, the boxes (Q, 4) in descending order of their score for the phrase.
        mask: (H, W) bool, all pixels that the caption names; None if masks are not evaluated.
        answer: the best output of each answer head; empty for a model without such heads.
    """

    scores: Tensor
    boxes: Tensor
    phrases: tuple[Tensor, ...] = ()
    mask: Tensor | None = None
    answer: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Found:
    """What was found in one image; None for what its annotations do not ask for.

    Attributes:
        expression: for IoU and generalised IoU, whether each of `RANKS` contains a hit.
        phrases: for each phrase its types, and for any box and the merged box whether each rank contains a hit.
        mask: pixels of the intersection and of the union.
        question: whether the answer is right.
    """

    expression: tuple[tuple[bool, ...], tuple[bool, ...]] | None = None
    phrases: tuple[tuple[tuple[str, ...], tuple[bool, ...], tuple[bool, ...]], ...] | None = None
    mask: tuple[int, int] | None = None
    question: bool | None = None


@dataclass(frozen=True)
class GroundingEvaluation:
    """The metrics of a model on a dataset with captions.

    Attributes:
        metrics: the metrics by name; see `GROUNDING_METRICS`.
        seconds_per_image: time of model and post-processing, without loading.
        results: the best box of every image and its score, as rows of a COCO results file.
        unreadable: one message per unreadable image. These images count as images without predictions.
    """

    metrics: dict[str, float | None]
    seconds_per_image: float
    results: list[dict[str, Any]]
    unreadable: tuple[str, ...]

    @property
    def named_metrics(self) -> dict[str, float | None]:
        """The metrics."""
        return self.metrics

    def tables(self) -> list[list[tuple[str | float | None, ...]]]:
        """Tables of the metrics, to be printed."""
        rows = [
            (name, value, GROUNDING_METRICS.get(name.split("/")[0], "") if "/" not in name else "")
            for name, value in self.metrics.items()
        ]
        return [list(rows)]


class GroundingEvaluator:
    """Evaluates a model that takes captions; see `Evaluator`.

    What is evaluated depends on the annotations of an image:

    - A question is answered. It has an "answer" in its extras.
    - In masks, all pixels that the caption names are compared, if the model has a mask head and the data has outlines.
    - A referring expression has one object and no "tokens_positive_eval": the best boxes are compared with its box.
    - Of other captions, the phrases in "tokens_positive_eval" are found; without it, all parts that name objects.

    Args:
        data: the ground truth.
        has_masks: whether the model has a mask head.
        answers: whether the model answers questions; if not, they are not evaluated.

    Raises:
        DataError: the data has no captions, or only questions and the model answers none.
    """

    def __init__(self, data: DetectionData, *, has_masks: bool = False, answers: bool = True) -> None:
        require_captions(data)
        _require_more_than_questions(data, answers=answers)
        self._has_answers = answers
        self._records = {image.id: image for image in data.images}
        self._category_id = data.categories.ids[0]
        self._wants_masks = has_masks and data.masks != "none"
        self._found: dict[int, _Found] = {}
        self._best: dict[int, dict[str, Any]] = {}

    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[GroundingResult]:
        """Yield the result of each image of a batch; see `Evaluator.results`."""
        assert isinstance(output, GroundingOutput) and isinstance(batch, CaptionBatch)
        scores = referred_scores(output)
        sizes = torch.tensor([target.original_size for target in batch.targets])
        boxes = boxes_in_pixels(output.final, sizes)
        masks = self._masks(output, images, sizes, scores)
        for index, target in enumerate(batch.targets):
            record = self._records[target.image_id]
            token_maps = batch.tokens.to("cpu").map_of(index, _phrase_spans(record))
            ranked = phrase_scores(output.final.logits[index], token_maps).argsort(descending=True, stable=True)
            answer = {
                name: int(logits[index] > 0) if logits.ndim == 1 else int(logits[index].argmax())
                for name, logits in output.answers.items()
            }
            yield GroundingResult(
                scores=scores[index].cpu(),
                boxes=boxes[index].cpu(),
                phrases=tuple(boxes[index, order].cpu() for order in ranked),
                mask=next(masks),
                answer=answer,
            )

    def _masks(
        self, output: GroundingOutput, images: ImageBatch, sizes: Tensor, scores: Tensor
    ) -> Iterator[Tensor | None]:
        """Yield the pixels of each image that the masks of its kept queries cover; None if masks are not evaluated."""
        if not self._wants_masks:
            yield from (None for _ in scores)
            return
        kept = [(of_image > _KEPT_MASKS).nonzero()[:, 0].cpu() for of_image in scores]
        for masks, (height, width) in zip(
            image_masks(output, images, sizes, queries=kept), sizes.tolist(), strict=True
        ):
            instances = published_masks(masks)
            yield instances.any(0) if len(instances) else torch.zeros(height, width, dtype=torch.bool)

    def update(self, batch: Batch, results: Iterable[GroundingResult]) -> None:
        """Compare the results of a batch with the ground truth."""
        for target, result in zip(batch.targets, results, strict=True):
            record = self._records[target.image_id]
            self._found[record.id] = self._compare(record, result, target.answers)
            if len(result.scores):
                best = int(result.scores.argmax())
                x0, y0, x1, y1 = result.boxes[best].tolist()
                self._best[record.id] = {
                    "image_id": record.id,
                    "category_id": self._category_id,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": float(result.scores[best]),
                }

    def _compare(self, record: ImageRecord, result: GroundingResult, answers: Mapping[str, int] | None) -> _Found:
        if is_question(record):
            return _Found(question=answer_is_right(result.answer, answers) if self._has_answers else None)
        found = _Found()
        if self._wants_masks:
            found.mask = _compare_masks(record, result.mask)
        if is_expression(record):
            found.expression = expression_hits(result.scores, result.boxes, _true_boxes(record)[0])
        phrases = true_phrases(record)
        found.phrases = tuple(
            (phrase.types, *phrase_hits(boxes, phrase.boxes))
            for phrase, boxes in zip(phrases, result.phrases, strict=True)
        )
        return found

    def leave_out(self, image_ids: Iterable[int]) -> None:
        """Count unreadable images as images without predictions."""
        for image_id in image_ids:
            record = self._records[image_id]
            phrases = tuple(torch.zeros(0, 4) for _ in _phrase_spans(record))
            nothing = GroundingResult(scores=torch.zeros(0), boxes=torch.zeros(0, 4), phrases=phrases)
            self._found[image_id] = self._compare(record, nothing, None)

    def gather(self) -> None:
        """Combine the results that all processes have collected."""
        for found, best in gather((self._found, self._best)):
            self._found |= found
            self._best |= best

    def score_thresholds(self) -> None:
        """None: the model predicts with a fixed threshold."""
        return

    def compute(self) -> dict[str, float | None]:
        """The metrics of the results collected so far."""
        values: dict[str, list[float]] = defaultdict(list)
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        areas = torch.zeros(2, dtype=torch.float64)
        datasets = {
            self._records[id_].extras.get("dataset_name") for id_, found in self._found.items() if found.expression
        }
        keys = ("dataset_name", "expression_kind") if len(datasets) > 1 else ("expression_kind",)
        for image_id, found in sorted(self._found.items()):
            extras = self._records[image_id].extras
            if found.question is not None:
                values["accuracy"].append(found.question)
                values[f"accuracy/{_question_type(extras)}"].append(found.question)
                answers[_question_type(extras)][str(extras["answer"])] += 1
            if found.expression is not None:
                parts = [extras[key] for key in keys if key in extras]
                _add_hits(values, "P@", RANKS, found.expression[0], parts)
                _add_hits(values, "P@", RANKS, found.expression[1], parts, "_giou")
            for types, hits, merged_hits in found.phrases or ():
                _add_hits(values, "R@", (*RANKS, "all"), hits, types)
                _add_hits(values, "merged_R@", (*RANKS, "all"), merged_hits, types)
            if found.mask is not None:
                ratio = found.mask[0] / max(found.mask[1], 1)
                areas += torch.tensor(found.mask, dtype=torch.float64)
                values["mask_IoU"].append(ratio)
                for threshold in MASK_IOUS:
                    values[f"mask_P@{threshold}"].append(ratio >= threshold)
        metrics: dict[str, float | None] = {name: fmean(numbers) for name, numbers in values.items()}
        if values["mask_IoU"]:
            metrics["mask_cumulative_IoU"] = float(areas[0] / areas[1].clamp(min=1))
        if answers:
            counts = {type_: max(of_type.values()) for type_, of_type in answers.items()}
            metrics["majority"] = sum(counts.values()) / sum(of_type.total() for of_type in answers.values())
            metrics |= {f"majority/{type_}": counts[type_] / answers[type_].total() for type_ in answers}
        order = list(GROUNDING_METRICS)
        return dict(sorted(metrics.items(), key=lambda item: ("/" in item[0], order.index(item[0].split("/")[0]))))

    def evaluation(self, seconds_per_image: float = 0.0, unreadable: Iterable[str] = ()) -> GroundingEvaluation:
        """The metrics of the results collected so far; see `Evaluator.evaluation`."""
        results = [best for _, best in sorted(self._best.items())]
        return GroundingEvaluation(self.compute(), seconds_per_image, results, tuple(unreadable))


def grounding_metrics(data: DetectionData, *, has_masks: bool = False, answers: bool = True) -> list[str]:
    """The names of the metrics that `GroundingEvaluator` computes on a dataset for all images, the main one first.

    Raises DataError if the data has only questions and the model answers none.
    """
    _require_more_than_questions(data, answers=answers)
    texts = [image for image in data.images if not is_question(image)]
    names: list[str] = []
    if has_masks and data.masks != "none" and texts:
        names += [name for name in GROUNDING_METRICS if name.startswith("mask_")]
    if any(map(is_expression, texts)):
        names += [name for name in GROUNDING_METRICS if name.startswith("P@")]
    if any(map(true_phrases, texts)):
        names += [name for name in GROUNDING_METRICS if name.startswith(("R@", "merged_R@"))]
    if answers and len(texts) < len(data.images):
        names += ["accuracy", "majority"]
    return names


def _require_more_than_questions(data: DetectionData, *, answers: bool) -> None:
    """Raise DataError if nothing is evaluated: all captions are questions, and the model answers none."""
    if not answers and data.images and all(map(is_question, data.images)):
        raise DataError(
            f"{data.folder}: the split '{data.split}' has only questions, and the model answers none; set "
            "model.questions, or use a model that answers questions"
        )


# ------------------------------------------------------------------------------------------------------------ the truth


def is_question(image: ImageRecord) -> bool:
    """Whether an image has a question with an answer."""
    return "answer" in image.extras


def blank_expressions(data: DetectionData) -> DetectionData:
    """The expressions of a dataset with blank captions. A model that uses the text finds few of their objects."""
    blank = [replace(image, extras={**image.extras, CAPTION: ""}) for image in data.images if is_expression(image)]
    return replace(data, images=tuple(blank))


def is_expression(image: ImageRecord) -> bool:
    """Whether the caption of an image is an expression that refers to its only object."""
    extras = image.extras
    return not is_question(image) and "tokens_positive_eval" not in extras and len(_true_boxes(image)) == 1


def true_phrases(image: ImageRecord) -> list[Phrase]:
    """The phrases of an image to find, in the order of `GroundingResult.phrases`."""
    phrases = []
    for spans in _phrase_spans(image):
        boxes = [obj.box for obj in image.objects if not obj.crowd and set(obj.extras[SPANS]) & set(spans)]
        xywh = torch.tensor(boxes, dtype=torch.float64).view(-1, 4)
        phrases.append(Phrase(torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1)))
    return phrases


def _phrase_spans(image: ImageRecord) -> list[tuple[tuple[int, int], ...]]:
    """The spans of each phrase with a box; none for a question and for an expression, which are evaluated as such."""
    if is_question(image) or is_expression(image):
        return []
    named = [tuple(obj.extras[SPANS]) for obj in image.objects if not obj.crowd]
    known = {span for spans in named for span in spans}
    phrases = image.extras.get("tokens_positive_eval")
    if phrases is None:
        return list(dict.fromkeys(spans for spans in named if spans))
    return [tuple(spans) for spans in phrases if known & set(spans)]


def _true_boxes(image: ImageRecord) -> Tensor:
    """(n, 4) boxes of all objects, xyxy."""
    xywh = torch.tensor([obj.box for obj in image.objects if not obj.crowd], dtype=torch.float64).view(-1, 4)
    return torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1)


def _question_type(extras: Mapping[str, Any]) -> str:
    """The type of a question; for CLEVR, which has none, the kind of its answer."""
    if "question_type" in extras:
        return str(extras["question_type"])
    answer = str(extras["answer"])
    return "binary" if answer in ("yes", "no") else "count" if answer.isdigit() else "query"


# -------------------------------------------------------------------------------------------------------------- scoring


def expression_hits(scores: Tensor, boxes: Tensor, truth: Tensor) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Whether the best boxes contain a hit, for each of `RANKS`: by IoU, and by generalised IoU as published.

    Args:
        scores: (Q,).
        boxes: (Q, 4), xyxy.
        truth: (4,), xyxy.
    """
    ranked = boxes[scores.argsort(descending=True, stable=True)].double()
    return _hits(iou(ranked, truth), RANKS), _hits(giou(ranked, truth), RANKS)


def phrase_hits(boxes: Tensor, truth: Tensor) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Whether the best boxes contain a hit, for each of `RANKS` and all of them.

    Returns the hits with any true box, and those with the box around all true boxes.

    Args:
        boxes: (Q, 4), xyxy, best first.
        truth: (n, 4), xyxy.
    """
    ranks = (*RANKS, max(len(boxes), 1))
    merged = torch.cat((truth[:, :2].amin(0), truth[:, 2:].amax(0)))
    overlaps = iou(boxes[:, None].double(), truth.double())
    return _hits(overlaps.amax(1), ranks), _hits(iou(boxes.double(), merged.double()), ranks)


def answer_is_right(answer: Mapping[str, int], truth: Mapping[str, int] | None) -> bool:
    """Whether all heads that a question concerns are right. False without a truth, and for a model without heads."""
    return bool(truth) and all(answer.get(name) == value for name, value in (truth or {}).items())


def _hits(overlaps: Tensor, ranks: Sequence[int]) -> tuple[bool, ...]:
    return tuple(bool((overlaps[:rank] >= _HIT).any()) for rank in ranks)


def _add_hits(
    values: dict[str, list[float]],
    prefix: str,
    ranks: Sequence[int | str],
    hits: Sequence[bool],
    parts: Iterable[str],
    suffix: str = "",
) -> None:
    """Add whether each rank contains a hit, to the metrics of all images and to those of the parts."""
    for rank, hit in zip(ranks, hits, strict=True):
        for name in ("", *(f"/{part}" for part in parts)):
            values[f"{prefix}{rank}{suffix}{name}"].append(hit)


def _compare_masks(record: ImageRecord, mask: Tensor | None) -> tuple[int, int]:
    """Pixels in the intersection and in the union of the true and the predicted mask."""
    outlines = known_masks(record)
    truth = torch.zeros(record.height, record.width, dtype=torch.bool)
    if outlines is not None:
        truth = torch.from_numpy(outlines).any(0)
    found = torch.zeros_like(truth) if mask is None else mask.cpu()
    return int((truth & found).sum()), int((truth | found).sum())


# ------------------------------------------------------------------------------------------------------------ Flickr30k


def entities_phrases(sentence: str) -> list[tuple[str, tuple[str, ...]]]:
    """The entity and the types of each phrase of an annotated sentence of Flickr30k Entities.

    Example:
        >>> entities_phrases("[/EN#4/animals/other Two dogs] run")
        [('4', ('animals', 'other'))]
    """
    return [(found["id"], tuple(found["types"].split("/"))) for found in _PHRASE.finditer(sentence)]


def flickr_recall(
    sentences: Mapping[str, Sequence[str]],
    boxes: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    predictions: Mapping[tuple[str, int], Sequence[Sequence[Sequence[float]]]],
) -> dict[str, float]:
    """Recall of phrases by the annotations of Flickr30k Entities, for all phrases and by type.

    Args:
        sentences: image -> its annotated sentences.
        boxes: image -> entity -> its true boxes, xyxy. Phrases of other entities are ignored.
        predictions: image and index of the sentence -> for each of its phrases with boxes, the boxes, best first.

    Returns:
        "R@1" ... "R@all" and "merged_R@1" ..., also with "/" and a type.

    Raises:
        DataError: a sentence with boxes has no predictions, or not as many as phrases.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for image, of_image in sentences.items():
        for index, sentence in enumerate(of_image):
            phrases = [phrase for phrase in entities_phrases(sentence) if phrase[0] in boxes[image]]
            predicted = predictions.get((image, index), ())
            if len(predicted) != len(phrases):
                place = f"image {image}, sentence {index}"
                raise DataError(f"{place}: {len(phrases)} phrases, but predictions of {len(predicted)}")
            for (entity, types), found in zip(phrases, predicted, strict=True):
                truth = torch.tensor(boxes[image][entity], dtype=torch.float64)
                hits, merged_hits = phrase_hits(torch.tensor(found, dtype=torch.float64).view(-1, 4), truth)
                _add_hits(values, "R@", (*RANKS, "all"), hits, types)
                _add_hits(values, "merged_R@", (*RANKS, "all"), merged_hits, types)
    return {name: fmean(hits) for name, hits in values.items()}
