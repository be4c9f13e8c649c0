"""Write results as tables: COCO JSON, CSV and YOLO labels. Rows are written at once and not kept in memory."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, Generic, TypeVar

import yaml

from opendetr.categories import Categories
from opendetr.files import atomic_path, naming, write_atomically
from opendetr.results import Detections, Panoptic

CSV_HEAD = ("image_id", "file_name", "frame", "category_id", "category", "score", "x_min", "y_min", "x_max", "y_max")


Result_co = TypeVar("Result_co", bound=Detections | Panoptic, covariant=True)


@dataclass(frozen=True)
class Entry(Generic[Result_co]):
    """The result of one image with its number and name in the output.

    Attributes:
        number: the number of the image in this output, from 1. It is the COCO image id.
        name: relative path of the output for the image, or for the video that it is a frame of.
        result: the detections or panoptic map, with the image.
    """

    number: int
    name: PurePath
    result: Result_co

    @property
    def num_bytes(self) -> int:
        """Bytes that the image and its masks or map hold in memory."""
        arrays = (self.result.image, getattr(self.result, "masks", None), getattr(self.result, "segments", None))
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def stem(self) -> PurePath:
        """The name without its suffix. For a frame it includes the frame number."""
        frame = self.result.frame
        return self.name.with_name(self.name.stem + ("" if frame is None else f"_{frame:06d}"))


Sink = Callable[[Entry[Result_co]], None]


class Rows:
    """Collects JSON values in a temporary file.

    Args:
        folder: the folder of the temporary file. None: the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115
        self._separator = "["

    def add(self, row: Mapping[str, Any] | str) -> None:
        """Append one value."""
        self._file.write(self._separator + json.dumps(row, allow_nan=False))
        self._separator = ",\n"

    def copy_to(self, stream: IO[str]) -> None:
        """Write all values as one JSON list."""
        if self._separator == "[":
            stream.write("[")
        self._file.seek(0)
        shutil.copyfileobj(self._file, stream)
        stream.write("]")

    def close(self) -> None:
        """Close and delete the file."""
        self._file.close()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@contextmanager
def coco_json(path: Path, categories: Categories, *, draw: bool) -> Iterator[Sink[Detections]]:
    """A sink that writes a COCO file without unused categories. Its `annotations` are a COCO results file.

    Args:
        path: the file, written when the context ends without an error.
        categories: the categories of the detector.
        draw: whether each image is also drawn; its row then names the drawing.
    """
    rows = [{"id": row["id"], "name": row["name"]} for row in used_rows(categories)]
    with coco_tables(path, rows) as (images, annotations):

        def add(entry: Entry[Detections]) -> None:
            images.add(_image_row(entry, draw))
            for row in entry.result.to_coco(entry.number):
                annotations.add(row)

        yield add


@contextmanager
def panoptic_json(
    path: Path, categories: Categories, *, draw: bool, map_name: Callable[[Entry[Panoptic]], str]
) -> Iterator[Sink[Panoptic]]:
    """A sink that writes a COCO panoptic file. Unused categories are omitted.

    Args:
        path: the file, written when the context ends without an error.
        categories: the categories of the detector.
        draw: whether each image is also drawn; its row then names the drawing.
        map_name: returns the name of the PNG file of a panoptic map.
    """
    with coco_tables(path, list(used_rows(categories))) as (images, annotations):

        def add(entry: Entry[Panoptic]) -> None:
            images.add(_image_row(entry, draw))
            row = entry.result.to_coco(entry.number)
            annotations.add({"image_id": row["image_id"], "file_name": map_name(entry)} | row)

        yield add


def used_rows(categories: Categories) -> Iterator[dict[str, Any]]:
    """The COCO rows of the used categories."""
    rows = zip(categories.ids, categories.names, categories.isthing, categories.colours, categories.used, strict=True)
    for id_, name, isthing, colour, used in rows:
        if used:
            yield {"id": id_, "name": name, "isthing": int(isthing), "color": list(colour)}


@contextmanager
def coco_tables(path: Path, categories: list[dict[str, Any]]) -> Iterator[tuple[Rows, Rows]]:
    """The rows of `images` and `annotations`. The file is written when the context ends without an error."""
    with naming(path), Rows(path.parent) as images, Rows(path.parent) as annotations:
        yield images, annotations
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write('{"images": ')
            images.copy_to(stream)
            stream.write(f',\n"categories": {json.dumps(categories)},\n"annotations": ')
            annotations.copy_to(stream)
            stream.write("}\n")


def _image_row(entry: Entry[Detections | Panoptic], draw: bool) -> dict[str, Any]:
    result = entry.result
    height, width = result.size
    row: dict[str, Any] = {"id": entry.number, "file_name": result.source, "height": height, "width": width}
    if result.frame is not None:
        row |= {"frame": result.frame, "time": result.time}
    return row | ({"drawing": entry.name.as_posix()} if draw else {})


@contextmanager
def csv_table(path: Path) -> Iterator[Sink[Detections]]:
    """A sink that writes one row per detection, with boxes as xyxy in pixels."""
    # File names that are not valid text keep their bytes.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        lines = csv.writer(stream)
        lines.writerow(CSV_HEAD)

        def add(entry: Entry[Detections]) -> None:
            detections = entry.result
            ids = [detections.categories.ids[label] for label in detections.labels.tolist()]
            frame = "" if detections.frame is None else detections.frame
            for id_, name, score, box in zip(
                ids, detections.names, detections.scores.tolist(), detections.boxes.tolist(), strict=True
            ):
                numbers = (f"{score:.6f}", *(f"{corner:.3f}" for corner in box))
                lines.writerow((entry.number, detections.source, frame, id_, name, *numbers))

        yield add


@contextmanager
def yolo_labels(folder: Path, categories: Categories) -> Iterator[Sink[Detections]]:
    """A sink that writes `labels/NAME.txt` for each image. `data.yaml` with the classes is written at the end.

    A line holds the class, numbered from 0 over the used classes, and the centre, width and height of the box in 0..1.
    Boxes are clipped to the image. Boxes outside the image are omitted. Detections with phrases have these as classes,
    numbered as they appear.
    """
    used = [label for label, used in enumerate(categories.used) if used]
    numbers = {label: number for number, label in enumerate(used)}
    names = {numbers[label]: categories.names[label] for label in used}
    of_phrases: dict[str, int] = {}

    def add(entry: Entry[Detections]) -> None:
        detections = entry.result
        path = (folder / "labels" / entry.stem).with_name(entry.stem.name + ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        if detections.phrases is None:
            classes = [numbers[label] for label in detections.labels.tolist()]
        else:
            classes = [of_phrases.setdefault(phrase, len(of_phrases)) for phrase in detections.phrases]
        write_atomically(path, "".join(_yolo_lines(detections, classes)))

    yield add
    if of_phrases:
        names = {number: phrase for phrase, number in of_phrases.items()}
    write_atomically(folder / "data.yaml", yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False))


def _yolo_lines(detections: Detections, classes: Sequence[int]) -> Iterator[str]:
    height, width = detections.size
    for class_, (left, top, right, bottom) in zip(classes, detections.boxes.tolist(), strict=True):
        x0, x1 = (min(max(x / width, 0.0), 1.0) for x in (left, right))
        y0, y1 = (min(max(y / height, 0.0), 1.0) for y in (top, bottom))
        if x0 < x1 and y0 < y1:
            numbers = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
            yield " ".join((str(class_), *(f"{number:.6f}" for number in numbers))) + "\n"
