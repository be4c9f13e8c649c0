"""The folder that predictions go to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from opendetr.categories import Categories
from opendetr.results.background import Background
from opendetr.results.names import OutputNames
from opendetr.results.pictures import crops, drawn_pictures
from opendetr.results.tables import Entry, Sink, coco_json, csv_table, yolo_labels
from opendetr.results.video import annotated_videos
from opendetr.structures import Detections

COCO_FILE = "predictions.json"
CSV_FILE = "predictions.csv"
_NUM_WRITERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What is written beside `predictions.json`.

    Attributes:
        pictures: every picture and video with its detections drawn on it.
        crops: every detection as a picture of its own.
        csv: `predictions.csv`.
        yolo: `labels/` and `data.yaml`.
    """

    pictures: bool = True
    crops: bool = False
    csv: bool = False
    yolo: bool = False


@contextmanager
def results_folder(
    folder: Path, categories: Categories, config: OutputConfig, *, roots: Sequence[Path] = ()
) -> Iterator[Callable[[Detections], None]]:
    """Gives a function that writes the detections of one picture, called in the order of the pictures.

    Pictures, crops and labels are written as they come, each file whole or not at all; the tables and videos take their
    names when the context ends, and do not appear after an error. Memory does not grow with the number of pictures, but
    for about a hundred bytes each that keep names apart.

    Args:
        folder: made where it is missing.
        categories: of the detector.
        config: what is written.
        roots: the folders that pictures were looked for in; what is written has the same place below `folder`.

    Raises:
        OSError: something cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    background = Background(_NUM_WRITERS, waiting=4 * _NUM_WRITERS)
    with ExitStack() as stack:
        sinks: list[Sink] = [stack.enter_context(coco_json(folder / COCO_FILE, categories, pictures=config.pictures))]
        if config.csv:
            sinks.append(stack.enter_context(csv_table(folder / CSV_FILE)))
        if config.yolo:
            sinks.append(stack.enter_context(yolo_labels(folder, categories)))
        if config.crops:
            sinks.append(crops(folder, categories, background))
        if config.pictures:
            sinks.append(drawn_pictures(folder, background))
            sinks.append(stack.enter_context(annotated_videos(folder, background)))
        stack.enter_context(background)  # last, so that it is done before the others end
        entries = _Entries(OutputNames(roots))

        def write(detections: Detections) -> None:
            entry = entries.of(detections)
            for sink in sinks:
                sink(entry)

        yield write


class _Entries:
    """Numbers pictures and names what is written of them; the frames of a video share its name."""

    def __init__(self, names: OutputNames) -> None:
        self._names = names
        self._number = 0
        self._video: tuple[str, PurePath] | None = None

    def of(self, detections: Detections) -> Entry:
        """The entry of the next picture."""
        self._number += 1
        source = detections.source or "picture"
        if detections.frame is None:
            return Entry(self._number, self._names.name(source), detections)
        if self._video is None or self._video[0] != source or detections.frame == 0:
            self._video = source, self._names.name(source)
        return Entry(self._number, self._video[1], detections)
