"""Write a dataset of any format as COCO, Pascal VOC or YOLO. The written dataset contains the same records.

Everything that a record holds is kept: boxes to the last bit, classes with their ids, ids of images and objects, areas,
crowd regions, `difficult`, polygons and RLE, images without objects, and splits. VOC and YOLO have no fields
for some of these. Their values are written to `opendetr.json` in the same folder (see `data.formats.sidecar`).
Captions with their spans, questions and answers, and tracks of videos are written as COCO only. Other fields of
annotation files are not in the records and are lost: keypoints, licences, poses, parts, frame rates.

VOC corners are written without the offset of one pixel of the original challenge, whose coordinates begin at 1.
Crowd regions are not written as rows of VOC and YOLO, because other programs would use them as objects. A YOLO label
file contains polygons if every object of its image is one polygon that spans its box; otherwise it contains boxes.
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
from opendetr.data.faults import count_noun
from opendetr.data.formats.coco_videos import VIDEO
from opendetr.data.formats.mot import find_videos
from opendetr.data.formats.recognise import Format, find_panoptic, read_splits
from opendetr.data.formats.sidecar import FILE_NAME, Extras, image_extra, write_extras
from opendetr.data.formats.splits import SPLIT_SPELLINGS
from opendetr.data.formats.voc import VocObject
from opendetr.data.formats.yolo import format_row, is_polygon, parse_row
from opendetr.data.formats.yolo_rows import YoloRow
from opendetr.data.images import ImageFileError, image_size
from opendetr.data.paths import require_new
from opendetr.data.records import DataError, DetectionData, ImageRecord
from opendetr.data.text import pixels
from opendetr.files import IMAGE_SUFFIXES

WRITTEN_FORMATS = (Format.COCO, Format.YOLO, Format.VOC)
_FORBIDDEN_IN_FILE_NAMES = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|^\s|\s$")
_FORBIDDEN_IN_CLASS_NAMES = re.compile(
    r"[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # characters that XML forbids

_SPLIT_NAME = re.compile(r"\w[\w .-]{0,59}")  # part of a file name that is valid on every system
_RESERVED_NAMES = frozenset({"path", "names", "nc"})  # keys of data.yaml with another meaning

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _OutputImage:
    """An image to write: its record, its file name in the new folder, and the splits that contain it.

    In COCO and YOLO, the image is written to the folder of the first of its splits.
    """

    record: ImageRecord
    name: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class _Content:
    """What to write: every image once, the splits that have images, and the classes."""

    images: tuple[_OutputImage, ...]
    splits: Mapping[str, DetectionData]
    categories: Categories

    def images_of(self, split: str) -> list[_OutputImage]:
        """The images of a split."""
        return [image for image in self.images if split in image.splits]

    def has_own_folder(self, split: str) -> bool:
        """Whether all images of a split are written to the folder of the split."""
        return all(image.splits[0] == split for image in self.images_of(split))


@dataclass(frozen=True)
class _Result:
    """The result of a writer: the path of each image in the new folder, and the content of `opendetr.json`."""

    image_paths: Sequence[str]
    extras: Extras


def convert(
    source: str | Path, folder: str | Path, to: Format, *, link: bool = False, progress: Progress | None = None
) -> tuple[str, ...]:
    """Write a dataset in another format. Arguments, result and errors are those of `write_data`."""
    splits = read_splits(source)
    notes = write_data(splits, folder, to, link=link, progress=progress)
    return (*notes, *notes_on_source(source, splits))


def notes_on_source(source: str | Path, splits: Mapping[str, DetectionData]) -> tuple[str, ...]:
    """A note for each part of a dataset that is not in its records, so that it was not written.

    Args:
        source: the dataset.
        splits: its splits as read.
    """
    with_maps = any(image.panoptic_map for data in splits.values() for image in data.images)
    maps = () if with_maps or not find_panoptic(source) else ("panoptic maps of the dataset were not written",)
    if not Path(source).is_dir() or not find_videos(Path(source)):
        return maps
    return (*maps, "frame rates of the videos, and rows of classes that are not read, were not written")


def write_data(
    splits: Mapping[str, DetectionData],
    folder: str | Path,
    to: Format,
    *,
    link: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write splits of a dataset with their images into a new folder, completely or not at all.

    Args:
        splits: name -> data; all have the same classes. An image of several splits is written once.
        folder: the new folder. It must be empty or not exist.
        to: one of `WRITTEN_FORMATS`.
        link: make symbolic links to the images instead of copies.
        progress: called with the number of images written and the number of all images.

    Returns one line for each difference from the source, and for data that other programs will not find in the result.

    Raises:
        DataError: the folder is not empty, or the data cannot be written in this format.
        OSError: the disk is full, or an image cannot be copied.
    """
    if to not in WRITTEN_FORMATS:
        raise DataError(f"cannot write the format {to}; choose {', '.join(WRITTEN_FORMATS)}")
    content = _content(splits, to)
    with _new_folder(Path(folder)) as temporary:
        written = _WRITERS[to](temporary, content)
        for done, (image, path) in enumerate(zip(content.images, written.image_paths, strict=True), start=1):
            if not (temporary / path).exists():  # several captions of one image share its file
                _copy(image.record.path, temporary / path, link=link)
            if progress:
                progress(done, len(content.images))
    return _notes(splits, content, written)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder next to `folder`. It is renamed to `folder` on success and removed after an error."""
    require_new(folder)
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(source: Path, target: Path, *, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)


def _content(splits: Mapping[str, DetectionData], to: Format) -> _Content:
    """The images of the splits with their new names. The usual splits come first."""
    usual = list(dict.fromkeys(SPLIT_SPELLINGS.values()))
    order = sorted(splits, key=lambda split: usual.index(split) if split in usual else len(usual))
    filled = {split: splits[split] for split in order if len(splits[split])}
    if not filled:
        raise DataError("the dataset has no image to write")
    for split in filled:
        if not _SPLIT_NAME.fullmatch(split) or split in _RESERVED_NAMES:
            raise DataError(
                f"the split {split[:60]!r} cannot be part of a file name; rename it with letters and digits"
            )
    by_path: dict[Path, list[tuple[ImageRecord, list[str]]]] = {}
    for split, data in filled.items():
        for image in data.images:
            entries = by_path.setdefault(image.path, [])
            splits_of_image = next((names for record, names in entries if record == image), None)
            if splits_of_image is None:
                entries.append((image, [split]))
            else:
                splits_of_image.append(split)
    images = [_OutputImage(record, "", tuple(names)) for entries in by_path.values() for record, names in entries]
    names = _unique_names(images, to)
    named = tuple(replace(image, name=name) for image, name in zip(images, names, strict=True))
    return _Content(named, filled, next(iter(filled.values())).categories)


def _unique_names(images: Sequence[_OutputImage], to: Format) -> list[str]:
    """Unique file names for the images.

    An image keeps its file name if no other image has it. Otherwise the name of its video or folder is put in front. If
    that is not unique either, a number is appended. Names that differ only in case count as equal, because on many
    disks they are the same file. In VOC, all images are in one folder. In VOC and YOLO, annotation files are named
    after the image without its suffix.
    """

    def key(image: _OutputImage, name: str) -> tuple[str, str]:
        folder = "" if to is Format.VOC else image.splits[0]
        return folder, (name if to is Format.COCO else Path(name).stem).casefold()

    if to is Format.COCO:  # entries of one file, such as its captions, share the name
        files = {(image.record.path, image.splits[0]): image for image in images}
        if len(files) < len(images):
            named = dict(zip(files, _unique_names(list(files.values()), to), strict=True))
            return [named[image.record.path, image.splits[0]] for image in images]
    original = [_FORBIDDEN_IN_FILE_NAMES.sub("_", image.record.path.name) for image in images]
    frequency = Counter(map(key, images, original))
    taken = {name for name, number in frequency.items() if number == 1}
    names = []
    for image, name in zip(images, original, strict=True):
        if frequency[key(image, name)] == 1:
            names.append(name)
            continue
        folder = Path(image.record.extras.get(VIDEO) or image.record.path.parent).name
        longer = Path(_FORBIDDEN_IN_FILE_NAMES.sub("_", f"{folder}_{name}"))
        numbered = (f"{longer.stem}-{number}{longer.suffix}" for number in count(2))
        names.append(next(new for new in chain([longer.name], numbered) if key(image, new) not in taken))
        taken.add(key(image, names[-1]))
    return names


# ---------------------------------------------------------------------------------------------------------------- COCO


def _write_coco(folder: Path, content: _Content) -> _Result:
    """Write `annotations/instances_<split>.json`.

    File names of images are relative to `images/<split>` if it contains all images of the split, otherwise to `images`.
    A split with panoptic maps is written as `annotations/panoptic_<split>.json` and a folder of maps of that name.
    """
    (folder / "annotations").mkdir()
    for split, data in content.splits.items():
        own_folder = content.has_own_folder(split)
        names = {
            image.record.id: image.name if own_folder else f"{image.splits[0]}/{image.name}"
            for image in content.images_of(split)
        }
        rows = data.to_coco()
        for row, record in zip(rows["images"], data.images, strict=True):
            row.update(record.extras, file_name=names[record.id])
        objects = (obj for record in data.images for obj in record.objects)
        for row, obj in zip(rows["annotations"], objects, strict=True):
            row.update(obj.extras, id=obj.id)
        name = f"instances_{split}"
        if all(image.panoptic_map for image in data.images):
            name = f"panoptic_{split}"
            rows["annotations"] = _write_maps(folder / "annotations" / name, data)
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return _Result([f"images/{image.splits[0]}/{image.name}" for image in content.images], Extras())


def _write_maps(folder: Path, data: DetectionData) -> list[dict[str, Any]]:
    """Copy the panoptic maps of a split, named by image id. Returns the panoptic annotations."""
    folder.mkdir()
    annotations = []
    for image in data.images:
        assert image.panoptic_map is not None
        name = f"{image.id:012d}.png"
        shutil.copyfile(image.panoptic_map, folder / name)
        segments = [
            {"id": obj.segment, "category_id": obj.category_id, "bbox": list(obj.box), "area": obj.area,
             "iscrowd": int(obj.crowd)}
            for obj in image.objects
        ]  # fmt: skip
        annotations.append({"image_id": image.id, "file_name": name, "segments_info": segments})
    return annotations


# ----------------------------------------------------------------------------------------------------------------- VOC


def _write_voc(folder: Path, content: _Content) -> _Result:
    """Write `Annotations`, `ImageSets/Main` and `opendetr.json`."""
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    names = tuple(map(_plain_name, content.categories.names))
    images = {}
    for image in content.images:
        rows = _voc_rows(image.record, content.categories, names)
        key = f"Annotations/{Path(image.name).stem}.xml"
        (folder / key).write_bytes(_voc_xml(image, list(rows.values())))
        as_read = {  # the objects that the reader makes of the rows, with the text of each row
            index: (row.record(0, content.categories.ids[names.index(row.name)]), row.text)
            for index, row in rows.items()
        }
        images[key] = image_extra(image.record, image.name, as_read, (image.record.height, image.record.width))
    for split in content.splits:
        stems = [Path(image.name).stem for image in content.images_of(split)]
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        path.write_text("".join(f"{stem}\n" for stem in sorted(stems)), encoding="utf-8")
    extras = Extras(categories=content.categories, names=names, images=images)
    write_extras(folder, extras)
    return _Result([f"JPEGImages/{image.name}" for image in content.images], extras)


def _voc_rows(record: ImageRecord, categories: Categories, names: Sequence[str]) -> dict[int, VocObject]:
    """The objects to write, by their index in the record. Crowd regions are not written."""
    rows: dict[int, VocObject] = {}
    for index, obj in enumerate(record.objects):
        if not obj.crowd:
            x, y, w, h = obj.box
            name = names[categories.label_of_id(obj.category_id)]
            corners = (x + 0.0, y + 0.0, pixels(x + w), pixels(y + h))  # + 0.0 turns -0.0 into 0.0
            rows[index] = VocObject(len(rows) + 1, name, corners, obj.difficult)
    return rows


def _voc_xml(image: _OutputImage, rows: Sequence[VocObject]) -> bytes:
    root = ET.Element("annotation")
    ET.SubElement(root, "folder").text = "JPEGImages"
    ET.SubElement(root, "filename").text = image.name
    size = ET.SubElement(root, "size")
    for tag, length in (("width", image.record.width), ("height", image.record.height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(length)
    for row in rows:
        obj = ET.SubElement(root, "object")
        ET.SubElement(obj, "name").text = row.name
        ET.SubElement(obj, "difficult").text = str(int(row.difficult))
        box = ET.SubElement(obj, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), row.corners, strict=True):
            ET.SubElement(box, tag).text = str(int(value)) if value.is_integer() else repr(value)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"


def _plain_name(name: str) -> str:
    """The name of a class as one line of text that every format can store."""
    return " ".join(_FORBIDDEN_IN_CLASS_NAMES.sub(" ", name).split()) or "class"


# ---------------------------------------------------------------------------------------------------------------- YOLO


def _write_yolo(folder: Path, content: _Content) -> _Result:
    """Write `data.yaml`, `labels` and `opendetr.json`.

    An image of several splits is in the folder of the first one. The other splits are text files that list images.
    """
    names = tuple(map(_plain_name, content.categories.names))
    images = {}
    for image in content.images:
        rows = _yolo_rows(image.record, content.categories)
        key = f"labels/{image.splits[0]}/{Path(image.name).stem}.txt"
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_text("".join(f"{line}\n" for _, line in rows.values()), encoding="utf-8")
        height, width = image.record.height, image.record.width
        as_read = {  # the objects that the reader makes of the rows, with the text of each row
            index: (row.record(0, content.categories.ids[row.label], height, width), row.text)
            for index, (row, _) in rows.items()
        }
        images[key] = image_extra(image.record, image.name, as_read, _size_of_file(image.record.path))
    locations = {split: _yolo_split(folder, split, content) for split in content.splits}
    description = locations | {"names": dict(enumerate(names))}
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=10**6)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    extras = Extras(categories=content.categories, names=names, images=images)
    write_extras(folder, extras)
    return _Result([f"images/{image.splits[0]}/{image.name}" for image in content.images], extras)


def _yolo_rows(record: ImageRecord, categories: Categories) -> dict[int, tuple[YoloRow, str]]:
    """The rows to write, by the index of the object in the record: the parsed row and its text.

    Crowd regions are not written. Neither are objects whose row would be invalid.
    """
    objects = {index: obj for index, obj in enumerate(record.objects) if not obj.crowd}
    polygon = all(map(is_polygon, objects.values()))
    rows: dict[int, tuple[YoloRow, str]] = {}
    for index, obj in objects.items():
        label = categories.label_of_id(obj.category_id)
        line = format_row(obj, label, record.height, record.width, polygon=polygon)
        row = parse_row(line, len(rows) + 1)
        if isinstance(row, YoloRow):
            rows[index] = row, line
    return rows


def _size_of_file(path: Path) -> tuple[int, int]:
    """Height and width of an image file, which the reader multiplies the rows by; zeros for an unreadable image."""
    try:
        return image_size(path)
    except ImageFileError:
        return 0, 0


def _yolo_split(folder: Path, split: str, content: _Content) -> str:
    """The value of a split in `data.yaml`: its folder of images, or a list of images, which is written here."""
    images = content.images_of(split)
    if content.has_own_folder(split) and all(Path(image.name).suffix.lower() in IMAGE_SUFFIXES for image in images):
        return f"images/{split}"
    lines = "".join(f"./images/{image.splits[0]}/{image.name}\n" for image in images)
    (folder / f"{split}.txt").write_text(lines, encoding="utf-8")
    return f"{split}.txt"


_WRITERS: dict[Format, Callable[[Path, _Content], _Result]] = {
    Format.COCO: _write_coco,
    Format.VOC: _write_voc,
    Format.YOLO: _write_yolo,
}


# --------------------------------------------------------------------------------------------------------------- notes


def _notes(splits: Mapping[str, DetectionData], content: _Content, written: _Result) -> tuple[str, ...]:
    """A line for each difference from the source, and for data that other programs do not find in the result."""
    images = written.extras.images.values()
    without_row = [obj for image in images for obj in image.without_row]
    with_row = [obj for image in images for obj in image.objects]
    kept = f"kept in {FILE_NAME}, which other programs do not read"
    maps = sum(image.record.panoptic_map is not None for image in content.images) if written.extras.names else 0
    captions = sum("caption" in image.record.extras for image in content.images) if written.extras.names else 0
    videos = {image.record.extras.get(VIDEO) for image in content.images} - {None} if written.extras.names else ()
    counts = (
        (len(videos), "video", "written as single images without track ids: the format does not support videos"),
        (captions, "caption", "with its spans not written: the format does not support captions"),
        (maps, "panoptic map", "not written: the format does not support panoptic maps"),
        (len(splits) - len(content.splits), "split", "without images, skipped"),
        (sum(image.name != image.record.path.name for image in content.images), "image", "under a new name"),
        (sum(obj.crowd for obj in without_row), "crowd region", kept),
        (sum(not obj.crowd for obj in without_row), "box", f"far outside the image, {kept}"),
        (sum(obj.segmentation is not None for obj in with_row), "outline of an object", kept),
        (sum(obj.difficult is not None for obj in with_row), "difficult flag", kept),
        (sum(image.size is not None for image in images), "image", f"whose boxes refer to another image size, {kept}"),
    )
    return tuple(f"{count_noun(number, noun)} {what}" for number, noun, what in counts if number)
