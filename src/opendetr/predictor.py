"""A detector ready for use: pictures in, detections out; and its score on a data set.

Shape letters: B batch, H W image.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opendetr.categories import Categories, coco_categories
from opendetr.data.images import ImageError, read_image, to_rgb
from opendetr.data.loader import eval_loader
from opendetr.data.records import DataError, DetectionData
from opendetr.data.transforms import evaluation_transform
from opendetr.distributed import best_device
from opendetr.evaluation import CocoEvaluator
from opendetr.models.detector import Detector
from opendetr.postprocess import detect
from opendetr.presets import Preset, build_model, get_preset, list_models, preset_from_dict, published_weights
from opendetr.structures import Detections, ImageBatch
from opendetr.weights import WeightsError, load_weights, read_card, read_state

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})

Source = str | Path | np.ndarray | Tensor | Image.Image


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
        batch_size: int = 8,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Detections | Iterator[Detections]:
        """Find the objects in pictures.

        Args:
            source: one picture (path, PIL image, (H, W, 3) or (H, W) uint8 array, (3, H, W) tensor, uint8 or float in
                0..1), or several (a folder, a pattern such as "photos/*.jpg", a list).
            min_score: detections below it are left out.
            batch_size: pictures that go through the model together, where there are several.
            on_unreadable: called with one line for each picture of several that cannot be read and is left out.

        Returns:
            Detections for one picture, an iterator in the order of the pictures for several; each keeps its picture for
            `plot` and the path it came from in `source`.

        Raises:
            DataError: nothing is there, or a picture cannot be read.
        """
        several = _several(source)
        if several is None:
            return next(self._stream([source], min_score, 1, None))  # type: ignore[list-item]
        return self._stream(several, min_score, batch_size, on_unreadable)

    def _stream(
        self,
        sources: Iterable[Source],
        min_score: float,
        batch_size: int,
        on_unreadable: Callable[[str], None] | None,
    ) -> Iterator[Detections]:
        pictures = _readable(sources, on_unreadable)
        while batch := list(islice(pictures, batch_size)):
            found = self._detect([pixels for _, pixels in batch], min_score)
            for (name, pixels), detections in zip(batch, found, strict=True):
                yield replace(detections, image=pixels, source=name)

    @torch.inference_mode()
    def _detect(self, pictures: Sequence[np.ndarray], min_score: float) -> list[Detections]:
        images = ImageBatch.from_images([self._transform.pixels(pixels) for pixels in pictures]).to(self.device)
        sizes = torch.tensor([pixels.shape[:2] for pixels in pictures])
        return detect(self.model(images).final, sizes, self.categories, min_score=min_score)

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
        loader = eval_loader(data, self.preset.data, batch_size=batch_size)
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


def find_pictures(source: str | Path) -> list[Path]:
    """The pictures in a folder (those in its folders too) or that match a pattern; any other path by itself.

    Raises:
        DataError: the folder holds none, or nothing matches.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise DataError(f"{path}: no picture in this folder; supported are {', '.join(sorted(IMAGE_SUFFIXES))}")
        return found
    if not path.exists() and glob.has_magic(str(source)):
        matching = sorted(glob.glob(str(source), recursive=True))  # noqa: PTH207  a pattern may be absolute
        if not matching:
            raise DataError(f"{source}: no file matches")
        return [Path(match) for match in matching]
    return [path]


def _several(source: Any) -> Iterable[Source] | None:
    """The pictures of a folder, a glob or a list; None for one picture."""
    if isinstance(source, np.ndarray | Tensor | Image.Image):
        return None
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    one = not path.is_dir() and (path.exists() or not glob.has_magic(str(source)))
    return None if one else find_pictures(source)


def _readable(
    sources: Iterable[Source], on_unreadable: Callable[[str], None] | None
) -> Iterator[tuple[str | None, np.ndarray]]:
    for source in sources:
        try:
            yield (str(source) if isinstance(source, str | Path) else None), _pixels(source)
        except ImageError as error:
            if on_unreadable is None:
                raise
            on_unreadable(str(error))


def _pixels(source: Source) -> np.ndarray:
    """Any picture as (H, W, 3) uint8 RGB."""
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if isinstance(source, Image.Image):
        return np.asarray(to_rgb(source))
    if isinstance(source, Tensor):
        if source.ndim != 3 or source.shape[0] != 3:
            raise ImageError(f"a tensor of {tuple(source.shape)} is no picture; give (3, H, W)")
        scaled = source * 255 if source.is_floating_point() else source
        return scaled.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3):
        raise ImageError(f"an array of {source.shape} {source.dtype} is no picture; give (H, W, 3) or (H, W) uint8")
    return source if source.ndim == 3 else np.repeat(source[:, :, None], 3, axis=2)


def weights_file(source: Path) -> Path:
    """The weights in a run folder (the best ones), or the file itself."""
    if not source.is_dir():
        return source
    for candidate in ("best/model.safetensors", "last/model.safetensors", "model.safetensors"):
        if (source / candidate).is_file():
            return source / candidate
    raise WeightsError(f"{source}: holds no weights; expected a run folder of `opendetr train`")


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
            .pth file.
        model: the catalogue's name of a file that does not say itself what it holds.
        categories: of such a file; COCO's 91 rows when omitted.
        device: "auto", "cpu", "cuda" or "mps".
        strict_no_object: leave out queries for which "no object" is the best answer, which the published rule does not.

    Raises:
        WeightsError, ConfigError: nothing there, or it does not fit; one line.

    Example:
        >>> detector = load("detr-tiny")
        >>> detector.categories.names[:3]
        ('disc', 'ring', 'crescent')
    """
    if str(source) in list_models():
        found, model = published_weights(str(source)), str(source)
        if found is None:
            raise WeightsError(f"{source}: no weights of it are published; train it first, or name a file of weights")
        path = found
    else:
        path = weights_file(Path(source))
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
