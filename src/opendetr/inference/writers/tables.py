"""What was found as tables: COCO JSON, CSV, YOLO labels. Rows are written as they come and are not kept."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, Generic, TypeVar

import yaml

from opendetr.categories import Categories
from opendetr.files import atomic_path, write_atomically
from opendetr.results import Detections, Panoptic

CSV_HEAD = ("image_id", "file_name", "frame", "category_id", "category", "score", "x_min", "y_min", "x_max", "y_max")


Found_co = TypeVar("Found_co", bound=Detections | Panoptic, covariant=True)


@dataclass(frozen=True)
class Entry(Generic[Found_co]):
    """What was found in one image on its way to files.

    Attributes:
        number: of the image in this output, from 1; the COCO image id.
        name: relative path of what is written of the image, or of the video that it is a frame of.
        found: with the image it was found in.
    """

    number: int
    name: PurePath
    found: Found_co

    @property
    def num_bytes(self) -> int:
        """What the image and its masks or map take in memory."""
        arrays = (self.found.image, getattr(self.found, "masks", None), getattr(self.found, "segments", None))
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def stem(self) -> PurePath:
        """The name without its suffix; of a frame, with its number."""
        frame = self.found.frame
        return self.name.with_name(self.name.stem + ("" if frame is None else f"_{frame:06d}"))


Sink = Callable[[Entry[Found_co]], None]


class Rows:
    """JSON values in an unnamed file of their own, until all are there.

    Args:
        folder: where the file lies; the system's place for such files when omitted.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115
        self._separator = "["

    def add(self, row: Mapping[str, Any] | str) -> None:
        """Append one value."""
        self._file.write(self._separator + json.dumps(row, allow_nan=False))
        self._separator = ",\n"

    def copy_to(self, stream: IO[str]) -> None:
        """Write all as one JSON list."""
        if self._separator == "[":
            stream.write("[")
        self._file.seek(0)
        shutil.copyfileobj(self._file, stream)
        stream.write("]")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@contextmanager
def coco_json(path: Path, categories: Categories, *, draw: bool) -> Iterator[Sink[Detections]]:
    """Writes COCO's tables; `annotations` alone is a COCO results file. Unused categories are left out.

    Args:
        path: the file, written when the context ends without an error.
        categories: of the detector.
        draw: whether each image is also drawn; its row then names the drawing.
    """
    rows = [{"id": row["id"], "name": row["name"]} for row in _used(categories)]
    with _coco_tables(path, rows) as (images, annotations):

        def add(entry: Entry[Detections]) -> None:
            images.add(_image_row(entry, draw))
            for row in entry.found.to_coco(entry.number):
                annotations.add(row)

        yield add


@contextmanager
def panoptic_json(
    path: Path, categories: Categories, *, draw: bool, map_name: Callable[[Entry[Panoptic]], str]
) -> Iterator[Sink[Panoptic]]:
    """Writes a COCO panoptic file. Unused categories are left out.

    Args:
        path: the file, written when the context ends without an error.
        categories: of the detector.
        draw: whether each image is also drawn; its row then names the drawing.
        map_name: gives the name of the PNG file with the map.
    """
    with _coco_tables(path, list(_used(categories))) as (images, annotations):

        def add(entry: Entry[Panoptic]) -> None:
            images.add(_image_row(entry, draw))
            row = entry.found.to_coco(entry.number)
            annotations.add({"image_id": row["image_id"], "file_name": map_name(entry)} | row)

        yield add


def _used(categories: Categories) -> Iterator[dict[str, Any]]:
    """COCO's records of the categories that are used."""
    rows = zip(categories.ids, categories.names, categories.isthing, categories.colours, categories.used, strict=True)
    for id_, name, isthing, colour, used in rows:
        if used:
            yield {"id": id_, "name": name, "isthing": int(isthing), "color": list(colour)}


@contextmanager
def _coco_tables(path: Path, categories: list[dict[str, Any]]) -> Iterator[tuple[Rows, Rows]]:
    """The rows of `images` and `annotations`; the file is written when the context ends without an error."""
    with Rows(path.parent) as images, Rows(path.parent) as annotations:
        yield images, annotations
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write('{"images": ')
            images.copy_to(stream)
            stream.write(f',\n"categories": {json.dumps(categories)},\n"annotations": ')
            annotations.copy_to(stream)
            stream.write("}\n")


def _image_row(entry: Entry[Detections | Panoptic], draw: bool) -> dict[str, Any]:
    found = entry.found
    height, width = found.size
    row: dict[str, Any] = {"id": entry.number, "file_name": found.source, "height": height, "width": width}
    if found.frame is not None:
        row |= {"frame": found.frame, "time": found.time}
    return row | ({"drawing": entry.name.as_posix()} if draw else {})


@contextmanager
def csv_table(path: Path) -> Iterator[Sink[Detections]]:
    """Writes a line for each detection, boxes as corners in pixels."""
    # File names that are no text keep their bytes.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        lines = csv.writer(stream)
        lines.writerow(CSV_HEAD)

        def add(entry: Entry[Detections]) -> None:
            found = entry.found
            ids = [found.categories.ids[label] for label in found.labels.tolist()]
            frame = "" if found.frame is None else found.frame
            for id_, name, score, box in zip(
                ids, found.names, found.scores.tolist(), found.boxes.tolist(), strict=True
            ):
                numbers = (f"{score:.6f}", *(f"{corner:.3f}" for corner in box))
                lines.writerow((entry.number, found.source, frame, id_, name, *numbers))

        yield add


@contextmanager
def yolo_labels(folder: Path, categories: Categories) -> Iterator[Sink[Detections]]:
    """Writes `labels/NAME.txt` for each image, and `data.yaml` with the classes in the end.

    A line is the class, counted from 0 over the used ones, and the centre, width and height of the box in 0..1; boxes
    are cut to the image, and those of which nothing is left are left out.
    """
    used = [label for label, used in enumerate(categories.used) if used]
    classes = {label: number for number, label in enumerate(used)}

    def add(entry: Entry[Detections]) -> None:
        path = (folder / "labels" / entry.stem).with_name(entry.stem.name + ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(_yolo_lines(entry.found, classes)))

    yield add
    names = {classes[label]: categories.names[label] for label in used}
    write_atomically(folder / "data.yaml", yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False))


def _yolo_lines(found: Detections, classes: Mapping[int, int]) -> Iterator[str]:
    height, width = found.size
    for label, (left, top, right, bottom) in zip(found.labels.tolist(), found.boxes.tolist(), strict=True):
        x0, x1 = (min(max(x / width, 0.0), 1.0) for x in (left, right))
        y0, y1 = (min(max(y / height, 0.0), 1.0) for y in (top, bottom))
        if x0 < x1 and y0 < y1:
            numbers = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
            yield " ".join((str(classes[label]), *(f"{number:.6f}" for number in numbers))) + "\n"
