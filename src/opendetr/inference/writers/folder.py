"""The folder that predictions go to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from opendetr.categories import Categories
from opendetr.inference.writers.background import Background
from opendetr.inference.writers.images import crops, drawn_images, panoptic_map_name, panoptic_maps
from opendetr.inference.writers.names import OutputNames
from opendetr.inference.writers.tables import Entry, Sink, coco_json, csv_table, panoptic_json, yolo_labels
from opendetr.inference.writers.video import annotated_videos
from opendetr.results import Detections, Panoptic

COCO_FILE = "predictions.json"
CSV_FILE = "predictions.csv"
PANOPTIC_FILE, PANOPTIC_FOLDER = "panoptic.json", "panoptic"
_NUM_WRITERS = min(4, os.cpu_count() or 1)

Result = TypeVar("Result", Detections, Panoptic)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What is written beside `predictions.json`.

    Attributes:
        draw: every image and video with its detections drawn on it.
        crops: every detection as an image of its own.
        csv: `predictions.csv`.
        yolo: `labels/` and `data.yaml`.
    """

    draw: bool = True
    crops: bool = False
    csv: bool = False
    yolo: bool = False


@contextmanager
def results_folder(
    folder: Path, categories: Categories, config: OutputConfig, *, roots: Sequence[Path] = ()
) -> Iterator[Callable[[Detections], None]]:
    """Gives a function that writes the detections of one image, called in the order of the images.

    Images, crops and labels are written as they come, each file whole or not at all; the tables and videos take their
    names when the context ends, and do not appear after an error. Memory does not grow with the number of images, but
    for about a hundred bytes each that keep names apart.

    Args:
        folder: made where it is missing.
        categories: of the detector.
        config: what is written.
        roots: the folders that images were looked for in; what is written has the same place below `folder`.

    Raises:
        OSError: something cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    background = Background(_NUM_WRITERS, waiting=4 * _NUM_WRITERS)
    with ExitStack() as stack:
        tables = coco_json(folder / COCO_FILE, categories, draw=config.draw)
        sinks: list[Sink[Detections]] = [stack.enter_context(tables)]
        if config.csv:
            sinks.append(stack.enter_context(csv_table(folder / CSV_FILE)))
        if config.yolo:
            sinks.append(stack.enter_context(yolo_labels(folder, categories)))
        if config.crops:
            sinks.append(crops(folder, categories, background))
        if config.draw:
            sinks.append(drawn_images(folder, background))
            sinks.append(stack.enter_context(annotated_videos(folder, background)))
        stack.enter_context(background)  # last, so that it is done before the others end
        yield _writer(sinks, roots)


@contextmanager
def panoptic_folder(
    folder: Path, categories: Categories, *, draw: bool, roots: Sequence[Path] = ()
) -> Iterator[Callable[[Panoptic], None]]:
    """Gives a function that writes the panoptic map of one image, called in the order of the images.

    `panoptic.json` and the PNG files in `panoptic/` are COCO's panoptic format; images and videos as in
    `results_folder`, and so is what is said there of files and memory.

    Args:
        folder: made where it is missing.
        categories: of the detector.
        draw: draw the segments on every image and video.
        roots: as in `results_folder`.

    Raises:
        OSError: something cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    background = Background(_NUM_WRITERS, waiting=4 * _NUM_WRITERS)
    with ExitStack() as stack:
        table = panoptic_json(folder / PANOPTIC_FILE, categories, draw=draw, map_name=panoptic_map_name)
        sinks: list[Sink[Panoptic]] = [stack.enter_context(table), panoptic_maps(folder / PANOPTIC_FOLDER, background)]
        if draw:
            sinks.append(drawn_images(folder, background))
            sinks.append(stack.enter_context(annotated_videos(folder, background)))
        stack.enter_context(background)  # last, so that it is done before the others end
        yield _writer(sinks, roots)


def _writer(sinks: Sequence[Sink[Result]], roots: Sequence[Path]) -> Callable[[Result], None]:
    """A function that hands what was found in one image to all sinks."""
    entries = _Entries(OutputNames(roots))

    def write(found: Result) -> None:
        entry = entries.of(found)
        for sink in sinks:
            sink(entry)

    return write


class _Entries:
    """Numbers images and names what is written of them; the frames of a video share its name."""

    def __init__(self, names: OutputNames) -> None:
        self._names = names
        self._number = 0
        self._video: tuple[str, PurePath] | None = None

    def of(self, found: Result) -> Entry[Result]:
        """The entry of the next image."""
        self._number += 1
        source = found.source or "picture"
        if found.frame is None:
            return Entry(self._number, self._names.name(source), found)
        if self._video is None or self._video[0] != source or found.frame == 0:
            self._video = source, self._names.name(source)
        return Entry(self._number, self._video[1], found)
