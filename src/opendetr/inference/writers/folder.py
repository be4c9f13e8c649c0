"""Write predictions to a folder."""

from __future__ import annotations

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

Result = TypeVar("Result", Detections, Panoptic)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """The outputs that are written in addition to `predictions.json`.

    Attributes:
        draw: every image and video with its detections drawn on it.
        crops: one image per detection.
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
    """Context manager that gives a function. The function writes the detections of one image; call it in image order.

    Each file is written atomically. Images, crops and labels appear while the function is called. Tables and videos
    appear when the context ends, but not after an error. Memory use does not grow with the number of
    images, except for about a hundred bytes per image that keep file names unique.

    Args:
        folder: the output folder. It is created if it is missing.
        categories: the categories of the detector.
        config: the outputs to write.
        roots: the input folders. An output has the same relative path below `folder` as its image below its root.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    background = Background()
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
        stack.enter_context(background)  # entered last, so it finishes before the other contexts end
        yield _writer(sinks, roots)


@contextmanager
def panoptic_folder(
    folder: Path, categories: Categories, *, draw: bool, roots: Sequence[Path] = ()
) -> Iterator[Callable[[Panoptic], None]]:
    """Context manager that gives a function. The function writes the panoptic map of one image; call it in image order.

    `panoptic.json` and the PNG files in `panoptic/` have COCO's panoptic format. Files are written as in
    `results_folder`, with the same bound on memory.

    Args:
        folder: the output folder. It is created if it is missing.
        categories: the categories of the detector.
        draw: draw the segments on every image and video.
        roots: the input folders, as in `results_folder`.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    background = Background()
    with ExitStack() as stack:
        table = panoptic_json(folder / PANOPTIC_FILE, categories, draw=draw, map_name=panoptic_map_name)
        sinks: list[Sink[Panoptic]] = [stack.enter_context(table), panoptic_maps(folder / PANOPTIC_FOLDER, background)]
        if draw:
            sinks.append(drawn_images(folder, background))
            sinks.append(stack.enter_context(annotated_videos(folder, background)))
        stack.enter_context(background)  # entered last, so it finishes before the other contexts end
        yield _writer(sinks, roots)


def _writer(sinks: Sequence[Sink[Result]], roots: Sequence[Path]) -> Callable[[Result], None]:
    """A function that passes the result of one image to all sinks."""
    entries = _Entries(OutputNames(roots))

    def write(result: Result) -> None:
        entry = entries.of(result)
        for sink in sinks:
            sink(entry)

    return write


class _Entries:
    """Assigns numbers and output names to images. The frames of a video share one name."""

    def __init__(self, names: OutputNames) -> None:
        self._names = names
        self._number = 0
        self._video: tuple[str, PurePath] | None = None

    def of(self, result: Result) -> Entry[Result]:
        """The entry of the next image."""
        self._number += 1
        source = result.source or "image"
        if result.frame is None:
            return Entry(self._number, self._names.name(source), result)
        if self._video is None or self._video[0] != source or result.frame == 0:
            self._video = source, self._names.name(source)
        return Entry(self._number, self._video[1], result)
