"""The presets of MDETR."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from opendetr.categories import Categories
from opendetr.config import ConfigError
from opendetr.data import ANSWER_WORDS, CAUTIOUS, AnswerDecoder, DetectionData, gqa_decoder, spread
from opendetr.evaluation import GroundingEvaluator, grounding_metrics
from opendetr.files import cache_folder
from opendetr.losses import (
    CriterionConfig,
    DenseSupervision,
    GroundingLossConfig,
    MaskLoss,
    SetCriterion,
    SoftTokenClassification,
)
from opendetr.models import Detector, GroundingSession, MaskedDetector, MaskHeadConfig, MDETRConfig, Session
from opendetr.nn import BackboneConfig, EfficientNetConfig, RobertaTextConfig, TransformerConfig, WordTextConfig
from opendetr.presets.captions import GroundingDataConfig, caption_advice
from opendetr.presets.detr import detr_tiny
from opendetr.presets.preset import Preset
from opendetr.recipe import Recipe
from opendetr.structures import Batch, CaptionBatch
from opendetr.tasks import GroundingMaskTask, GroundingTask, Task

NUM_TOKENS = 255
"""The tokens of a caption that a query can name; K of all models of the family."""

_NUM_ADVISED = 2000  # captions that `GroundingPreset.advice` reads
_CRITERION = CriterionConfig(classification=SoftTokenClassification())


@dataclass(frozen=True, kw_only=True)
class GroundingPreset(Preset):
    """The configuration of a model that detects what a caption names.

    Attributes:
        grounding: weights of the losses besides set loss and masks.
    """

    model: MDETRConfig = field(default_factory=MDETRConfig)
    criterion: CriterionConfig = _CRITERION
    grounding: GroundingLossConfig = field(default_factory=GroundingLossConfig)
    data: GroundingDataConfig = field(default_factory=GroundingDataConfig)
    recipe: Recipe = field(default_factory=lambda: Recipe(best_by="auto"))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "data", self.data.fitting(self.model))  # the dataclass is frozen

    @property
    def answers_questions(self) -> bool:
        """Whether the model has answer heads."""
        return self.model.questions != "none"

    def can_start_from(self, other: Preset) -> bool:
        """Whether this model answers questions, and the other one is an MDETR with this text encoder that does not."""
        if not isinstance(other, GroundingPreset) or other.answers_questions or not self.answers_questions:
            return False
        return other.model.text == self.model.text

    def like_trained(self, other: Preset) -> Self:
        """The preset with the architecture of the weights that it starts from, and its own answer heads."""
        trained = super().like_trained(other)
        if not self.can_start_from(other):
            return trained
        own = self.model
        model = replace(trained.model, questions=own.questions, align_width=own.align_width)
        return replace(trained, model=model)

    def num_classes(self, categories: Categories) -> int:
        """The number of tokens that a query can name, for all datasets."""
        return NUM_TOKENS

    def published_categories(self) -> Categories:
        """One class, because the phrases of a caption are not known in advance."""
        return Categories.from_names(["object"])

    def build_task(self, model: Detector, num_classes: int) -> Task:
        """The model with its losses, ready for the trainer."""
        criterion = SetCriterion(self.criterion)
        masks = MaskLoss(self.mask_criterion) if self.has_masks else None
        if self.freeze_detector:
            assert isinstance(model, MaskedDetector) and masks is not None
            return GroundingMaskTask(model, criterion, masks)
        dense = None
        if self.dense.weight > 0:
            dense = DenseSupervision(self.dense, self.model.transformer.width, num_classes=1)
        return GroundingTask(model, criterion, self.grounding, dense, masks)

    def advice(self, data: DetectionData) -> str | None:
        """What the text encoder cannot take of the captions; see `caption_advice`."""
        captions = [image.extras["caption"] for image in spread(data.images, _NUM_ADVISED) if "caption" in image.extras]
        return caption_advice(captions, self.data.tokenizer, self.data.max_tokens)

    def without_extras(self) -> Self:
        """The preset with a text encoder and a backbone in place of those that need an optional package."""
        return replace(self, model=replace(self.model, text=WordTextConfig(), backbone=BackboneConfig()))

    def session(self, model: Detector) -> Session:
        """The session that runs the model at inference."""
        return GroundingSession(model)

    def prompt(self, batch: Batch) -> Any:
        """The captions of an evaluation batch."""
        assert isinstance(batch, CaptionBatch)
        return batch.captions

    def evaluator(self, categories: Categories, data: DetectionData, **options: Any) -> GroundingEvaluator:
        """The evaluator of the model on a dataset.

        Raises:
            ConfigError: an option of `Predictor.evaluate` is set that applies to other models.
        """
        if options.get("num_layers") is not None:
            raise ConfigError(f"{self.name}: decoder layers are not evaluated separately; leave layers out")
        return GroundingEvaluator(data, has_masks=self.has_masks, answers=self.answers_questions)

    def class_differences(self, categories: Categories, data: DetectionData) -> list[str]:
        """Nothing, because the model detects what texts name, not classes."""
        return []

    def metrics(self, data: DetectionData) -> list[str]:
        """The names of the metrics that the evaluator computes on a dataset, the main one first."""
        return grounding_metrics(data, has_masks=self.has_masks, answers=self.answers_questions)

    def headlines(self, data: DetectionData) -> tuple[str, ...]:
        """The names of the metrics shown in progress lines and curves."""
        shown = ("mask_IoU", "P@1", "R@1", "accuracy")
        return tuple(name for name in self.metrics(data) if name in shown)

    @property
    def example(self) -> str:
        """The command that detects what a text names, or answers a question, in words that the tokenizer knows."""
        if self.data.tokenizer == "words":
            return 'predict photo.jpg --text "the large red star"'
        if self.answers_questions:
            return 'predict photo.jpg --ask "how many dogs are there?"'
        return 'predict photo.jpg --text "a man with an umbrella"'

    def answer_decoder(self) -> AnswerDecoder:
        """The function that turns the best output of each answer head into an answer; see `AnswerDecoder`.

        Raises:
            ConfigError: the model answers no questions, or the list of GQA's answers is missing.
        """
        questions = self.model.questions
        if not self.answers_questions:
            return super().answer_decoder()
        return ANSWER_WORDS[questions].decode if questions in ANSWER_WORDS else gqa_decoder(cache_folder())

    def miniature(self) -> Self:
        """The preset with smaller sizes, for tests."""
        small = super().miniature()
        return replace(small, model=replace(small.model, text=self.model.text.miniature()))


# The recipe of the pre-training.
_RECIPE = Recipe(batch_size=64, epochs=40, step_at=35 / 40, ema_decay=0.9998, best_by="auto")
_EFFICIENTNET_RECIPE = replace(_RECIPE, backbone_learning_rate=5e-5)

# The images of CLEVR have 320 x 480 pixels, and are evaluated at this size. The authors resize training images to 256
# to 384 pixels and cut crops of 256 to 512; these are the same lengths for a short side of 800.
_CLEVR_DATA = GroundingDataConfig(
    image_size=320,
    max_size=512,
    augmentation=replace(
        CAUTIOUS, scales=(640, 720, 800, 880, 960), scales_before_crop=(800, 880, 960), crop_sides=(640, 1280)
    ),
)


def _mdetr(name: str, model: MDETRConfig, recipe: Recipe = _RECIPE) -> GroundingPreset:
    """A published MDETR with its authors' recipe."""
    return GroundingPreset(name=name, model=model, recipe=recipe)


def mdetr_r50() -> GroundingPreset:
    """MDETR with ResNet-50 and RoBERTa."""
    return _mdetr("mdetr-r50", MDETRConfig())


def mdetr_r101() -> GroundingPreset:
    """MDETR with ResNet-101 and RoBERTa, the paper's baseline."""
    return _mdetr("mdetr-r101", MDETRConfig(backbone=BackboneConfig(depth=101)))


def mdetr_enb3() -> GroundingPreset:
    """MDETR with EfficientNet-B3 and RoBERTa."""
    return _mdetr("mdetr-enb3", MDETRConfig(backbone=EfficientNetConfig(variant="b3")), _EFFICIENTNET_RECIPE)


def mdetr_enb5() -> GroundingPreset:
    """MDETR with EfficientNet-B5 and RoBERTa."""
    return _mdetr("mdetr-enb5", MDETRConfig(backbone=EfficientNetConfig(variant="b5")), _EFFICIENTNET_RECIPE)


def mdetr_r101_phrasecut() -> GroundingPreset:
    """MDETR with ResNet-101 and a mask head, for the regions that a phrase names (PhraseCut)."""
    recipe = Recipe(
        learning_rate=5e-5,
        text_learning_rate=1e-5,
        batch_size=8,
        epochs=10,
        step_at=7 / 10,
        ema_decay=0.9998,
        best_by="auto",
    )
    plain = _mdetr("mdetr-r101-phrasecut", MDETRConfig(backbone=BackboneConfig(depth=101), align_width=0), recipe)
    return replace(
        plain,
        without_masks="mdetr-r101",
        masks=MaskHeadConfig(enabled=True, softmax_per_head=True),
        data=replace(plain.data, masks="instances"),
    )


def mdetr_r101_gqa() -> GroundingPreset:
    """MDETR with ResNet-101 that answers questions on photographs (GQA)."""
    recipe = Recipe(
        learning_rate=1.4e-4,
        backbone_learning_rate=1.4e-5,
        text_learning_rate=7e-5,
        batch_size=128,
        epochs=5,
        step_at=1.0,
        ema_decay=0.9998,
        best_by="auto",
    )
    model = MDETRConfig(backbone=BackboneConfig(depth=101), align_width=0, questions="gqa")
    preset = _mdetr("mdetr-r101-gqa", model, recipe)
    return replace(preset, grounding=GroundingLossConfig(answer_weight=25.0))


def mdetr_r18_clevr() -> GroundingPreset:
    """MDETR with ResNet-18 and DistilRoBERTa that answers questions on drawn scenes (CLEVR)."""
    model = MDETRConfig(
        backbone=BackboneConfig(depth=18), num_queries=25, text=RobertaTextConfig(layers=6), questions="clevr"
    )
    preset = _mdetr("mdetr-r18-clevr", model, Recipe(batch_size=64, epochs=30, step_at=20 / 30, best_by="auto"))
    return replace(preset, data=_CLEVR_DATA)


def mdetr_tiny() -> GroundingPreset:
    """A small MDETR with a vocabulary of its own, for small images and training from scratch without a GPU."""
    tiny = detr_tiny()
    model = MDETRConfig(
        backbone=tiny.model.backbone,
        transformer=TransformerConfig(width=128, ffn_width=512, encoder_layers=3, decoder_layers=3, dropout=0.0),
        num_queries=50,
        text=WordTextConfig(),
        text_dropout=0.0,
        own_text_rate=False,
        conditional=True,
    )
    # Scenes name sides only with "left" and "right", so flipped captions stay true.
    augmentation = replace(CAUTIOUS, flip=True)
    data = GroundingDataConfig(**{**vars(tiny.data), "augmentation": augmentation})
    return GroundingPreset(name="mdetr-tiny", model=model, data=data, recipe=replace(tiny.recipe, best_by="auto"))
