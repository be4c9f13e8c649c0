"""A detector ready for use: images in, detections or panoptic maps out; and its score on a dataset.

Shape letters: B batch, H W image.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from opendetr.categories import Categories
from opendetr.config import ConfigError
from opendetr.data.images import ImageError
from opendetr.data.loader import eval_loader
from opendetr.data.records import DetectionData
from opendetr.data.transforms import evaluation_transform
from opendetr.distributed import best_device, rank, world_size
from opendetr.evaluation.detection import Evaluation
from opendetr.inference.evaluate import ResultSource, Stopwatch
from opendetr.inference.session import ImageSession, Session
from opendetr.inference.sources.prefetch import in_order
from opendetr.inference.sources.reading import Source, each_image, is_one_image, read_source
from opendetr.inference.sources.source_image import SourceImage
from opendetr.models.detector import Detector
from opendetr.postprocess import ImageMasks, Merge, candidates, detect_with_queries, image_masks
from opendetr.presets import (
    Preset,
    build_model,
    detector_alone,
    get_preset,
    list_models,
    preset_from_dict,
    published_weights,
)
from opendetr.results import Detections, Panoptic
from opendetr.structures import ImageBatch
from opendetr.weights import (
    WeightsError,
    fitting_part,
    in_our_layout,
    load_weights,
    local_file,
    read_card,
    read_state,
    require_classes,
    usual_categories,
)
from opendetr.weights.masks import has_masks

DETECTION_SCORE = 0.5
"""Detections that score less are left out, unless another threshold is given."""

_NUM_READERS = min(4, os.cpu_count() or 1)

Result = TypeVar("Result", Detections, Panoptic)


@dataclass(frozen=True)
class _Prepared:
    """An image and what the model is given of it, (3, h, w) normalised."""

    picture: SourceImage
    input: Tensor


class Predictor:
    """A model with everything that its use needs.

    Args:
        model: the detector.
        preset: gives the image sizes.
        categories: what the labels stand for.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        WeightsError: weights that are not finite.
    """

    def __init__(self, model: Detector, preset: Preset, categories: Categories, *, device: str = "auto") -> None:
        self.device = best_device(device)
        _require_finite(model)
        self.model = model.to(self.device).eval()
        self.preset = preset
        self.categories = categories
        self.session: Session = ImageSession(self.model)
        self._transform = evaluation_transform(preset.data)

    @overload
    def predict(
        self,
        source: Source | Iterable[Source],
        *,
        panoptic: Literal[False] = False,
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Detections | Iterator[Detections]: ...
    @overload
    def predict(
        self,
        source: Source | Iterable[Source],
        *,
        panoptic: Literal[True],
        merge: Merge = "default",
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Panoptic | Iterator[Panoptic]: ...
    def predict(
        self,
        source: Source | Iterable[Source],
        *,
        panoptic: bool = False,
        merge: Merge = "default",
        min_score: float | None = None,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Detections | Panoptic | Iterator[Detections] | Iterator[Panoptic]:
        """Find the objects in images; with their masks, where the model has a mask head.

        Of several images the next ones are read by threads while the model is at work, and no more of them than two
        batches are held. Only images of one size go through the model together, so that none is padded: what is found
        in an image does not depend on its neighbours, apart from the last bits of what the kernels round. Masks are
        computed for what is not left out, and brought to the size of the image one image at a time.

        Args:
            source: one image (path, http or https URL, PIL image, (H, W, 3) or (H, W) uint8 array, (3, H, W) tensor,
                uint8 or float in 0..1), or several (a folder, a pattern such as "photos/*.jpg", a video file, the
                number of a camera, a list of any of these).
            panoptic: give the thing or the stuff that every pixel belongs to, instead of detections.
            merge: the rule by which masks become a panoptic map (see `postprocess.panoptic_map`).
            min_score: what scores less is left out; when omitted, 0.5 for detections, and for panoptic maps 0.85, or
                0.4 where every class has a sigmoid of its own.
            class_min_scores: the same for single classes, by name; they go before `min_score`.
            batch_size: images that go through the model together, where there are several; a camera's go one by one.
            on_unreadable: called with one line for whatever of several cannot be read and is left out.

        Returns:
            Detections, or Panoptic, for one image, an iterator in the order of the images for several; each keeps
            its image for `plot`, where it came from in `source`, and the number of a video's frame in `frame`.

        Raises:
            DataError: nothing is there, or an image cannot be read.
            ConfigError: the detector knows no class of a name in `class_min_scores`, it has no mask head and a panoptic
                map is asked for, or a merge rule is given and no panoptic map is asked for.
        """
        usual = self.model.scoring.panoptic_score if panoptic else DETECTION_SCORE
        thresholds = self._thresholds(usual if min_score is None else min_score, class_min_scores or {})
        if panoptic:
            self._require_masks()
            merging = partial(self._panoptic, thresholds=thresholds, merge=merge)
            return self._predict(source, merging, batch_size, on_unreadable)
        if merge != "default":
            raise ConfigError(f"merge={merge!r} is a rule of panoptic maps: give panoptic=True, too, or leave it out")
        return self._predict(source, partial(self._detect, thresholds=thresholds), batch_size, on_unreadable)

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask head."""
        return self.model.has_masks

    def _require_masks(self) -> None:
        if not self.has_masks:
            raise ConfigError(
                "the detector has no mask head, so that it gives no panoptic map; use a model such as "
                "detr-tiny-panoptic, or detections without panoptic"
            )

    def _predict(
        self,
        source: Source | Iterable[Source],
        solve: Callable[[Sequence[_Prepared]], list[Callable[[], Result]]],
        batch_size: int,
        on_unreadable: Callable[[str], None] | None,
    ) -> Result | Iterator[Result]:
        if is_one_image(source):
            (finish,) = solve([self._prepare(source)])  # type: ignore[arg-type]
            return finish()
        images = each_image(source, on_unreadable)
        live = isinstance(source, int)
        return self._stream(images, solve, 1 if live else batch_size, on_unreadable)

    def _stream(
        self,
        sources: Iterator[Source],
        solve: Callable[[Sequence[_Prepared]], list[Callable[[], Result]]],
        batch_size: int,
        on_unreadable: Callable[[str], None] | None,
    ) -> Iterator[Result]:
        with (
            ThreadPoolExecutor(_NUM_READERS, "read") as pool,
            closing(in_order(pool, self._prepare, sources, batch_size)) as prepared,
        ):
            images = _readable(prepared, on_unreadable)
            while batch := list(islice(images, batch_size)):
                yield from _by_shape(batch, solve)

    def _prepare(self, source: Source) -> _Prepared:
        image = read_source(source)
        return _Prepared(image, self._transform.pixels(image.pixels))

    @torch.inference_mode()
    def _detect(self, batch: Sequence[_Prepared], thresholds: Tensor) -> list[Callable[[], Detections]]:
        """What finishes the detections of each image: masks of their own size, where the model has a mask head."""
        images, sizes = self._batch(batch)
        output = self.session.step(images)
        found = detect_with_queries(output.final, sizes, self.categories, min_score=thresholds)
        pictured = [_with_image(each.picture, some) for each, (some, _) in zip(batch, found, strict=True)]
        if not self.has_masks:
            return [partial(_unchanged, each) for each in pictured]
        masks = image_masks(output, images, sizes, queries=[queries for _, queries in found])
        return [partial(_with_masks, *each) for each in zip(pictured, masks, strict=True)]

    @torch.inference_mode()
    def _panoptic(self, batch: Sequence[_Prepared], thresholds: Tensor, merge: Merge) -> list[Callable[[], Panoptic]]:
        """What finishes the map of each image."""
        images, sizes = self._batch(batch)
        output = self.session.step(images)
        found = candidates(output.final, self.categories, min_score=thresholds, merge=merge)

        def finish(picture: SourceImage, masks: ImageMasks) -> Panoptic:
            return _with_image(picture, masks.panoptic(self.categories, merge=merge))

        pictures = [each.picture for each in batch]
        masks = image_masks(output, images, sizes, found=found)
        return [partial(finish, *each) for each in zip(pictures, masks, strict=True)]

    def _batch(self, batch: Sequence[_Prepared]) -> tuple[ImageBatch, Tensor]:
        """The model's input, and (B, 2) the sizes of the images."""
        images = ImageBatch.from_images([each.input for each in batch]).to(self.device)
        return images, torch.tensor([each.picture.pixels.shape[:2] for each in batch])

    def _thresholds(self, min_score: float, by_class: Mapping[str, float]) -> Tensor:
        """(K,) the least score of each class."""
        thresholds = torch.full((len(self.categories),), min_score)
        for name, least in by_class.items():
            labels = [label for label, known in enumerate(self.categories.names) if known == name]
            if not labels:
                near = difflib.get_close_matches(name, self.categories.names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(self.categories.names[:5])} ..."
                raise ConfigError(f"min score of {name!r}: the detector knows no such class; {hint}")
            thresholds[labels] = least
        return thresholds

    def evaluate(
        self,
        data: DetectionData,
        *,
        batch_size: int = 8,
        layers: bool = False,
        merge: Merge = "default",
        panoptic_score: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """The score on a dataset, classes paired by name.

        Boxes are scored always, masks where the model has a mask head and the data was read with masks, panoptic maps
        where it was read with these.

        Args:
            data: images with their objects.
            batch_size: images that go through the model together.
            layers: also score every decoder layer by itself.
            merge: the rule by which masks become a panoptic map, "default" or "published"; see
                `postprocess.panoptic_map`. The published one also makes the masks of instances as published.
            panoptic_score: queries that score less have no part in a panoptic map; the usual one when omitted.
            progress: called with images done and images in all.

        Raises:
            DataError: detector and data have no class in common, an image of the data is missing, or its masks are such
                that the score would be wrong.
        """
        num_layers = self.preset.model.transformer.decoder_layers if layers else None
        evaluator = self.preset.evaluator(self.categories, data, num_layers=num_layers)
        source = ResultSource(self.session, self.categories, evaluator, merge, panoptic_score)
        share = (rank(), world_size())
        loader = eval_loader(data, self.preset.data, batch_size=batch_size, share=share, device=self.device)
        watch, done = Stopwatch(), 0
        for batch in loader:
            results = source.results(batch, batch.images.to(self.device))
            evaluator.update(batch, watch.timed(results))
            done += len(batch)
            if progress:
                progress(done, len(data))
        evaluator.leave_out(loader.unreadable)
        evaluator.gather()
        loader.gather_skipped()
        return evaluator.evaluation(watch.seconds / max(done, 1), loader.unreadable.values())


def _require_finite(model: nn.Module) -> None:
    """Raise WeightsError for weights that hold NaN or infinity: they would predict nothing, without a message."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(
                f"{name}: holds values that are not finite, so the model cannot predict; use the weights of an earlier "
                "checkpoint, or train again with a lower learning rate"
            )


def _by_shape(
    batch: Sequence[_Prepared], solve: Callable[[Sequence[_Prepared]], list[Callable[[], Result]]]
) -> Iterator[Result]:
    """The results of a batch in its order; only inputs of one shape go through the model together."""
    places: dict[torch.Size, list[int]] = {}
    for place, each in enumerate(batch):
        places.setdefault(each.input.shape, []).append(place)
    finishing: dict[int, Callable[[], Result]] = {}
    for alike in places.values():
        finishing.update(zip(alike, solve([batch[place] for place in alike]), strict=True))
    return (finishing.pop(place)() for place in range(len(batch)))


def _with_masks(found: Detections, masks: ImageMasks) -> Detections:
    return replace(found, masks=masks.instances())


def _unchanged(found: Detections) -> Detections:
    return found


def _with_image(picture: SourceImage, found: Result) -> Result:
    """The result with the image that it was found in."""
    return replace(found, image=picture.pixels, source=picture.source, frame=picture.frame, time=picture.time)


def _readable(
    pictures: Iterable[Future[_Prepared]], on_unreadable: Callable[[str], None] | None
) -> Iterator[_Prepared]:
    for image in pictures:
        try:
            yield image.result()
        except ImageError as error:
            if on_unreadable is None:
                raise
            on_unreadable(str(error))


def load(
    source: str | Path,
    *,
    model: str | None = None,
    categories: Categories | None = None,
    device: str = "auto",
    strict_no_object: bool = False,
) -> Predictor:
    """A detector from a catalogue name, a run folder or a file of weights.

    Args:
        source: a name (its weights come with the package or are downloaded once), a run folder, a .safetensors or
            .pth file, a folder that transformers reads, an http(s) address, or "hf:owner/name".
        model: the catalogue's name of a file that does not say itself what it holds; or that of a detector without mask
            head, for a file that holds one around it.
        categories: of such a file; COCO's 91 rows when omitted, or COCO panoptic's 250 for a model with a mask head.
        device: "auto", "cpu", "cuda" or "mps".
        strict_no_object: leave out queries for which "no object" is the best answer, which the published rule does not.

    Raises:
        WeightsError, ConfigError: nothing there, or it does not fit; one line.

    Example:
        >>> detector = load("deformable-detr-tiny")
        >>> detector.categories.names[:3]
        ('disc', 'ring', 'crescent')
    """
    if str(source) in list_models():
        if model not in (None, str(source)):
            raise ConfigError(f"{source}: is a model of the catalogue, not {model}; leave the model out")
        found, model = published_weights(str(source)), str(source)
        if found is None:
            raise WeightsError(f"{source}: no weights of it are published; train it first, or name a file of weights")
        path = found
    else:
        path = local_file(source)
    card = read_card(path)
    state: Mapping[str, Tensor] = read_state(path)
    if card is not None:
        preset, known = preset_from_dict(card.config), card.categories
        if model not in (None, preset.name, preset.detector_name):
            raise ConfigError(f"{path}: holds {preset.name}, not {model}; leave the model out, or give another file")
        preset = preset if model in (None, preset.name) else detector_alone(preset)
    elif model is not None:
        preset = get_preset(model)
        known = categories or usual_categories(state)
    else:
        raise WeightsError(f"{path}: does not say which model it is; name it, for example model='detr-r50'")
    network = build_model(preset, len(known), strict_no_object=strict_no_object)
    if has_masks(state) and not preset.has_masks:  # the detector alone finds no stuff, but tells it from things
        state, known = fitting_part(network, state), known.only_things
    if card is None:
        ours = in_our_layout(network, state)
        require_classes(path, network, ours, len(known), num_others=network.num_logits - len(known))
    load_weights(network, state)
    return Predictor(network, preset, known, device=device)
