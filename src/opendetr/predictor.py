"""A detector ready for use: pictures in, detections out; and its score on a data set.

Shape letters: B batch, H W image.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opendetr.categories import Categories, coco_categories
from opendetr.config import ConfigError
from opendetr.data.images import ImageError
from opendetr.data.loader import eval_loader
from opendetr.data.records import DataError, DetectionData
from opendetr.data.transforms import evaluation_transform
from opendetr.distributed import best_device, rank, world_size
from opendetr.evaluation import CocoEvaluator
from opendetr.models.detector import Detector
from opendetr.postprocess import detect
from opendetr.presets import Preset, build_model, get_preset, list_models, preset_from_dict, published_weights
from opendetr.sources.ahead import in_order
from opendetr.sources.picture import Picture
from opendetr.sources.reading import Source, each_picture, is_one_picture, read_picture
from opendetr.structures import Detections, ImageBatch
from opendetr.weights import WeightsError, load_weights, local_file, read_card, read_state

_NUM_READERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class _Prepared:
    """A picture and what the model is given of it, (3, h, w) normalised."""

    picture: Picture
    input: Tensor


@dataclass(frozen=True)
class Evaluation:
    """A detector's score on a data set.

    Attributes:
        metrics: the twelve COCO numbers; None where no object of the kind exists.
        per_class: AP of each class.
        per_layer: AP of each decoder layer, first to last; empty unless asked for.
        seconds_per_image: of model and post-processing, loading left out.
        results: rows of a COCO results file.
        unreadable: images that could not be read; they count as without detections.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    per_layer: tuple[float | None, ...]
    seconds_per_image: float
    results: list[dict[str, Any]]
    unreadable: tuple[str, ...]


class Predictor:
    """A model with everything that its use needs.

    Args:
        model: the detector.
        preset: gives the image sizes.
        categories: what the labels stand for.
        device: "auto", "cpu", "cuda" or "mps".
    """

    def __init__(self, model: Detector, preset: Preset, categories: Categories, *, device: str = "auto") -> None:
        self.device = best_device(device)
        self.model = model.to(self.device).eval()
        self.preset = preset
        self.categories = categories
        self._transform = evaluation_transform(preset.data)

    def predict(
        self,
        source: Source | Iterable[Source],
        *,
        min_score: float = 0.5,
        class_min_scores: Mapping[str, float] | None = None,
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Detections | Iterator[Detections]:
        """Find the objects in pictures.

        Of several pictures the next ones are read by threads while the model is at work, and no more of them than two
        batches are held. Only pictures of one size go through the model together, so that none is padded: what is found
        in a picture does not depend on its neighbours, apart from the last bits of what the kernels round.

        Args:
            source: one picture (path, http or https URL, PIL image, (H, W, 3) or (H, W) uint8 array, (3, H, W) tensor,
                uint8 or float in 0..1), or several (a folder, a pattern such as "photos/*.jpg", a video file, the
                number of a camera, a list of any of these).
            min_score: detections below it are left out.
            class_min_scores: the same for single classes, by name; they go before `min_score`.
            batch_size: pictures that go through the model together, where there are several; a camera's go one by one.
            on_unreadable: called with one line for whatever of several cannot be read and is left out.

        Returns:
            Detections for one picture, an iterator in the order of the pictures for several; each keeps its picture for
            `plot`, where it came from in `source`, and the number of a video's frame in `frame`.

        Raises:
            DataError: nothing is there, or a picture cannot be read.
            ConfigError: the detector knows no class of a name in `class_min_scores`.
        """
        thresholds = self._thresholds(min_score, class_min_scores or {})
        if is_one_picture(source):
            return self._detect([self._prepare(source)], thresholds)[0]  # type: ignore[arg-type]
        pictures = each_picture(source, on_unreadable)
        live = isinstance(source, int)
        return self._stream(pictures, thresholds, 1 if live else batch_size, on_unreadable)

    def _stream(
        self,
        sources: Iterator[Source],
        thresholds: Tensor,
        batch_size: int,
        on_unreadable: Callable[[str], None] | None,
    ) -> Iterator[Detections]:
        with (
            ThreadPoolExecutor(_NUM_READERS, "read") as pool,
            closing(in_order(pool, self._prepare, sources, batch_size)) as prepared,
        ):
            pictures = _readable(prepared, on_unreadable)
            while batch := list(islice(pictures, batch_size)):
                yield from self._detect_by_shape(batch, thresholds)

    def _prepare(self, source: Source) -> _Prepared:
        picture = read_picture(source)
        return _Prepared(picture, self._transform.pixels(picture.pixels))

    def _detect_by_shape(self, batch: Sequence[_Prepared], thresholds: Tensor) -> Iterator[Detections]:
        """The detections of a batch in its order; only inputs of one shape go through the model together."""
        places: dict[torch.Size, list[int]] = {}
        for place, each in enumerate(batch):
            places.setdefault(each.input.shape, []).append(place)
        found: dict[int, Detections] = {}
        for alike in places.values():
            found.update(zip(alike, self._detect([batch[place] for place in alike], thresholds), strict=True))
        return (found[place] for place in range(len(batch)))

    @torch.inference_mode()
    def _detect(self, batch: Sequence[_Prepared], thresholds: Tensor) -> list[Detections]:
        images = ImageBatch.from_images([each.input for each in batch]).to(self.device)
        sizes = torch.tensor([each.picture.pixels.shape[:2] for each in batch])
        found = detect(self.model(images).final, sizes, self.categories, min_score=float(thresholds.min()))
        return [_labelled(each.picture, some, thresholds) for each, some in zip(batch, found, strict=True)]

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
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """The score on a data set, classes paired by name.

        Args:
            data: images with their objects.
            batch_size: images that go through the model together.
            layers: also score every decoder layer by itself.
            progress: called with images done and images in all.

        Raises:
            DataError: detector and data have no class in common, or an image of the data is missing.
        """
        labels = _common_labels(self.categories, data.categories, str(data.folder))
        share = (rank(), world_size())
        loader = eval_loader(data, self.preset.data, batch_size=batch_size, share=share, device=self.device)
        num_layers = self.preset.model.transformer.decoder_layers if layers else 1
        evaluators = [CocoEvaluator(data.to_coco()) for _ in range(num_layers)]
        seconds, done = 0.0, 0
        for batch in loader:
            began = time.perf_counter()
            sizes = torch.tensor([target.original_size for target in batch.targets])
            with torch.inference_mode():
                output = self.model(batch.images.to(self.device))
                found = [detect(layer, sizes, self.categories) for layer in output.layers[-num_layers:]]
            seconds += time.perf_counter() - began
            ids = [target.image_id for target in batch.targets]
            for evaluator, detections in zip(evaluators, found, strict=True):
                evaluator.update(ids, [_relabelled(each, labels, data.categories) for each in detections])
            done += len(batch)
            if progress:
                progress(done, len(data))
        for evaluator in evaluators:
            evaluator.gather()
        scores = [evaluator.compute() for evaluator in evaluators]
        metrics = dict(scores[-1])
        return Evaluation(
            per_class=metrics.pop("per_class"),
            metrics=metrics,
            per_layer=tuple(score["AP"] for score in scores) if layers else (),
            seconds_per_image=seconds / max(done, 1),
            results=evaluators[-1].results,
            unreadable=tuple(loader.unreadable.values()),
        )


def _common_labels(ours: Categories, theirs: Categories, folder: str) -> Tensor:
    """(K,) label in `theirs` of each of our labels, by name; -1 where there is none."""
    labels = [theirs.label_of_name(name) if name in theirs.names else -1 for name in ours.names]
    if all(label < 0 for label in labels):
        raise DataError(
            f"{folder}: the detector knows {', '.join(ours.names[:5])}, the data has {', '.join(theirs.names[:5])}: "
            "no class in common; train on this data first"
        )
    return torch.tensor(labels)


def _relabelled(detections: Detections, labels: Tensor, categories: Categories) -> Detections:
    """The detections under the data set's labels; those of classes that it does not have are left out."""
    moved = labels[detections.labels]
    return replace(replace(detections, labels=moved.clamp(min=0))[moved >= 0], categories=categories)


def _labelled(picture: Picture, found: Detections, thresholds: Tensor) -> Detections:
    """The detections that reach the score of their class, with the picture they were found in."""
    kept = found[found.scores >= thresholds[found.labels]]
    return replace(kept, image=picture.pixels, source=picture.source, frame=picture.frame, time=picture.time)


def _readable(
    pictures: Iterable[Future[_Prepared]], on_unreadable: Callable[[str], None] | None
) -> Iterator[_Prepared]:
    for picture in pictures:
        try:
            yield picture.result()
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
        model: the catalogue's name of a file that does not say itself what it holds.
        categories: of such a file; COCO's 91 rows when omitted.
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
        found, model = published_weights(str(source)), str(source)
        if found is None:
            raise WeightsError(f"{source}: no weights of it are published; train it first, or name a file of weights")
        path = found
    else:
        path = local_file(source)
    card = read_card(path)
    if card is not None:
        preset, known = preset_from_dict(card.config), card.categories
    elif model is not None:
        preset, known = get_preset(model), categories or coco_categories()
    else:
        raise WeightsError(f"{path}: does not say which model it is; name it, for example model='detr-r50'")
    network = build_model(preset, len(known), strict_no_object=strict_no_object)
    load_weights(network, read_state(path))
    return Predictor(network, preset, known, device=device)
