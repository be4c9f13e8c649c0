"""The Preset class, and the functions that build a model and a task from a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

from torch import Tensor

from opendetr.categories import Categories, coco_categories, coco_panoptic_categories
from opendetr.config import ConfigError, MissingPackageError, SettingError
from opendetr.data import CAPTION, AnswerDecoder, DataConfig, DetectionData
from opendetr.evaluation import DetectionEvaluator, Evaluator, class_differences, headline_names, metric_names
from opendetr.losses import (
    CriterionConfig,
    DenseConfig,
    DenseSupervision,
    MaskCriterionConfig,
    MaskLoss,
    MatcherConfig,
    SetCriterion,
    SigmoidFocalClassification,
)
from opendetr.models import (
    Detector,
    DETRConfig,
    ImageSession,
    MaskedDetector,
    MaskHeadConfig,
    ModelConfig,
    Session,
    TrackerConfig,
)
from opendetr.recipe import Recipe
from opendetr.structures import Batch
from opendetr.tasks import DetectionTask, MaskHeadTask, Task
from opendetr.weights import usual_categories


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The configuration of a model and its training, as one tree.

    A family member that differs in more than settings has a subclass. It overrides `build_model`, `build_task`,
    `categories_of`, `without_extras`, `trained_from_nothing`, `advice`, `fitted`, `trained_into` and `untransferred`
    (training), `session`, `prompt`, `example`, `follows_objects` and `of_classes` (inference), `evaluator`, `metrics`,
    `headlines` and `draws_predictions` (evaluation; without `metrics`, a run is not evaluated), or `miniature`, if its
    model config has other fields.

    Attributes:
        name: the catalogue's name of the model.
        model: architecture of the detector.
        masks: mask head, if it is enabled.
        without_masks: the catalogue's name of the same detector without a mask head; None if it has no mask head.
        freeze_detector: whether to train only the mask head and keep the detector fixed.
        criterion: set loss.
        mask_criterion: mask losses, used if the model has a mask head.
        dense: dense supervision of the encoder, off by default as in the published models.
        data: image sizes and augmentation.
        recipe: optimizer, schedule and length of the training.
    """

    name: str
    model: ModelConfig = field(default_factory=DETRConfig)
    masks: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    without_masks: str | None = None
    freeze_detector: bool = False
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    mask_criterion: MaskCriterionConfig = field(default_factory=MaskCriterionConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if self.model.num_queries < 1:
            raise ValueError(f"model.num_queries: expected at least 1, got {self.model.num_queries}")
        off = MaskHeadConfig()
        if not self.has_masks and self.masks != off:
            name = next(name for name, value in vars(self.masks).items() if value != getattr(off, name))
            raise ValueError(f"masks.{name} is set, but the model has no mask head; set masks.enabled to true")
        if self.freeze_detector and not self.has_masks:
            raise ValueError(
                f"{self.name}: has no mask head to train; choose another model or set masks.enabled to true"
            )

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask head."""
        return self.masks.enabled

    @property
    def detector_name(self) -> str:
        """The catalogue's name of the detector without its mask head."""
        return self.without_masks or self.name

    def can_start_from(self, other: Preset) -> bool:
        """Whether the model can start from the weights of another one, of another family."""
        return False

    def like_trained(self, other: Preset) -> Self:
        """The preset with the architecture and the image size of the weights that it starts from."""
        return replace(self, model=other.model, data=self.data.sized_like(other.data))

    def num_classes(self, categories: Categories) -> int:
        """K for a dataset, the number of classes that the model distinguishes."""
        return len(categories)

    def published_categories(self) -> Categories:
        """The classes of the published weights: COCO panoptic with a mask head, else COCO."""
        return coco_panoptic_categories() if self.has_masks else coco_categories()

    def categories_of(self, state: Mapping[str, Tensor]) -> Categories:
        """The classes of weights in any layout that do not name their classes."""
        return usual_categories(state)

    def build_model(self, num_classes: int, *, strict_no_object: bool = False) -> Detector:
        """The model, randomly initialised; see the function `build_model`."""
        scoring = self.criterion.classification.scoring()
        if strict_no_object:
            try:
                scoring = scoring.strictly()
            except ValueError as error:
                raise ConfigError(f"{self.name}: {error}") from None
        num_logits = scoring.num_logits(num_classes)
        try:
            if not self.has_masks:
                return self.model.build(num_logits, scoring)
            return self.masks.build(self.model, num_logits, scoring)
        except MissingPackageError as error:
            raise MissingPackageError(f"{self.name}: {error.what}", error.package) from None
        except ValueError as error:
            raise ConfigError(f"{self.name}: {error}") from None

    def build_task(self, model: Detector, num_classes: int) -> Task:
        """The model with its losses, ready for the trainer."""
        criterion = SetCriterion(self.criterion)
        masks = MaskLoss(self.mask_criterion) if self.has_masks else None
        if self.freeze_detector:
            return MaskHeadTask(cast(MaskedDetector, model), criterion, cast(MaskLoss, masks))
        dense = None
        if self.dense.weight > 0:
            dense = DenseSupervision(self.dense, self.model.transformer.width, num_classes)
        return DetectionTask(model, criterion, dense, masks)

    def trained_from_nothing(self) -> Self:
        """The preset for training from scratch; see the function `trained_from_nothing`."""
        return replace(
            self,
            model=replace(self.model, backbone=self.model.backbone.trained_from_nothing()),
            dense=replace(self.dense, weight=1.0),
            recipe=replace(self.recipe, backbone_learning_rate=self.recipe.learning_rate),
        )

    def without_extras(self) -> Self:
        """The preset with other parts in place of those that need an optional package. It has the same inputs."""
        return self

    def session(self, model: Detector) -> Session:
        """The session that runs the model at inference."""
        return ImageSession(model)

    @property
    def example(self) -> str:
        """The command that uses the model, as an example without its weights: its name, its input and other options."""
        return "predict photo.jpg"

    @property
    def follows_objects(self) -> bool:
        """Whether `session` is a TrackingSession, which gives the objects of a video ids."""
        return False

    def with_tracker(self, config: TrackerConfig) -> Self:
        """The preset with other thresholds for tracks. Raises ConfigError if the model follows no objects."""
        raise ConfigError(f"{self.name}: is a detector, which follows no objects")

    def of_classes(self, categories: Categories) -> Self:
        """The preset for a model of these classes."""
        return self

    def trained_into(self) -> tuple[str, ModelConfig] | None:
        """The name and the architecture of the detector that is trained from the weights of this model.

        None for a model that is itself trained on annotated images.
        """
        return None

    @property
    def untransferred(self) -> tuple[str, ...]:
        """The parts of a pre-training model that are of no use to a detector, besides its class head."""
        return ()

    def advice(self, data: DetectionData) -> str | None:
        """What the model cannot learn from this training data, and what to do, for the user; None if nothing."""
        if self.uses_annotations and any(CAPTION in image.extras for image in data.images):
            return (
                "the images have captions: an image appears once per caption, only with the objects that the caption "
                "names; train a model that takes text, such as mdetr-tiny, or give one entry per image with all objects"
            )
        return None

    def fitted(self, model: Detector, data: DetectionData, num_images: int | None = None) -> Self:
        """The preset with the settings of inference that suit the weights of a model, chosen on training data.

        A run calls it before each evaluation, in all processes together. By default there are no such settings.

        Args:
            model: the model in evaluation mode, on its device.
            data: the training data.
            num_images: maximum number of images to use; None for as many as needed.
        """
        return self

    @property
    def uses_annotations(self) -> bool:
        """Whether the model is trained on annotated images. Pre-training is not."""
        return self.trained_into() is None

    @property
    def draws_predictions(self) -> bool:
        """Whether a training run draws predictions for some validation images, from the image and its caption."""
        return True

    def prompt(self, batch: Batch) -> Any:
        """The input of the session besides images, for an evaluation batch; None for models that take no prompt."""
        return None

    def answer_decoder(self) -> AnswerDecoder:
        """The function that turns the best output of each answer head into an answer; see `AnswerDecoder`.

        Raises:
            ConfigError: the model answers no questions.
        """
        raise SettingError(f"{self.name} answers no questions; use a model that does, such as mdetr-r101-gqa")

    def evaluator(self, categories: Categories, data: DetectionData, **options: Any) -> Evaluator:
        """The evaluator of the model on a dataset; see `DetectionEvaluator` for the options."""
        return DetectionEvaluator(categories, data, has_masks=self.has_masks, **options)

    def class_differences(self, categories: Categories, data: DetectionData) -> list[str]:
        """Lines about classes that the dataset spells differently than the model, or that the model does not have."""
        return class_differences(categories, data)

    def metrics(self, data: DetectionData) -> list[str]:
        """The names of the metrics that the evaluator computes on a dataset, the main one first."""
        return metric_names(data, has_masks=self.has_masks)

    def headlines(self, data: DetectionData) -> tuple[str, ...]:
        """The names of the metrics shown in progress lines and curves."""
        return headline_names(data, has_masks=self.has_masks)

    def miniature(self) -> Self:
        """The preset with smaller sizes, for tests. The components stay the same."""
        model: Any = self.model  # every model config has these fields
        transformer = replace(
            model.transformer, width=32, num_heads=4, ffn_width=32, encoder_layers=2, decoder_layers=2
        )
        return replace(
            self,
            model=replace(model, backbone=model.backbone.miniature(), transformer=transformer, num_queries=12),
            data=replace(self.data.resized(64), num_workers=0),
            recipe=replace(self.recipe, batch_size=2, epochs=1),
        )


FOCAL_CRITERION = CriterionConfig(
    classification=SigmoidFocalClassification(), matcher=MatcherConfig(class_cost=2.0), class_weight=2.0
)


def trained_from_nothing(preset: Preset) -> Preset:
    """Adapt a preset to training from scratch, with a randomly initialised backbone.

    The backbone gets trainable batch norm, no frozen stages and the full learning rate. Dense supervision of the
    encoder is switched on.
    """
    return preset.trained_from_nothing()


def with_frozen_detector(preset: Preset) -> Preset:
    """Adapt a preset to training only the mask head for 25 epochs, with a frozen detector (DETR, section 4.2).

    Raises:
        ConfigError: the model has no mask head.
    """
    if not preset.has_masks:
        raise ConfigError(
            f"{preset.name}: has no mask head to train; choose another model or set masks.enabled to true"
        )
    return replace(preset, freeze_detector=True, recipe=replace(preset.recipe, epochs=25, step_at=15 / 25))


def build_model(preset: Preset, num_classes: int, *, strict_no_object: bool = False) -> Detector:
    """The model of a preset, randomly initialised.

    Args:
        preset: the architecture.
        num_classes: K, number of classes.
        strict_no_object: see `SoftmaxNoObject.strict`.

    Raises:
        ConfigError: `strict_no_object` is set and the model has no "no object" class, or settings of the
            architecture do not fit each other.
    """
    return preset.build_model(num_classes, strict_no_object=strict_no_object)


def build_task(preset: Preset, model: Detector, num_classes: int) -> Task:
    """The task of a preset: the model with its losses, ready for the trainer."""
    return preset.build_task(model, num_classes)
