"""Writing a dataset as COCO, Pascal VOC or YOLO, whatever format it is in, so that reading it again gives the same.

What a record holds is kept: boxes to the last bit, classes with their ids, ids of images and objects, areas, crowd
regions, `difficult`, polygons and run lengths, images without objects, splits. VOC and YOLO have no place for some of
it; that goes into `opendetr.json` beside them (see `data.extras`). A record has no place for other fields of a file:
keypoints, captions, licences, poses, parts.

VOC's corners are written as they are read, without the challenge's shift by one pixel. Crowd regions are no rows in VOC
and YOLO, where other programs would take them for objects. A YOLO label file has polygons where each object of its
image is one polygon that spans its box, else boxes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from opendetr.categories import Categories
from opendetr.data.faults import counted
from opendetr.data.formats.recognise import Format, find_panoptic, read_splits
from opendetr.data.formats.sidecar import FILE_NAME, Extras, image_extra, write_extras
from opendetr.data.formats.splits import SPELLINGS
from opendetr.data.formats.voc import VocObject
from opendetr.data.formats.yolo import YoloRow, format_row, is_polygon, parse_row
from opendetr.data.images import ImageFileError, image_size
from opendetr.data.paths import require_new
from opendetr.data.records import DataError, DetectionData, ImageRecord
from opendetr.data.text import pixels
from opendetr.files import IMAGE_SUFFIXES

WRITTEN_FORMATS = (Format.COCO, Format.YOLO, Format.VOC)
_IN_FILE_NAMES = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|^\s|\s$")
_IN_CLASS_NAMES = re.compile(r"[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML cannot hold

_SPLIT_NAME = re.compile(r"\w[\w .-]{0,59}")  # with what is put around it, a file name everywhere
_NO_SPLIT_NAMES = frozenset({"path", "names", "nc"})  # mean something else in data.yaml

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Placed:
    """An image on its way into a new folder: its record, its file name there, and the splits that it is in.

    The first split is its home: COCO and YOLO have a folder of images for each.
    """

    record: ImageRecord
    name: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class _Content:
    """What is to be written: every image once, the splits that hold some, and the classes of all."""

    images: tuple[_Placed, ...]
    splits: Mapping[str, DetectionData]
    categories: Categories

    def of(self, split: str) -> list[_Placed]:
        """The images of a split."""
        return [image for image in self.images if split in image.splits]

    def is_home(self, split: str) -> bool:
        """Whether the folder of a split holds all its images."""
        return all(image.splits[0] == split for image in self.of(split))


@dataclass(frozen=True)
class _Written:
    """What has been written: where each image belongs in the folder, and what went into `opendetr.json`."""

    pictures: Sequence[str]
    extras: Extras


def convert(
    source: str | Path, folder: str | Path, to: Format, *, link: bool = False, progress: Progress | None = None
) -> tuple[str, ...]:
    """Write a dataset in another format; see `write_data`."""
    splits = read_splits(source)
    notes = write_data(splits, folder, to, link=link, progress=progress)
    return (*notes, *maps_left_behind(source, splits))


def maps_left_behind(source: str | Path, splits: Mapping[str, DetectionData]) -> tuple[str, ...]:
    """A line that says so where a dataset has panoptic maps beside the splits that were written."""
    if any(image.panoptic_map for data in splits.values() for image in data.images) or not find_panoptic(source):
        return ()
    return ("panoptic maps beside the boxes, left behind",)


def write_data(
    splits: Mapping[str, DetectionData],
    folder: str | Path,
    to: Format,
    *,
    link: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write splits of a dataset with their images into a new folder: whole, or not at all.

    Args:
        splits: name -> data; all have the same classes. An image that is in several splits is written once.
        folder: where to; empty or not there.
        to: one of `WRITTEN_FORMATS`.
        link: make symbolic links to the images instead of copies.
        progress: called with images done and images in all.

    Returns lines that say what is different now, and what other programs will not find in the result. Raises DataError
    when the folder holds something or the data cannot be written so, OSError when the disk is full or an image cannot
    be copied.
    """
    if to not in WRITTEN_FORMATS:
        raise DataError(f"{to} is not written; choose {', '.join(WRITTEN_FORMATS)}")
    content = _content(splits, to)
    with _written_aside(Path(folder)) as fresh:
        written = _WRITERS[to](fresh, content)
        for done, (image, picture) in enumerate(zip(content.images, written.pictures, strict=True), start=1):
            _bring(image.record.path, fresh / picture, link=link)
            if progress:
                progress(done, len(content.images))
    return _notes(splits, content, written)


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name when all went well, and vanishes otherwise."""
    folder = folder.absolute()
    require_new(folder)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if folder.is_dir():
            folder.rmdir()
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _bring(source: Path, picture: Path, *, link: bool) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    if link:
        picture.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, picture)


def _content(splits: Mapping[str, DetectionData], to: Format) -> _Content:
    """What the splits hold, the usual ones first, and how the images will be called."""
    usual = list(dict.fromkeys(SPELLINGS.values()))
    order = sorted(splits, key=lambda split: usual.index(split) if split in usual else len(usual))
    filled = {split: splits[split] for split in order if len(splits[split])}
    if not filled:
        raise DataError("the dataset has no image to write")
    for split in filled:
        if not _SPLIT_NAME.fullmatch(split) or split in _NO_SPLIT_NAMES:
            raise DataError(f"the split {split[:60]!r} cannot name files; give it a plain name")
    found: dict[Path, list[tuple[ImageRecord, list[str]]]] = {}
    for split, data in filled.items():
        for image in data.images:
            known = found.setdefault(image.path, [])
            same = next((names for record, names in known if record == image), None)
            if same is None:
                known.append((image, [split]))
            else:
                same.append(split)
    images = [_Placed(record, "", tuple(of)) for entries in found.values() for record, of in entries]
    names = _unique_names(images, to)
    named = tuple(replace(image, name=name) for image, name in zip(images, names, strict=True))
    return _Content(named, filled, next(iter(filled.values())).categories)


def _unique_names(images: Sequence[_Placed], to: Format) -> list[str]:
    """The files' own names; with that of their folder where several would be the same; numbered where that is no help.

    VOC has one folder for all; there and in YOLO the annotations are named after the image without its suffix. Capital
    letters do not tell names apart: on many disks they are the same file.
    """

    def key(image: _Placed, name: str) -> tuple[str, str]:
        home = "" if to is Format.VOC else image.splits[0]
        return home, (name if to is Format.COCO else Path(name).stem).casefold()

    own = [_IN_FILE_NAMES.sub("_", image.record.path.name) for image in images]
    times = Counter(map(key, images, own))
    taken = {each for each, number in times.items() if number == 1}
    names = []
    for image, plain in zip(images, own, strict=True):
        if times[key(image, plain)] == 1:
            names.append(plain)
            continue
        longer = Path(_IN_FILE_NAMES.sub("_", f"{image.record.path.parent.name}_{plain}"))
        numbered = (f"{longer.stem}-{number}{longer.suffix}" for number in count(2))
        names.append(next(name for name in chain([longer.name], numbered) if key(image, name) not in taken))
        taken.add(key(image, names[-1]))
    return names


# ---------------------------------------------------------------------------------------------------------------- COCO


def _write_coco(folder: Path, content: _Content) -> _Written:
    """`annotations/instances_<split>.json`; its names of images start from `images/<split>`, or else from `images`.

    A split with panoptic maps becomes `annotations/panoptic_<split>.json` and a folder of that name with them.
    """
    (folder / "annotations").mkdir()
    for split, data in content.splits.items():
        home = content.is_home(split)
        names = {each.record.id: each.name if home else f"{each.splits[0]}/{each.name}" for each in content.of(split)}
        rows = data.to_coco()
        for row in rows["images"]:
            row["file_name"] = names[row["id"]]
        ids = (thing.id for image in data.images for thing in image.objects)
        for row, id_ in zip(rows["annotations"], ids, strict=True):
            row["id"] = id_
        name = f"instances_{split}"
        if all(image.panoptic_map for image in data.images):
            name = f"panoptic_{split}"
            rows["annotations"] = _write_maps(folder / "annotations" / name, data)
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return _Written([f"images/{image.splits[0]}/{image.name}" for image in content.images], Extras())


def _write_maps(folder: Path, data: DetectionData) -> list[dict[str, Any]]:
    """Copies of a split's panoptic maps, named after the ids of the images; the annotations that go with them."""
    folder.mkdir()
    annotations = []
    for image in data.images:
        assert image.panoptic_map is not None
        name = f"{image.id:012d}.png"
        shutil.copyfile(image.panoptic_map, folder / name)
        segments = [
            {"id": thing.segment, "category_id": thing.category_id, "bbox": list(thing.box), "area": thing.area,
             "iscrowd": int(thing.crowd)}
            for thing in image.objects
        ]  # fmt: skip
        annotations.append({"image_id": image.id, "file_name": name, "segments_info": segments})
    return annotations


# ----------------------------------------------------------------------------------------------------------------- VOC


def _write_voc(folder: Path, content: _Content) -> _Written:
    """`Annotations`, `ImageSets/Main` and `opendetr.json`."""
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    names = tuple(map(_plain_name, content.categories.names))
    images = {}
    for image in content.images:
        rows = _voc_rows(image.record, content.categories, names)
        key = f"Annotations/{Path(image.name).stem}.xml"
        (folder / key).write_bytes(_voc_xml(image, list(rows.values())))
        plain = {
            index: (row.record(0, content.categories.ids[names.index(row.name)]), row.text)
            for index, row in rows.items()
        }
        images[key] = image_extra(image.record, image.name, plain, (image.record.height, image.record.width))
    for split in content.splits:
        stems = [Path(image.name).stem for image in content.of(split)]
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        path.write_text("".join(f"{stem}\n" for stem in sorted(stems)), encoding="utf-8")
    extras = Extras(categories=content.categories, names=names, images=images)
    write_extras(folder, extras)
    return _Written([f"JPEGImages/{image.name}" for image in content.images], extras)


def _voc_rows(record: ImageRecord, categories: Categories, names: Sequence[str]) -> dict[int, VocObject]:
    """Position in the record's objects -> its object in the file."""
    rows: dict[int, VocObject] = {}
    for index, thing in enumerate(record.objects):
        if not thing.crowd:
            x, y, w, h = thing.box
            name = names[categories.label_of_id(thing.category_id)]
            corners = (x + 0.0, y + 0.0, pixels(x + w), pixels(y + h))  # -0.0, too, is read as 0
            rows[index] = VocObject(len(rows) + 1, name, corners, thing.difficult)
    return rows


def _voc_xml(image: _Placed, rows: Sequence[VocObject]) -> bytes:
    root = ET.Element("annotation")
    ET.SubElement(root, "folder").text = "JPEGImages"
    ET.SubElement(root, "filename").text = image.name
    size = ET.SubElement(root, "size")
    for tag, length in (("width", image.record.width), ("height", image.record.height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(length)
    for row in rows:
        thing = ET.SubElement(root, "object")
        ET.SubElement(thing, "name").text = row.name
        ET.SubElement(thing, "difficult").text = str(int(row.difficult))
        box = ET.SubElement(thing, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), row.corners, strict=True):
            ET.SubElement(box, tag).text = str(int(value)) if value.is_integer() else repr(value)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"


def _plain_name(name: str) -> str:
    """A class's name as one line of text that every format can hold."""
    return " ".join(_IN_CLASS_NAMES.sub(" ", name).split()) or "class"


# ---------------------------------------------------------------------------------------------------------------- YOLO


def _write_yolo(folder: Path, content: _Content) -> _Written:
    """`data.yaml`, `labels` and `opendetr.json`.

    Every image is in the folder of the first split that has it; further splits are lists of images.
    """
    names = tuple(map(_plain_name, content.categories.names))
    images = {}
    for image in content.images:
        rows = _yolo_rows(image.record, content.categories)
        key = f"labels/{image.splits[0]}/{Path(image.name).stem}.txt"
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_text("".join(f"{line}\n" for _, line in rows.values()), encoding="utf-8")
        height, width = image.record.height, image.record.width
        plain = {
            index: (row.record(0, content.categories.ids[row.label], height, width), row.text)
            for index, (row, _) in rows.items()
        }
        images[key] = image_extra(image.record, image.name, plain, _size_of_file(image.record.path))
    places = {split: _yolo_split(folder, split, content) for split in content.splits}
    description = places | {"names": dict(enumerate(names))}
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=10**6)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    extras = Extras(categories=content.categories, names=names, images=images)
    write_extras(folder, extras)
    return _Written([f"images/{image.splits[0]}/{image.name}" for image in content.images], extras)


def _yolo_rows(record: ImageRecord, categories: Categories) -> dict[int, tuple[YoloRow, str]]:
    """Position in the record's objects -> its row, as read and as written; none for what no one would read."""
    things = {index: thing for index, thing in enumerate(record.objects) if not thing.crowd}
    polygon = all(map(is_polygon, things.values()))
    rows: dict[int, tuple[YoloRow, str]] = {}
    for index, thing in things.items():
        label = categories.label_of_id(thing.category_id)
        line = format_row(thing, label, record.height, record.width, polygon=polygon)
        row = parse_row(line, len(rows) + 1)
        if isinstance(row, YoloRow):
            rows[index] = row, line
    return rows


def _size_of_file(path: Path) -> tuple[int, int]:
    """Height and width as a reader of labels will find them; zeros where it will find none."""
    try:
        return image_size(path)
    except ImageFileError:
        return 0, 0


def _yolo_split(folder: Path, split: str, content: _Content) -> str:
    """What `data.yaml` says of a split: the folder with its images, or a list of them that is written here."""
    images = content.of(split)
    if content.is_home(split) and all(Path(image.name).suffix.lower() in IMAGE_SUFFIXES for image in images):
        return f"images/{split}"
    lines = "".join(f"./images/{image.splits[0]}/{image.name}\n" for image in images)
    (folder / f"{split}.txt").write_text(lines, encoding="utf-8")
    return f"{split}.txt"


_WRITERS: dict[Format, Callable[[Path, _Content], _Written]] = {
    Format.COCO: _write_coco,
    Format.VOC: _write_voc,
    Format.YOLO: _write_yolo,
}


# ----------------------------------------------------------------------------------------------------- what to be told


def _notes(splits: Mapping[str, DetectionData], content: _Content, written: _Written) -> tuple[str, ...]:
    """What is different now, and what other programs do not find in the result; a line each."""
    images = written.extras.images.values()
    rowless = [thing for image in images for thing in image.rowless]
    rows = [thing for image in images for thing in image.objects]
    kept = f"kept in {FILE_NAME}, which other programs do not read"
    maps = sum(image.record.panoptic_map is not None for image in content.images) if written.extras.names else 0
    told = (
        (maps, "panoptic map", "left behind, for which the format has no place"),
        (len(splits) - len(content.splits), "split", "without images, left out"),
        (sum(image.name != image.record.path.name for image in content.images), "image", "under a new name"),
        (sum(thing.crowd for thing in rowless), "crowd region", kept),
        (sum(not thing.crowd for thing in rowless), "box", f"far out of the image, {kept}"),
        (sum(thing.segmentation is not None for thing in rows), "outline of an object", kept),
        (sum(thing.difficult is not None for thing in rows), "mark of a difficult object", kept),
        (sum(image.size is not None for image in images), "image", f"whose boxes are of another frame, {kept}"),
    )
    return tuple(f"{counted(number, noun)} {what}" for number, noun, what in told if number)
