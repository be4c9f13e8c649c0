"""Texts as a prompt: what a user asks for, checked, and the detections that it gives.

Shape letters: B batch, n detections, H W image.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from textwrap import shorten
from typing import Any, cast

import torch
from torch import Tensor

from opendetr.categories import Categories
from opendetr.config import ConfigError, SettingError
from opendetr.data import AnswerDecoder
from opendetr.models import MDETR, Detector, Session
from opendetr.nn import lost_text, text_fault, unknown_words
from opendetr.postprocess import ImageMasks, boxes_in_pixels, image_masks, phrases, referred_scores
from opendetr.results import Answer, Detections
from opendetr.structures import GroundingOutput, ImageBatch

TEXT_SCORE = 0.7
"""The threshold of detections that a text names, as in the authors' notebook."""
_SHOWN = 80  # characters of a text in a message


@dataclass(frozen=True)
class Texts:
    """What to detect: one caption after another, each with a label of its own.

    Attributes:
        captions: the captions.
        categories: a category for each of them, named by the text or the class.
        by_phrase: whether a detection is named by the words of the caption that the model chose, instead of the class.
    """

    captions: tuple[str, ...]
    categories: Categories
    by_phrase: bool


def read_texts(model: Detector, name: str, text: Any, classes: Any) -> Texts | None:
    """Check a text, several texts or class names for a model.

    Args:
        model: the model.
        name: its name, for messages.
        text: a text, or a list of texts; None for none.
        classes: a list of class names; None for none.

    Returns:
        The texts, or None if the model takes none and none is given. A text that is too long is cut, with a line on
        standard error that says what is lost. Another line names words that the model does not know.

    Raises:
        SettingError: the model needs a text and none is given, or the other way round.
        ConfigError: a text is empty, or has no word that the model knows.
    """
    if not model.takes_text:
        if text is None and classes is None:
            return None
        what = "takes no text: leave it out" if classes is None else "detects the classes of its weights: give none"
        raise SettingError(f"{name} {what}, or use a model that takes text, such as mdetr-r101")
    if text is None and classes is None:
        also = "; questions are asked with --ask (detector.ask)" if model.answer_names else ""
        raise SettingError(
            f"{name} needs a text: say what to detect with --text or --classes (in Python text=, classes=){also}"
        )
    if text is not None and classes is not None:
        raise SettingError(f"{name} takes a text or classes, not both: leave one of them out")
    what, given = ("text", text) if classes is None else ("classes", classes)
    several = [given] if isinstance(given, str) and classes is None else given
    if not isinstance(several, list | tuple) or not all(isinstance(each, str) for each in several):
        expected = "a text or a list of texts" if classes is None else "a list of class names"
        raise ConfigError(f"{what}={given!r}: give {expected}")
    names = list(dict.fromkeys(each.strip() for each in several))
    if not names:
        raise ConfigError(f"{what}: the list is empty; give at least one")
    captions = names if classes is None else [_caption_of_class(each) for each in names]
    checked = tuple(_checked(model, caption) for caption in captions)
    return Texts(checked, Categories.from_names(names), by_phrase=classes is None)


def _caption_of_class(name: str) -> str:
    """The caption of a class, as in MDETR's evaluation on LVIS: "traffic_light" and "bat_(animal)" become words."""
    return re.sub(r"\s+", " ", re.sub(r"[()]", "", name).replace("_", " ")).strip()


def _checked(model: Detector, caption: str) -> str:
    """The caption, cut if it is too long. Raises ConfigError if it cannot be used."""
    detector = cast(MDETR, model.get_submodule(model.detector_part or ""))  # the model takes text
    fault = text_fault(caption, detector.tokenizer)
    if fault:
        raise ConfigError(fault)
    unknown = dict.fromkeys(unknown_words([caption], detector.tokenizer([caption])))
    if unknown:
        words = shorten(", ".join(map(repr, unknown)), _SHOWN)
        print(f"warning: the model does not know these words of the text: {words}", file=sys.stderr)
    lost = lost_text(caption, detector.tokenizer, detector.text.max_tokens)
    if lost:
        print(
            f"warning: the text is longer than the {detector.text.max_tokens} tokens that the model takes; left out: "
            f"{shorten(lost, _SHOWN)!r}",
            file=sys.stderr,
        )
    return caption


def ground(
    session: Session, images: ImageBatch, sizes: Tensor, texts: Texts, min_score: float
) -> list[Callable[[], Detections]]:
    """Detect what the texts name in a batch.

    Args:
        session: the session of a model that takes captions.
        images: B images.
        sizes: (B, 2), height and width of the original images in pixels.
        texts: the texts.
        min_score: detections with a lower score are dropped.

    Returns:
        For each image a function that returns its detections in descending order of their scores. It resizes the masks
        to the original image, if the model has a mask head.
    """
    found: list[list[tuple[Detections, ImageMasks | None]]] = [[] for _ in sizes]
    for label, caption in enumerate(texts.captions):
        output = session.step(images, [caption] * len(images))
        assert isinstance(output, GroundingOutput)
        scores, boxes = referred_scores(output).cpu(), boxes_in_pixels(output.final, sizes).cpu()
        kept = [(of_image >= min_score).nonzero()[:, 0] for of_image in scores]
        named = phrases(output, [caption] * len(images), kept)
        masks = None if output.masks is None else image_masks(output, images, sizes, queries=kept)
        for index, queries in enumerate(kept):
            height, width = sizes[index].tolist()
            detections = Detections(
                boxes[index, queries],
                scores[index, queries],
                torch.full((len(queries),), label),
                texts.categories,
                (int(height), int(width)),
                phrases=tuple(named[index]) if texts.by_phrase else None,
            )
            found[index].append((detections, None if masks is None else masks[index]))
    session.reset()
    return [partial(_joined, of_image) for of_image in found]


def _joined(parts: Sequence[tuple[Detections, ImageMasks | None]]) -> Detections:
    """The detections of all texts, best first, with their masks."""
    complete = [part if masks is None else replace(part, masks=masks.instances()) for part, masks in parts]
    first = complete[0]
    joined = replace(
        first,
        boxes=torch.cat([part.boxes for part in complete]),
        scores=torch.cat([part.scores for part in complete]),
        labels=torch.cat([part.labels for part in complete]),
        masks=None if first.masks is None else torch.cat([part.masks for part in complete if part.masks is not None]),
        phrases=None if first.phrases is None else sum((part.phrases or () for part in complete), ()),
    )
    return joined[joined.scores.argsort(descending=True, stable=True)]


def answers(session: Session, images: ImageBatch, question: str, decode: AnswerDecoder) -> list[Answer]:
    """The answers to a question about each image of a batch.

    The score of an answer is the product of the probabilities of the heads that it comes from.

    Args:
        session: the session of a model with answer heads.
        images: B images.
        question: the question.
        decode: the best output of each head -> the answer, and the heads that it comes from.
    """
    output = session.step(images, [question] * len(images))
    assert isinstance(output, GroundingOutput)
    session.reset()
    found = []
    for index in range(len(images)):
        best = {name: _best(logits[index]) for name, logits in output.answers.items()}
        text, deciding = decode({name: answer for name, (answer, _) in best.items()})
        found.append(Answer(text, math.prod(best[name][1] for name in deciding), question))
    return found


def _best(logits: Tensor) -> tuple[int, float]:
    """The best output of a head, () or (K,), and its probability."""
    if logits.ndim == 0:
        yes = float(logits.float().sigmoid())
        return int(yes > 0.5), max(yes, 1 - yes)
    probability, answer = logits.float().softmax(-1).max(-1)
    return int(answer), float(probability)
