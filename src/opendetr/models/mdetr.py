"""MDETR: detection guided by text (Kamath et al., "MDETR - Modulated Detection for End-to-End Multi-Modal
Understanding", 2021).

A text encoder computes features of the tokens of a caption. The encoder of a DETR attends to the image and the tokens
together. A query predicts, instead of a class, the tokens of the caption that name its object.

Shape letters: B batch, Q queries, L decoder layers, C class logits, D width, E width of an alignment feature,
H W image, h w features, T tokens, A answer heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.models.conditional import ConditionalDecoder, boxes_at
from opendetr.models.detector import Detector
from opendetr.models.detr import DETR, DETRConfig
from opendetr.nn import (
    MLP,
    AnyTextConfig,
    RobertaTextConfig,
    Tokenizer,
    full_precision,
    new_tokenizer,
    tokens_of,
    weights_dtype,
)
from opendetr.recipe import LinearSchedule, ParameterRate
from opendetr.structures import FeatureMap, GroundingOutput, ImageBatch, Movable, Predictions, Scoring, Tokens

_ALIGNMENT = ("align_queries.", "align_tokens.")
_TOKEN_FIELDS = ("ids", "padding", "spans")

QuestionKind = Literal["none", "gqa", "gqa-unified", "clevr", "scenes"]


class AnswerHead(NamedTuple):
    """A head that answers one type of questions.

    Attributes:
        name: its name.
        num_answers: number of answers; 1 for yes or no.
        layers: number of linear layers.
    """

    name: str
    num_answers: int
    layers: int = 1


ANSWER_HEADS: Mapping[QuestionKind, tuple[AnswerHead, ...]] = {
    "none": (),
    "gqa": (
        AnswerHead("type", 5),
        AnswerHead("obj", 3),
        AnswerHead("rel", 1594),
        AnswerHead("attr", 403),
        AnswerHead("cat", 678),
        AnswerHead("global", 111),
    ),
    "gqa-unified": (AnswerHead("total", 1853),),
    "clevr": (
        AnswerHead("type", 3),
        AnswerHead("binary", 1),
        AnswerHead("reg", 20, layers=3),
        AnswerHead("attr", 15),
    ),
    "scenes": (
        AnswerHead("type", 3),
        AnswerHead("binary", 1),
        AnswerHead("reg", 20, layers=3),
        AnswerHead("attr", 32),
    ),
}
"""The answer heads by kind of questions, in the order of their queries."""


@dataclass(frozen=True, kw_only=True)
class MDETRConfig(DETRConfig):
    """Configuration of an MDETR.

    Attributes:
        text: the text encoder.
        text_dropout: probability of dropping a projected text feature.
        own_text_rate: train the text encoder with `Recipe.text_learning_rate`, a linear warm-up and a linear decay, as
            published; if False, like the other parameters.
        align_width: E; 0 for no contrastive alignment of queries and tokens.
        pair_width: features for the contrast of whole images and captions; 0 for none, as published.
        predict_final: predict for each query whether the caption as a whole refers to its object.
        questions: the kind of questions that the model answers.
        conditional: the decoder of Conditional DETR instead of the published one. It learns from fewer images.
    """

    text: AnyTextConfig = field(default_factory=RobertaTextConfig)
    text_dropout: float = 0.1
    own_text_rate: bool = True
    align_width: int = 64
    pair_width: int = 0
    predict_final: bool = False
    questions: QuestionKind = "none"
    conditional: bool = False

    def build(self, num_logits: int, scoring: Scoring) -> MDETR:
        """The model, randomly initialised."""
        return (ConditionalMDETR if self.conditional else MDETR)(self, num_logits, scoring)


@dataclass(frozen=True)
class EncodedText(Movable):
    """Captions as the encoder of the model takes them.

    Attributes:
        tokens: their tokens.
        features: (B, T, D), projected features of the text encoder.
        pooled: (B, D'), features of whole captions; None if the model does not use them.
    """

    tokens: Tokens
    features: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, chosen: Tensor) -> EncodedText:
        """The captions with these indices; one may occur several times."""
        pooled = None if self.pooled is None else self.pooled[chosen]
        return EncodedText(self.tokens[chosen], self.features[chosen], pooled)

    def alone(self, index: int) -> EncodedText:
        """One caption without padding."""
        length = int((~self.tokens.padding[index]).sum())
        chosen = slice(index, index + 1)
        tokens = self.tokens[chosen]
        tokens = replace(
            tokens, ids=tokens.ids[:, :length], padding=tokens.padding[:, :length], spans=tokens.spans[:, :length]
        )
        return EncodedText(tokens, self.features[chosen, :length], None if self.pooled is None else self.pooled[chosen])

    @classmethod
    def joined(cls, captions: Sequence[EncodedText]) -> EncodedText:
        """Single captions as a batch, padded to the longest one."""
        length = max(each.tokens.num_tokens for each in captions)
        padded = [each.tokens.pad_to(length) for each in captions]
        ids, padding, spans = (torch.cat([getattr(each, name) for each in padded]) for name in _TOKEN_FIELDS)
        tokens = replace(padded[0], ids=ids, padding=padding, spans=spans)
        features = [F.pad(each.features, (0, 0, 0, length - each.features.shape[1])) for each in captions]
        pooled = [each.pooled for each in captions if each.pooled is not None]
        return cls(tokens, torch.cat(features), torch.cat(pooled) if pooled else None)

    def level(self) -> FeatureMap:
        """The tokens as a level of features, (B, D, 1, T)."""
        return FeatureMap(self.features.transpose(1, 2)[:, :, None], self.tokens.padding[:, None])


class MDETR(DETR):
    """The detector.

    Args:
        config: architecture.
        num_logits: C, number of outputs of the class head: the tokens of the longest caption and "no object".
        scoring: how class logits become scores.
    """

    family = "mdetr"
    places_positions: ClassVar = False
    takes_text = True
    class_rows = ()

    def __init__(self, config: MDETRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        width = config.transformer.width
        self.tokenizer_name = config.text.tokenizer
        self.text = config.text.build()
        self.text_project = nn.Linear(self.text.width, width)
        self.text_norm = nn.LayerNorm(width, eps=1e-12)
        self.text_dropout = nn.Dropout(config.text_dropout)
        if config.own_text_rate:
            own = ParameterRate(
                names=frozenset({"text"}), rate=lambda recipe: recipe.text_learning_rate, schedule=LinearSchedule()
            )
            self.parameter_rates = (own, *DETR.parameter_rates)
        self.align_queries = nn.Linear(width, config.align_width) if config.align_width else None
        self.align_tokens = nn.Linear(width, config.align_width) if config.align_width else None
        self.final_head = nn.Linear(width, 1) if config.predict_final else None
        heads = ANSWER_HEADS[config.questions]
        self.answer_queries = nn.Embedding(len(heads), width) if heads else None
        # A module cannot have the name "type".
        self.answer_heads = nn.ModuleDict({f"{head.name}_head": _new_head(width, head) for head in heads})
        self.answer_names = tuple(head.name for head in heads)
        if heads:  # a model that answers questions starts from one that does not
            self.added_parts = frozenset({"answer_queries", "answer_heads"})
        self.pair_token = nn.Embedding(1, width) if config.pair_width else None
        self.pair_image = nn.Linear(width, config.pair_width, bias=False) if config.pair_width else None
        self.pair_caption = nn.Linear(self.text.width, config.pair_width, bias=False) if config.pair_width else None
        if not config.pair_width:  # they belong to the published files, and nothing depends on them
            for name in self.text.unused_without_pooling():
                self.text.get_parameter(name).requires_grad_(False)

    @property
    def num_logits(self) -> int:
        """C."""
        return self.class_head.out_features

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text encoder. Raises ConfigError if its vocabulary is missing."""
        return new_tokenizer(self.tokenizer_name)

    def completed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Detector.completed`. Alignment layers are left out if this model has none."""
        whole = super().completed(state)
        if self.align_queries is not None:
            return whole
        return {name: value for name, value in whole.items() if not name.startswith(_ALIGNMENT)}

    def encode_text(self, captions: Sequence[str] | Tokens) -> EncodedText:
        """Captions, or their tokens -> their features, computed once for each distinct string.

        Raises:
            ConfigError: the vocabulary of the tokenizer is missing.
        """
        if not isinstance(captions, Tokens):
            distinct = list(dict.fromkeys(captions))
            tokens = self.tokenizer(distinct, max_tokens=self.text.max_tokens).to(self.queries.weight.device)
            encoded = self.encode_text(tokens)
            if len(distinct) == len(captions):
                return encoded
            chosen = [distinct.index(caption) for caption in captions]
            return encoded[torch.tensor(chosen, device=encoded.features.device)]
        features = self.text(captions)
        pooled = None if self.pair_caption is None else self.text.pool(features)
        return EncodedText(captions, self.text_dropout(self.text_norm(self.text_project(features))), pooled)

    def forward(
        self,
        images: ImageBatch,
        captions: Sequence[str] | Tokens | EncodedText | None = None,
        features: tuple[FeatureMap, ...] | None = None,
    ) -> GroundingOutput:
        """Images and a caption for each -> predictions of every decoder layer.

        Args:
            images: B images.
            captions: B captions, as strings, tokens, or the result of `encode_text`.
            features: the backbone features of the images, if they were computed before.

        Raises:
            ValueError: there are no captions, or not one for each image.
        """
        if captions is None:
            raise ValueError("this model needs a text for each image: pass captions")
        if len(captions) != len(images):
            raise ValueError(f"expected a caption for each of {len(images)} images, got {len(captions)}")
        text = captions if isinstance(captions, EncodedText) else self.encode_text(captions)
        return self.from_features(self.backbone(images) if features is None else features, images.padding, text)

    def from_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None, text: EncodedText | None = None
    ) -> GroundingOutput:
        """Backbone features and captions -> predictions of every decoder layer; `padding` as in `project_features`."""
        levels = self.project_features(features, padding)
        if text is not None:
            levels = (*levels, text.level())
            if self.pair_token is not None:
                token = self.pair_token.weight.expand(len(text), -1)[:, :, None, None]
                levels = (*levels, FeatureMap(token, None))
        return replace(self.decode(self.encode(levels), features, text=text), inputs=levels)

    def encode(self, projected: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """The image's level (B, D, h, w), and those of the text (B, D, 1, T) -> memory of the same shapes."""
        image = self.position(projected[0]).to(projected[0].values.dtype)
        positions = [image, *(torch.zeros_like(level.values) for level in projected[1:])]
        joined = self.encoder(
            _joined([level.values for level in projected]), _joined(positions), _joined_padding(projected)
        )
        sizes = [level.values[0, 0].numel() for level in projected]
        parts = joined.transpose(1, 2).split(sizes, dim=2)
        return tuple(
            FeatureMap(part.unflatten(2, level.values.shape[-2:]), level.padding, position)
            for part, level, position in zip(parts, projected, positions, strict=True)
        )

    def decode(
        self,
        memory: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...] = (),
        query_position: Tensor | None = None,
        *,
        text: EncodedText | None = None,
    ) -> GroundingOutput:
        """Memory -> predictions of every decoder layer; the further arguments are those of `DETR.decode`.

        Args:
            memory: the image's level, and those of the text.
            text: the captions, which become part of the output; None for an empty one.
        """
        batch_size = len(memory[0].values)
        position = (self.queries.weight if query_position is None else query_position).expand(batch_size, -1, -1)
        num_queries = position.shape[1]
        if self.answer_queries is not None:
            position = torch.cat((position, self.answer_queries.weight.expand(batch_size, -1, -1)), 1)
        keys = _joined([level.values for level in memory])
        key_positions = [level.position for level in memory if level.position is not None]
        assert len(key_positions) == len(memory)
        decoded = self.decoder(position, keys, _joined(key_positions), _joined_padding(memory))
        with torch.autocast(decoded.device.type, enabled=False):  # a box needs more digits than bfloat16 has
            decoded = decoded.to(weights_dtype(self.class_head))
            queries = decoded[:, :, :num_queries]
            logits = full_precision(self.class_head(queries))
            boxes = self.predict_boxes(queries, position[:, :num_queries])
            layers = tuple(Predictions(*layer, self.scoring) for layer in zip(logits, boxes, strict=True))
            output = GroundingOutput(
                layers,
                queries,
                features,
                memory,
                tokens=_no_tokens(keys) if text is None else text.tokens,
                is_final=None if self.final_head is None else full_precision(self.final_head(queries)[..., 0]),
                # The answers are those of the first layer, as in the original.
                answers=self._answers(decoded[0, :, num_queries:]),
            )
            return self._compared(output, text)

    def _compared(self, output: GroundingOutput, text: EncodedText | None) -> GroundingOutput:
        """The output with the features that the contrastive losses compare."""
        if self.align_queries is not None and self.align_tokens is not None and len(output.memory) > 1:
            tokens = tokens_of(output.memory[1].values).to(output.queries.dtype)
            output = replace(
                output,
                query_features=F.normalize(full_precision(self.align_queries(output.queries)), dim=-1),
                token_features=F.normalize(full_precision(self.align_tokens(tokens)), dim=-1),
            )
        if self.pair_image is not None and self.pair_caption is not None and text is not None:
            assert text.pooled is not None
            image = output.memory[2].values[:, :, 0, 0].to(output.queries.dtype)
            output = replace(
                output,
                image_feature=full_precision(self.pair_image(image)),
                caption_feature=full_precision(self.pair_caption(text.pooled.to(image.dtype))),
            )
        return output

    def _answers(self, queries: Tensor) -> dict[str, Tensor]:
        """The decoded answer queries (B, A, D) -> the logits of each head."""
        answers = {}
        for name, head, query in zip(self.answer_names, self.answer_heads.values(), queries.unbind(1), strict=True):
            logits = full_precision(head(query))
            answers[name] = logits[:, 0] if logits.shape[1] == 1 else logits
        return answers


class ConditionalMDETR(MDETR):
    """MDETR with the decoder and the reference points of Conditional DETR; the arguments are those of `MDETR`."""

    decoder_type: ClassVar = ConditionalDecoder
    decoder: ConditionalDecoder

    def __init__(self, config: MDETRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        for parameter in self.box_head.layers[-1].parameters():
            nn.init.zeros_(parameter)  # so boxes are initially centred at the reference points

    def predict_boxes(self, queries: Tensor, query_position: Tensor) -> Tensor:
        """The decoder's output (L, B, Q, D) -> boxes (L, B, Q, 4), with centres relative to the reference points."""
        return boxes_at(self.decoder.reference_points(query_position), full_precision(self.box_head(queries)))


def _new_head(width: int, head: AnswerHead) -> nn.Module:
    if head.layers == 1:
        return nn.Linear(width, head.num_answers)
    return MLP(width, width, head.num_answers, num_layers=head.layers)


def _joined(levels: Sequence[Tensor]) -> Tensor:
    """Levels (B, D, h, w) -> their tokens, one level after another, (B, N, D)."""
    dtype = levels[0].dtype
    return torch.cat([tokens_of(level).to(dtype) for level in levels], 1)


def _joined_padding(levels: Sequence[FeatureMap]) -> Tensor | None:
    """The padding of all tokens, (B, N); None if nothing is padded."""
    if all(level.padding is None for level in levels):
        return None
    parts = []
    for level in levels:
        b, _, h, w = level.values.shape
        none = torch.zeros(b, h * w, dtype=torch.bool, device=level.values.device)
        parts.append(none if level.padding is None else level.padding.flatten(1))
    return torch.cat(parts, 1)


def _no_tokens(like: Tensor) -> Tokens:
    empty = torch.zeros(len(like), 0, dtype=torch.int64, device=like.device)
    return Tokens(empty, empty.bool(), empty[..., None].expand(-1, -1, 2))


class GroundingSession:
    """The session of a model that takes captions.

    It keeps the features of captions, so each distinct string is encoded once. It also keeps the backbone features of
    the latest images, so further captions of the same images cost no pass through the backbone.

    Args:
        model: an MDETR, or one with a mask head, in evaluation mode.
    """

    _MAX_KEPT = 4096

    def __init__(self, model: Detector) -> None:
        self._model = model
        part = model.detector_part
        self._encoder = cast(MDETR, model if part is None else model.get_submodule(part))
        self._kept: dict[str, EncodedText] = {}
        self._seen: tuple[ImageBatch, tuple[FeatureMap, ...]] | None = None

    @torch.inference_mode()
    def step(self, images: ImageBatch, prompt: Any = None) -> GroundingOutput:
        """Return the output for a batch of images.

        Args:
            images: B images.
            prompt: B captions.
        """
        if prompt is None:
            return self._model(images)
        if self._seen is None or self._seen[0] is not images:
            self._seen = images, self._encoder.backbone(images)
        return self._model(images, self.encode(prompt), self._seen[1])

    def encode(self, captions: Sequence[str]) -> EncodedText:
        """The features of captions, on the model's device."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._kept]
        if new:
            if len(self._kept) + len(new) > self._MAX_KEPT:
                self._kept.clear()
                new = list(dict.fromkeys(captions))
            encoded = self._encoder.encode_text(new)
            for index, caption in enumerate(new):
                self._kept[caption] = encoded.alone(index)
        return EncodedText.joined([self._kept[caption] for caption in captions])

    def reset(self) -> None:
        """Forget the latest images."""
        self._seen = None
