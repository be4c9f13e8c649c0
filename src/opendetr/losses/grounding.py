"""Losses of detection guided by text: alignment of queries and tokens, of images and captions, referred objects, and
answers to questions (MDETR, sections 2 and 4).

Shape letters: B batch, Q queries, L decoder layers, E width of an alignment feature, T tokens, n objects, m matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from opendetr.losses.class_terms import of_matches
from opendetr.losses.term import Normaliser
from opendetr.structures import GroundingOutput, Matches, Target

_EPSILON = 1e-6  # as in the original, added to counts


@dataclass(frozen=True)
class GroundingNormaliser(Normaliser):
    """The divisors of a step, including those of whole images and of answers.

    Attributes:
        images: number of images, at least 1.
        answers: number of questions that each answer head answers, at least 1.
    """

    images: float
    answers: Mapping[str, float]

    @classmethod
    def of(cls, plain: Normaliser, answered: Sequence[Sequence[str]]) -> GroundingNormaliser:
        """Add to the divisors of the set loss those of `answered`: for each image, its answer heads."""
        names = [name for heads in answered for name in heads]
        counts = {name: float(names.count(name)) for name in set(names)}
        return cls(plain.objects, plain.classes, max(float(len(answered)), 1.0), counts)


@dataclass(frozen=True, kw_only=True)
class GroundingLossConfig:
    """Weights of the losses of detection guided by text.

    Attributes:
        align_weight: weight of the alignment of queries and tokens, for models with such layers.
        temperature: divisor of the similarities.
        published_fallback: look up a boundary of a span that has no token in the first caption of the batch instead of
            the own one, as the authors' code does.
        pair_weight: weight of the contrast of images and captions, for models with such features.
        final_weight: weight of the referred objects, for models with such a head.
        answer_weight: weight of the answers, for models with answer heads.
    """

    align_weight: float = 1.0
    temperature: float = 0.07
    published_fallback: bool = False
    pair_weight: float = 0.1
    final_weight: float = 1.0
    answer_weight: float = 1.0


class AlignmentLoss:
    """Contrast between queries and tokens: a query is close to the tokens of its object, and these to it.

    Args:
        config: weight and temperature.
    """

    def __init__(self, config: GroundingLossConfig) -> None:
        self.config = config

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of "align", the same in every layer."""
        return {"align": self.config.align_weight}

    def __call__(
        self, output: GroundingOutput, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "align", (L,); see `LossTerm`. All tokens count as negatives, the padding included, as published."""
        assert output.query_features is not None and output.token_features is not None
        similarity = output.query_features @ output.token_features.mT / self.config.temperature  # (L, B, Q, T)
        if self.config.published_fallback:
            targets = [_with_published_map(output, target, index) for index, target in enumerate(targets)]
        positive = torch.zeros_like(similarity, dtype=torch.bool)
        positive[matches.layer, matches.image, matches.query] = of_matches(targets, matches, "token_map")
        total = _contrast(similarity, positive, 3) + _contrast(similarity, positive, 2)
        return {"align": total / 2 / normaliser.objects}


def _with_published_map(output: GroundingOutput, target: Target, index: int) -> Target:
    assert target.spans is not None
    token_map = output.tokens.to("cpu").map_of(index, target.spans, fallback=0)
    return replace(target, token_map=token_map.to(target.boxes.device))


def _contrast(similarity: Tensor, positive: Tensor, dim: int) -> Tensor:
    """(L, B, Q, T) -> (L,): minus the mean similarity to the positives, plus the log-sum-exp over all, along `dim`."""
    mean = similarity.masked_fill(~positive, 0.0).sum(dim) / (positive.sum(dim) + _EPSILON)
    return (similarity.logsumexp(dim) - mean).masked_fill(~positive.any(dim), 0.0).sum((1, 2))


class PairLoss:
    """Contrast between the images and the captions of a micro-batch: an image is close to its own caption.

    Args:
        config: weight and temperature.
    """

    def __init__(self, config: GroundingLossConfig) -> None:
        self.config = config

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of "pair"."""
        return {"pair": self.config.pair_weight}

    def __call__(
        self, output: GroundingOutput, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "pair", (1,); see `LossTerm`."""
        assert isinstance(normaliser, GroundingNormaliser)
        assert output.image_feature is not None and output.caption_feature is not None
        image, caption = (F.normalize(each, dim=-1) for each in (output.image_feature, output.caption_feature))
        similarity = image @ caption.T / self.config.temperature
        own = torch.arange(len(image), device=image.device)
        both = [F.cross_entropy(each, own, reduction="sum") for each in (similarity, similarity.T)]
        return {"pair": torch.stack(both).sum()[None] / 2 / normaliser.images}


class FinalLoss:
    """Cross-entropy of whether the caption as a whole refers to a matched object.

    Args:
        config: weight.
    """

    def __init__(self, config: GroundingLossConfig) -> None:
        self.config = config

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of "final", the same in every layer."""
        return {"final": self.config.final_weight}

    def __call__(
        self, output: GroundingOutput, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "final", (L,); see `LossTerm`. Raises ValueError if a target does not say which objects are referred to."""
        assert output.is_final is not None
        missing = next((target.image_id for target in targets if target.is_final is None), None)
        if missing is not None:
            raise ValueError(f"image {missing}: its target has no is_final; say which objects the caption refers to")
        logits = output.is_final[matches.layer, matches.image, matches.query]
        wanted = of_matches(targets, matches, "is_final").to(logits)
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        sums = [of_layer.sum() for of_layer in each.split(matches.counts(len(output.layers)))]
        return {"final": torch.stack(sums) / normaliser.objects}


class AnswerLoss:
    """Cross-entropy of the answers to questions. A head is trained on the questions that concern it.

    Args:
        config: weight.
        names: the names of the answer heads.
    """

    _PREFIX: ClassVar[str] = "answer_"

    def __init__(self, config: GroundingLossConfig, names: Sequence[str]) -> None:
        self.config = config
        self._names = names

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of "answer_" and the name of each head."""
        return {f"{self._PREFIX}{name}": self.config.answer_weight for name in self._names}

    def __call__(
        self, output: GroundingOutput, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "answer_type" and so on, (1,) each; see `LossTerm`."""
        assert isinstance(normaliser, GroundingNormaliser)
        losses = {}
        for name in self._names:
            logits = output.answers[name]
            given = [(index, target.answers[name]) for index, target in enumerate(targets)
                     if target.answers is not None and name in target.answers]  # fmt: skip
            image, answer = torch.tensor(given, dtype=torch.int64, device=logits.device).view(-1, 2).unbind(1)
            if logits.ndim == 1:
                loss = F.binary_cross_entropy_with_logits(logits[image], answer.to(logits), reduction="sum")
            else:
                loss = F.cross_entropy(logits[image], answer, reduction="sum")
            losses[f"{self._PREFIX}{name}"] = loss[None] / normaliser.answers.get(name, 1.0)
        return losses
