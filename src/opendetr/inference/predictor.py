"""The predictor: a model that predicts detections or panoptic maps from images and is evaluated on datasets.

Shape letters: B batch, H W image.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from numbers import Integral
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, TypeVar, cast, get_args, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from opendetr.categories import Categories
from opendetr.config import ConfigError, SettingError, near_name, require_range, some_of, suggesting
from opendetr.data import DetectionData, ImageError, Masks, PatchDataConfig, eval_loader
from opendetr.distributed import best_device, rank, together, usable_cpus, world_size
from opendetr.evaluation import Evaluation, Evaluator
from opendetr.export import export_huggingface, export_official
from opendetr.inference.evaluate import Stopwatch
from opendetr.inference.patches import Patches, read_patches
from opendetr.inference.sources.prefetch import in_order
from opendetr.inference.sources.reading import (
    Source,
    each_image,
    from_bgr,
    is_endless,
    is_one_image,
    plain_source,
    read_source,
)
from opendetr.inference.sources.source_image import SourceImage
from opendetr.inference.texts import TEXT_SCORE, Texts, answers, ground, read_texts
from opendetr.models import Detector, Session
from opendetr.postprocess import ImageMasks, Merge, candidates, detect_with_queries, image_masks, locate
from opendetr.presets import (
    Preset,
    build_model,
    detector_alone,
    get_preset,
    list_models,
    preset_from_dict,
    published_weights,
    weights_at,
)
from opendetr.recipe import DEFAULT_MODEL
from opendetr.results import Answer, Detections, Panoptic
from opendetr.scoring import ScoreThresholds
from opendetr.structures import Batch, ImageBatch, Output
from opendetr.weights import (
    WeightsError,
    fitting_part,
    has_masks,
    in_our_layout,
    load_weights,
    naming,
    read_card,
    read_state,
    require_classes,
)

DETECTION_SCORE = 0.5
"""The threshold of `Predictor.predict` for a model without stored thresholds."""

_TRAINING_ONLY = ("published", "imagenet", "none")  # what training can start from, besides weights files
_NUM_READERS = min(4, usable_cpus())

Result = TypeVar("Result", Detections, Panoptic, Answer)
Drawn = TypeVar("Drawn", Detections, Panoptic)


@dataclass(frozen=True)
class Prepared:
    """An image and the model input made from it, (3, h, w) normalised."""

    image: SourceImage
    input: Tensor


class Predictor:
    """A detector with its image transform, categories and device.

    Args:
        model: the detector.
        preset: defines the image transform and the evaluator.
        categories: the categories of the model's labels.
        device: "auto", "cpu", "cuda" or "mps".
        thresholds: the score thresholds of `predict`, for example those stored with the model.

    Raises:
        WeightsError: the weights contain values that are not finite.
    """

    def __init__(
        self,
        model: Detector,
        preset: Preset,
        categories: Categories,
        *,
        device: str = "auto",
        thresholds: ScoreThresholds | None = None,
    ) -> None:
        self.device = best_device(device)
        _require_finite(model)
        self.model = model.to(self.device).eval()
        self.preset = preset
        self.categories = categories
        self.thresholds = thresholds
        self._says_thresholds = True
        self.session: Session = preset.session(self.model)
        self._transform = preset.data.evaluation_transform()

    # A path can be one image or several. `| Any` lets a type checker accept both uses of the result.
    @overload
    def predict(
        self,
        source: np.ndarray | Tensor | Image.Image | SourceImage | bytes,
        *,
        text: str | Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        panoptic: Literal[False] = False,
        patches: Any = None,
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
        bgr: bool = False,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        source: str | Path,
        *,
        text: str | Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        panoptic: Literal[False] = False,
        patches: Any = None,
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
        bgr: bool = False,
    ) -> Detections | Any: ...
    @overload
    def predict(
        self,
        source: int | list[Any] | tuple[Source, ...] | Iterator[Source],
        *,
        text: str | Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        panoptic: Literal[False] = False,
        patches: Any = None,
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
        bgr: bool = False,
    ) -> Iterator[Detections]: ...
    @overload
    def predict(
        self,
        source: np.ndarray | Tensor | Image.Image | SourceImage | bytes,
        *,
        panoptic: Literal[True],
        merge: Merge = "default",
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
        bgr: bool = False,
    ) -> Panoptic: ...
    @overload
    def predict(
        self,
        source: str | Path,
        *,
        panoptic: Literal[True],
        merge: Merge = "default",
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
        bgr: bool = False,
    ) -> Any: ...
    @overload
    def predict(
        self,
        source: int | list[Any] | tuple[Source, ...] | Iterator[Source],
        *,
        panoptic: Literal[True],
        merge: Merge = "default",
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
        bgr: bool = False,
    ) -> Iterator[Panoptic]: ...
    @suggesting
    def predict(
        self,
        source: Source | Iterable[Source],
        *,
        text: str | Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        panoptic: bool = False,
        merge: Merge = "default",
        patches: Any = None,
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
        bgr: bool = False,
    ) -> Detections | Panoptic | Iterator[Detections] | Iterator[Panoptic]:
        """Predict the objects in images. Detections have masks if the model has a mask head.

        For several images, threads load the next images while the model runs. At most two batches are held in memory.
        Only images of equal input size form a batch, so no image is padded. The predictions for an image therefore do
        not depend on the other images of its batch, except for rounding in the last bits. Masks are computed only for
        detections above the threshold, and resized to the original image one image at a time.

        Args:
            source: one image: a path, an http or https URL, a PIL image, an array, uint8, (H, W, 3) RGB, (H, W, 4) RGB
                with transparency or (H, W) grey, a tensor, uint8 or float in 0..1, (3, H, W) RGB, or the content of an
                image file as bytes or an open file. Or several images: a folder, a pattern such as "photos/*.jpg", a
                video file, the index of a camera, the address of a stream ("rtsp://..."), a batch of arrays or
                tensors, or an iterable of any of these but cameras and streams. Arrays are RGB; those of OpenCV are
                BGR, see `bgr`. The EXIF orientation of files, URLs and PIL images is applied.
            text: what to detect, for a model that takes text: a sentence or a phrase. Each detection has the words that
                name it in `phrases`. With a list of texts, everything that any of them names is detected.
            classes: instead of a text, a list of class names, each of which is looked for on its own.
            panoptic: return a panoptic map instead of detections.
            merge: the rule that turns masks into a panoptic map (see `postprocess.panoptic_map`).
            patches: one or several images of what to locate, for a model that was pre-trained on patches. The result
                has a detection for each, in this order; its label is the index of the patch. `min_score` is 0 by
                default.
            min_score: predictions with a lower score are dropped. The default for detections is `thresholds`, with one
                line on standard error in the first call; 0.5 for a model without them, and 0.7 with a text. The default
                for panoptic maps is 0.85, or 0.4 if the model scores each class with a sigmoid.
            class_min_scores: thresholds of single classes by name. They take precedence over `min_score`.
            batch_size: images per forward pass if there are several. Camera images are always processed one by one.
            on_unreadable: called with a one-line message for each of several inputs that cannot be read. The input is
                skipped. If omitted, the first unreadable input raises DataError.
            bgr: arrays with three or four channels are BGR, as those of cv2.imread and cv2.VideoCapture are.

        Returns:
            For one image a Detections or Panoptic, for several an iterator of them in the order of the images. Each
            result keeps its image for `plot`, the origin of the image in `source` and the index of a video frame in
            `frame`.

        Raises:
            DataError: there is no image, or an image cannot be read.
            ConfigError: a threshold is not in 0..1, `class_min_scores` names a class that the detector does not have,
                `batch_size` is not a positive integer, `panoptic` is set and the model has no mask head, `merge` is
                not a rule, or is set without `panoptic`; a text or patches are given to a model that takes none, or are
                missing for one that needs them; a text is empty, or has no word that the model knows.
        """
        _require_batch_size(batch_size)
        _require_merge(merge)
        source = from_bgr(source) if bgr else source
        texts = read_texts(self.model, self.preset.name, text, classes)
        if texts is not None:
            if panoptic or merge != "default" or class_min_scores:
                raise ConfigError("panoptic, merge and class_min_scores do not apply to a text: leave them out")
            if patches is not None:
                raise ConfigError(f"patches: {self.preset.name} takes a text; leave them out")
            score = TEXT_SCORE if min_score is None else _score("min_score", min_score)
            return self._predict(source, partial(self._ground, texts=texts, min_score=score), batch_size, on_unreadable)
        if panoptic:
            self._require_masks()
        if patches is not None or self.model.max_patches:
            if class_min_scores:
                raise ConfigError("class_min_scores: patches have no classes; give min_score")
            if merge != "default":
                raise ConfigError(f"merge={merge!r} applies to panoptic maps, not to patches: leave it out")
            found = self._read_patches(patches)
            lowest = 0.0 if min_score is None else _score("min_score", min_score)
            locating = partial(self._locate, patches=found, min_score=lowest)
            return self._predict(source, locating, batch_size, on_unreadable, check=found.require_smaller_than)
        thresholds = self._thresholds(min_score, class_min_scores, panoptic=panoptic)
        if panoptic:
            merging = partial(self._panoptic, thresholds=thresholds, merge=merge)
            return self._predict(source, merging, batch_size, on_unreadable)
        if merge != "default":
            raise ConfigError(f"merge={merge!r} applies to panoptic maps only: set panoptic=True, too, or omit merge")
        return self._predict(source, partial(self._detect, thresholds=thresholds), batch_size, on_unreadable)

    __call__ = predict

    @suggesting
    def ask(
        self,
        source: Source | Iterable[Source],
        question: str,
        *,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Any:
        """Answer a question about images; the arguments are those of `predict`.

        Returns:
            For one image an Answer, for several an iterator of them in the order of the images.

        Raises:
            ConfigError: the model answers no questions, or the question is empty or has no word that the model knows.
            DataError: there is no image, or an image cannot be read.
        """
        _require_batch_size(batch_size)
        decode = self.preset.answer_decoder()
        if not isinstance(question, str):
            raise ConfigError(f"question={question!r}: give one question as text")
        read_texts(self.model, self.preset.name, question, None)

        def run_batch(batch: Sequence[Prepared]) -> list[Callable[[], Answer]]:
            with torch.inference_mode():
                found = answers(self.session, self.batch(batch)[0], question, decode)
            return [
                partial(replace, answer, source=item.image.source, frame=item.image.frame)
                for item, answer in zip(batch, found, strict=True)
            ]

        return self._predict(source, run_batch, batch_size, on_unreadable)

    def __repr__(self) -> str:
        return f"Predictor({self.preset.name}, {sum(self.categories.used)} classes, {self.device})"

    @property
    def names(self) -> tuple[str, ...]:
        """(K,) the names of the classes; a label is an index of it. "N/A" are labels that are never predicted."""
        return self.categories.names

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask head."""
        return self.model.has_masks

    def _require_masks(self) -> None:
        if not self.has_masks:
            raise ConfigError(
                "the detector has no mask head, so it cannot predict panoptic maps; use a model such as "
                "detr-tiny-panoptic, or predict without panoptic"
            )

    def _predict(
        self,
        source: Source | Iterable[Source],
        run_batch: Callable[[Sequence[Prepared]], list[Callable[[], Result]]],
        batch_size: int,
        on_unreadable: Callable[[str], None] | None,
        check: Callable[[SourceImage], None] | None = None,
    ) -> Result | Iterator[Result]:
        """Run a function on batches of images; `check` raises ImageError for an image that cannot be used."""
        prepare = partial(self.prepare, check=check)
        plain = plain_source(source)
        if is_one_image(plain):
            (finish,) = run_batch([prepare(plain)])  # type: ignore[arg-type]
            return finish()
        images = each_image(plain, on_unreadable)
        live = is_endless(plain)
        return self._stream(images, prepare, run_batch, 1 if live else batch_size, on_unreadable)

    def _stream(
        self,
        sources: Iterator[Source],
        prepare: Callable[[Source], Prepared],
        run_batch: Callable[[Sequence[Prepared]], list[Callable[[], Result]]],
        batch_size: int,
        on_unreadable: Callable[[str], None] | None,
    ) -> Iterator[Result]:
        with closing(prefetched(prepare, sources, batch_size, on_unreadable)) as images:
            while batch := list(islice(images, batch_size)):
                yield from _by_shape(batch, run_batch)

    def prepare(self, source: Source, check: Callable[[SourceImage], None] | None = None) -> Prepared:
        """Load an image and make the input of the model from it. Raises ImageError."""
        image = read_source(source)
        if check is not None:
            check(image)
        return Prepared(image, self._transform.pixels(image.pixels))

    @torch.inference_mode()
    def _detect(self, batch: Sequence[Prepared], thresholds: Tensor) -> list[Callable[[], Detections]]:
        """Run the model on a batch; return for each image a function that returns its detections.

        The function resizes the masks to the original image if the model has a mask head.
        """
        images, sizes = self.batch(batch)
        output = self._output(images)
        detected = detect_with_queries(output.final, sizes, self.categories, min_score=thresholds)
        results = [_with_image(item.image, result) for item, (result, _) in zip(batch, detected, strict=True)]
        if not self.has_masks:
            return [partial(_unchanged, result) for result in results]
        masks = image_masks(output, images, sizes, queries=[queries for _, queries in detected])
        return [partial(_with_masks, *pair) for pair in zip(results, masks, strict=True)]

    def _read_patches(self, patches: Any) -> Patches:
        """The patches of a user. Raises SettingError unless they are given to a model that takes them."""
        if not self.model.max_patches:
            raise SettingError(
                f"patches: {self.preset.name} takes none; leave them out, or use a model of `opendetr pretrain`"
            )
        if patches is None:
            raise SettingError(
                f"{self.preset.name}: locates patches, and needs at least one: --patch (in Python patches=[...]); to "
                "detect objects, train a detector from its weights"
            )
        data = cast(PatchDataConfig, self.preset.data)  # of every model that takes patches
        found = read_patches(patches, data.patch_input, self.model.max_patches)
        return replace(found, inputs=found.inputs.to(self.device))

    @torch.inference_mode()
    def _locate(self, batch: Sequence[Prepared], patches: Patches, min_score: float) -> list[Callable[[], Detections]]:
        """Run the model on a batch; return for each image a function that returns the places of the patches."""
        images, sizes = self.batch(batch)
        output = self.session.step(images, patches.inputs)
        located = locate(output.final, sizes, patches.categories, min_score=min_score)
        return [
            partial(_unchanged, _with_image(item.image, result)) for item, result in zip(batch, located, strict=True)
        ]

    @torch.inference_mode()
    def _ground(self, batch: Sequence[Prepared], texts: Texts, min_score: float) -> list[Callable[[], Detections]]:
        """Run the model on a batch and each text; return for each image a function that returns its detections."""
        finish = ground(self.session, *self.batch(batch), texts, min_score)
        return [partial(_finished, item.image, own) for item, own in zip(batch, finish, strict=True)]

    @torch.inference_mode()
    def _panoptic(self, batch: Sequence[Prepared], thresholds: Tensor, merge: Merge) -> list[Callable[[], Panoptic]]:
        """Run the model on a batch; return for each image a function that returns its panoptic map."""
        images, sizes = self.batch(batch)
        output = self._output(images)
        chosen = candidates(output.final, self.categories, min_score=thresholds, merge=merge)

        def finish(image: SourceImage, masks: ImageMasks) -> Panoptic:
            return _with_image(image, masks.panoptic(self.categories, merge=merge))

        masks = image_masks(output, images, sizes, found=chosen)
        return [partial(finish, item.image, item_masks) for item, item_masks in zip(batch, masks, strict=True)]

    def _output(self, images: ImageBatch) -> Output:
        """The output of the model for images that do not belong to a video."""
        self.session.reset()
        return self.session.step(images)

    def batch(self, batch: Sequence[Prepared]) -> tuple[ImageBatch, Tensor]:
        """The model input, and the original sizes (B, 2), height and width in pixels."""
        images = ImageBatch.from_images([item.input for item in batch]).to(self.device)
        return images, torch.tensor([item.image.pixels.shape[:2] for item in batch])

    def _thresholds(self, min_score: float | None, by_class: Mapping[str, float] | None, *, panoptic: bool) -> Tensor:
        """(K,) the score threshold of each class."""
        thresholds = self._default_thresholds(panoptic=panoptic)
        if min_score is not None:
            thresholds = torch.full((len(self.categories),), _score("min_score", min_score))
        elif self.thresholds and not panoptic:
            self._say_thresholds()
        by_class = {} if by_class is None else by_class
        if not isinstance(by_class, Mapping):
            raise ConfigError(
                f"class_min_scores is a {type(by_class).__name__}; give a dict such as {{{self.names[0]!r}: 0.3}}"
            )
        for name, threshold in by_class.items():
            if not isinstance(name, str):
                raise ConfigError(
                    f"class_min_scores: {name!r} is not the name of a class; give names, such as {self._named(name)}"
                )
            labels = [label for label, known in enumerate(self.categories.names) if known == name]
            if not labels:
                names = [known for known, used in zip(self.names, self.categories.used, strict=True) if used]
                near = near_name(name, names)
                hint = f"did you mean {near!r}?" if near else f"it has {some_of(names)}"
                raise SettingError(f"min score of {name!r}: the detector has no such class; {hint}")
            thresholds[labels] = _score(f"class_min_scores[{name!r}]", threshold)
        return thresholds

    def _default_thresholds(self, *, panoptic: bool) -> Tensor:
        """(K,) the score threshold of each class if the caller gives none."""
        if panoptic or self.thresholds is None:
            return torch.full(
                (len(self.categories),), self.model.scoring.panoptic_score if panoptic else DETECTION_SCORE
            )
        return torch.tensor([self.thresholds.of(name) for name in self.categories.names])

    def _say_thresholds(self) -> None:
        """Say once that the scores of predictions have the stored thresholds, and which classes have none."""
        if self._says_thresholds and self.thresholds is not None:
            names = [name for name, used in zip(self.names, self.categories.used, strict=True) if used]
            origin = "stored with the model (best F1 on its validation images)"
            line = f"score thresholds: {self.thresholds.describe(names, origin)}; a min score replaces them"
            print(line, file=sys.stderr)
            self._says_thresholds = False

    def open_split(self, folder: str | Path, split: str | None = None, *, masks: Masks | None = None) -> DetectionData:
        """The split of a dataset folder to evaluate the detector on. The arguments are those of `evaluate`.

        Raises:
            DataError: the folder is not a dataset, or does not have the split or the masks.
            ConfigError: `masks` is set and the model has no mask head.
        """
        config = self.preset.data
        if masks not in (None, "none") and not self.has_masks:
            raise ConfigError("masks: the model has no mask head, only boxes are evaluated: leave it out")
        return config.open_split(Path(folder), split or config.val_split or "val", masks)

    def class_differences(self, data: DetectionData) -> list[str]:
        """Lines about classes that the dataset spells differently than the detector, or that the detector lacks."""
        return self.preset.class_differences(self.categories, data)

    def _named(self, label: Any) -> str:
        """The name of a label for a message, or of the first class for what is not a label."""
        known = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.names)
        return repr(self.names[label if known else 0])

    @suggesting
    def evaluate(
        self,
        data: DetectionData | str | Path,
        *,
        split: str | None = None,
        masks: Masks | None = None,
        batch_size: int = 8,
        layers: bool = False,
        merge: Merge = "default",
        panoptic_score: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """Evaluate the detector on a dataset. Classes of model and dataset are paired by name.

        Boxes are always evaluated. Masks are evaluated if the model has a mask head and the dataset was loaded with
        masks, panoptic maps if the dataset was also loaded with panoptic maps.

        Args:
            data: a dataset folder, or the images of a split and their annotations.
            split: the split of the folder to evaluate on. Default: that of the run, else "val".
            masks: the masks of the folder to evaluate against, as in `DataConfig.masks`. Default: as the model was
                trained.
            batch_size: images per forward pass.
            layers: also evaluate each decoder layer.
            merge: the rule that turns masks into a panoptic map, "default" or "published"; see
                `postprocess.panoptic_map`. It applies to instance masks as well; see `postprocess.instance_masks`.
            panoptic_score: queries with a lower score do not take part in a panoptic map. None: the model's default.
            progress: called with the number of evaluated images and the number of all images.

        Raises:
            DataError: the folder is not a dataset, detector and dataset have no class in common, an image of the
                dataset is missing, or its masks would make a metric wrong.
            ConfigError: a number is out of its range, or an argument has no effect: `masks`, `merge` or
                `panoptic_score` without a mask head or such masks, `split` or `masks` without a folder.
        """
        _require_batch_size(batch_size)
        _require_merge(merge)
        require_range("panoptic_score", panoptic_score, 0, 1)
        if isinstance(data, DetectionData):
            if split is not None or masks is not None:
                raise ConfigError("split and masks apply to a dataset folder: leave them out, or give the folder")
        else:
            data = self.open_split(data, split, masks=masks)
        if merge != "default" and data.masks == "none":
            raise ConfigError("merge: the dataset was loaded without masks, only boxes are evaluated: leave it out")
        if panoptic_score is not None and data.masks != "panoptic":
            raise ConfigError("panoptic_score: the dataset was loaded without panoptic maps: leave it out")
        num_layers = self.preset.model.transformer.decoder_layers if layers else None
        options = {"num_layers": num_layers, "merge": merge, "panoptic_score": panoptic_score}
        evaluator = self.preset.evaluator(self.categories, data, **options)
        seconds, unreadable = self.run(evaluator, data, batch_size=batch_size, progress=progress)
        return evaluator.evaluation(seconds, unreadable)

    def metrics(
        self, data: DetectionData, *, batch_size: int = 8, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float | None]:
        """The metrics of the preset's evaluator on a dataset, by name; the arguments are those of `evaluate`."""
        evaluator = self.preset.evaluator(self.categories, data)
        self.run(evaluator, data, batch_size=batch_size, progress=progress)
        return evaluator.compute()

    def run(
        self,
        evaluator: Evaluator,
        data: DetectionData,
        *,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
        logged: set[str] | None = None,
    ) -> tuple[float, list[str]]:
        """Collect the predictions for a dataset in an evaluator, in all processes together. It computes no metrics.

        Args:
            evaluator: collects the predictions.
            data: the images of a split and their annotations.
            batch_size: images per forward pass.
            progress: called with the number of evaluated images and the number of all images.
            logged: messages about unreadable images that have been logged already. New ones are added.

        Returns:
            The mean seconds per image of the model and its post-processing; and one message per unreadable image.
        """
        preset, share = self.preset, (rank(), world_size())
        watch, done = Stopwatch(), 0
        with together():
            loader = eval_loader(
                data, preset.data, batch_size=batch_size, share=share, device=self.device, logged=logged
            )
            for group in loader.groups():
                self.session.reset()
                for batch in group:
                    evaluator.update(batch, watch.timed(self._results(evaluator, batch)))
                    done += len(batch)
                    if progress:  # the other processes are about as far
                        progress(min(done * share[1], len(data)), len(data))
            evaluator.leave_out(loader.unreadable)
        evaluator.gather()
        loader.gather_skipped()
        return watch.seconds / max(done, 1), list(loader.unreadable.values())

    @torch.inference_mode()
    def _results(self, evaluator: Evaluator, batch: Batch) -> Iterator[Any]:
        images = batch.images.to(self.device)
        output = self.session.step(images, self.preset.prompt(batch))
        yield from evaluator.results(output, images, batch)

    def export(self, out: str | Path, format: Literal["huggingface", "official"] = "huggingface") -> Path:
        """Write the detector for other software, as `opendetr export` does.

        Args:
            out: a new folder for "huggingface", which transformers loads with `from_pretrained`; a new file for
                "official", a checkpoint of the original implementation.
            format: the layout.

        Returns:
            The path that was written.

        Raises:
            ConfigError: the path exists, the format is unknown, or the other software does not support the model.
        """
        path = Path(out)
        if format == "huggingface":
            export_huggingface(self.model, self.preset, self.categories, path, thresholds=self.thresholds)
        elif format == "official":
            export_official(self.model, self.preset, path)
        else:
            raise ConfigError(f"format: expected huggingface or official, got {format!r}")
        return path


def _score(name: str, value: Any) -> float:
    """A threshold as a float. Raises ConfigError if it is not a number in 0..1."""
    try:
        score = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        score = math.nan
    if math.isnan(score):
        raise ConfigError(f"{name}={shorten(repr(value), 40)}: give a number in 0..1")
    require_range(name, score, 0, 1)
    return score


def _require_batch_size(batch_size: Any) -> None:
    """Raise ConfigError unless it is a positive integer: with 0 there would silently be no results."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral):
        raise ConfigError(f"batch_size={batch_size!r}: give an integer of at least 1")
    require_range("batch_size", int(batch_size), 1)


def _require_merge(merge: Any) -> None:
    """Raise ConfigError unless it is one of the rules."""
    if merge not in get_args(Merge):
        raise ConfigError(f"merge={merge!r}: give {' or '.join(map(repr, get_args(Merge)))}")


def _require_finite(model: nn.Module) -> None:
    """Raise WeightsError if the weights contain NaN or infinity: the model would silently predict nothing."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(
                f"{name}: holds values that are not finite, so the model cannot predict; use the weights of an earlier "
                "checkpoint, or train again with a lower learning rate"
            )


def _by_shape(
    batch: Sequence[Prepared], run_batch: Callable[[Sequence[Prepared]], list[Callable[[], Result]]]
) -> Iterator[Result]:
    """The results of a batch, in its order. Each forward pass takes inputs of one shape only."""
    groups: dict[torch.Size, list[int]] = {}
    for position, item in enumerate(batch):
        groups.setdefault(item.input.shape, []).append(position)
    finish: dict[int, Callable[[], Result]] = {}
    for positions in groups.values():
        finish.update(zip(positions, run_batch([batch[position] for position in positions]), strict=True))
    return (finish.pop(position)() for position in range(len(batch)))


def _with_masks(detections: Detections, masks: ImageMasks) -> Detections:
    return replace(detections, masks=masks.instances())


def _finished(image: SourceImage, finish: Callable[[], Detections]) -> Detections:
    return _with_image(image, finish())


def _unchanged(detections: Detections) -> Detections:
    return detections


def _with_image(image: SourceImage, result: Drawn) -> Drawn:
    """The result together with its image."""
    return replace(result, image=image.pixels, source=image.source, frame=image.frame, time=image.time)


def prefetched(
    prepare: Callable[[Source], Prepared],
    sources: Iterator[Source],
    ahead: int,
    on_unreadable: Callable[[str], None] | None,
) -> Generator[Prepared]:
    """Yield the images of the sources in order, while threads prepare the next ones.

    Args:
        prepare: loads an image; see `Predictor.prepare`.
        sources: the images.
        ahead: number of images to prefetch.
        on_unreadable: called with a one-line message for each image that cannot be read. Without it, ImageError is
            raised.
    """
    with (
        ThreadPoolExecutor(_NUM_READERS, "read") as pool,
        closing(in_order(pool, prepare, sources, ahead)) as futures,
    ):
        for future in futures:
            try:
                image = future.result()
            except ImageError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(str(error))
            else:
                yield image


def _without_training_words(source: str | Path, model: str | None) -> str | Path:
    """The source, or the model for "published". Raises WeightsError for other words that only training knows."""
    if str(source) not in _TRAINING_ONLY or Path(source).exists():
        return source
    if source == "published" and model is not None:
        return model
    raise WeightsError(f"{source}: is for training only; give a model of the catalogue, a run folder or a weights file")


@suggesting
def load(
    source: str | Path = DEFAULT_MODEL,
    *,
    model: str | None = None,
    categories: Categories | None = None,
    device: str = "auto",
    strict_no_object: bool = False,
) -> Predictor:
    """Load a detector from a catalogue name, a run folder or a weights file.

    Args:
        source: a catalogue name (its weights are part of the package or are downloaded once), a run folder, a
            .safetensors or .pth file, a folder that transformers can load, an http(s) URL, or "hf:owner/name". The
            default is that of the command line, a detector of the package that knows drawn shapes.
        model: the catalogue name, for a weights file that does not name its model. For weights with a mask head, the
            name of the detector alone drops the mask head.
        categories: the categories, for a weights file that does not contain them. The default is COCO's 91
            categories, or COCO panoptic's 250 for a model with a mask head.
        device: "auto", "cpu", "cuda" or "mps".
        strict_no_object: drop queries whose most probable class is "no object". The published rule keeps them.

    Raises:
        WeightsError, ConfigError: there are no such weights, or they do not fit the model. The message is one line.

    Example:
        >>> detector = load("deformable-detr-tiny")
        >>> detector.categories.names[:3]
        ('disc', 'ring', 'crescent')
    """
    source = _without_training_words(source, model)
    if str(source) in list_models():
        if model not in (None, str(source)):
            raise ConfigError(f"{source}: is a model of the catalogue, not {model}; leave the model out")
        published, model = published_weights(str(source)), str(source)
        if published is None:
            raise WeightsError(f"{source}: has no published weights; train it first, or give a weights file")
        path = published
    else:
        path = weights_at(source)
    card = read_card(path)
    state: Mapping[str, Tensor] = read_state(path)
    if card is not None:
        preset, known = preset_from_dict(card.config), card.categories
        if model not in (None, preset.name, preset.detector_name):
            raise ConfigError(f"{path}: holds {preset.name}, not {model}; leave the model out, or give another file")
        preset = preset if model in (None, preset.name) else detector_alone(preset)
    elif model is not None:
        preset = get_preset(model)
        known = categories or preset.categories_of(state)
    else:
        raise WeightsError(f"{path}: does not name its model; give --model (in Python model=...), such as detr-r50")
    network = build_model(preset, preset.num_classes(known), strict_no_object=strict_no_object)
    if card is None and not network.class_rows:  # the classes of the model are not fixed
        known = categories or preset.published_categories()
    if has_masks(state) and not preset.has_masks:  # the detector alone predicts things, not stuff
        state, known = fitting_part(network, state), known.only_things
    if card is None:
        with naming(path):
            ours = in_our_layout(network, state)
        require_classes(path, network, ours, len(known), num_others=network.num_logits - len(known))
    with naming(path):
        load_weights(network, state)
    thresholds = card.thresholds if card else None
    return Predictor(network, preset.of_classes(known), known, device=device, thresholds=thresholds)
