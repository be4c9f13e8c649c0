"""Read datasets in the Pascal VOC format: one XML file per image, and lists of image names as splits.

A box is x = xmin, y = ymin, width = xmax - xmin, height = ymax - ymin. All common readers do the same, so results are
comparable. (The 1-based, inclusive coordinates of the original challenge would shift boxes by one pixel. Most datasets
in this format do not use them.) `difficult` objects are not treated specially. Sides are rounded to a millionth of a
pixel.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from opendetr.categories import Categories
from opendetr.data.formats.lookup import Lookup, name_key, respelled
from opendetr.data.formats.sidecar import Extras, read_extras
from opendetr.data.formats.spellings import is_rotation, named_number, rotated_box
from opendetr.data.formats.splits import SINGLE_SPLIT, SPLIT_SPELLINGS, path_split, usual_split
from opendetr.data.images import ImageFileError
from opendetr.data.listing import is_image_name
from opendetr.data.paths import file_length
from opendetr.data.records import (
    MAX_SIDE,
    RAISE_FAULTS,
    DataError,
    DataFault,
    DetectionData,
    FaultError,
    FaultKind,
    FaultLog,
    ImageRecord,
    ObjectRecord,
    unknown_split,
    usable_objects,
)
from opendetr.data.sizes import AnnotatedSizes, ImageSizes
from opendetr.data.text import pixels, read_xml, root_tag
from opendetr.files import IMAGE_SUFFIXES

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ROTATED_BOX = ("cx", "cy", "w", "h", "angle")


class VocObject(NamedTuple):
    """One object of an annotation file: its number from 1, class, xmin, ymin, xmax, ymax in pixels, and `difficult`.

    If the box is rotated, the corners are those of the axis-aligned box around it, and `degrees` is the rotation.
    """

    number: int
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool
    degrees: float = 0.0

    @property
    def text(self) -> str:
        """The object in the normalised form that the digest of `data.formats.sidecar` is computed from."""
        return " ".join((self.name, *map(repr, self.corners), str(int(self.difficult))))

    def record(self, id_: int, category_id: int) -> ObjectRecord:
        """The record of the object, with these ids."""
        x0, y0, x1, y1 = self.corners
        sides = pixels(x1 - x0), pixels(y1 - y0)
        return ObjectRecord(
            id=id_,
            category_id=category_id,
            box=(x0, y0, *sides),
            area=math.prod(sides),
            difficult=self.difficult,
            at=f"object {self.number}",
        )


@dataclass(frozen=True)
class _Annotation:
    """One XML file: its objects, and the image size (height, width) that it gives, or None."""

    path: Path
    file_name: str | None
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


@dataclass(frozen=True)
class VocFolder:
    """A parsed VOC folder.

    Attributes:
        lookup: the files of the folder.
        categories: the classes of all annotations, sorted by name, with ids 1..K, or those of `opendetr.json`.
        splits: name -> the names of its images; only the split "all" if there are no lists.
        annotations: image name, with its folder if they are in several -> its annotation file.
        category_ids: class name in the annotations -> its id.
        extras: the content of `opendetr.json`.
    """

    lookup: Lookup
    categories: Categories
    splits: Mapping[str, tuple[str, ...]]
    annotations: Mapping[str, _Annotation]
    category_ids: Mapping[str, int]
    extras: Extras

    @property
    def folder(self) -> Path:
        """The dataset."""
        return self.lookup.folder


def find_annotations(folder: Path) -> list[Path]:
    """The XML files in the folder `Annotations`, in any case, of a VOC folder; none if it is no VOC folder."""
    return sorted(
        path / name
        for path in _named_folders(folder, "annotations")
        for name in Lookup(path).names_in(path)
        if name.lower().endswith(".xml") and not name.startswith(".")
    )


def is_voc(path: Path) -> bool:
    """Whether an XML file is VOC's, by its first tag. A file that is no XML may be one."""
    return root_tag(path) in ("annotation", None)


def parse_voc(folder: Path, log: FaultLog = RAISE_FAULTS, paths: Sequence[Path] = ()) -> VocFolder:
    """Read all annotations and lists of a VOC folder. Raises DataError that names the fault and its place.

    Args:
        folder: contains `Annotations` and `JPEGImages`, or XML files and images in any folders.
        log: what to do at an unusable file, object or name.
        paths: the XML files; those in `Annotations` when omitted.
    """
    paths = paths or find_annotations(folder)
    if not paths:
        raise DataError(f"{folder / 'Annotations'}: contains no XML files; a VOC folder has one for every image")
    lookup = Lookup(folder)
    parents = {path.parent for path in paths}
    root = parents.pop() if len(parents) == 1 else folder
    annotations: dict[str, _Annotation] = {}
    for path in sorted(paths, key=lambda path: (path.name, path)):
        with log:
            name = path.relative_to(root).with_suffix("").as_posix()
            annotations[name] = _parse_annotation(path, log)
    names = {obj.name for annotation in annotations.values() for obj in annotation.objects}
    splits = _split_lists(lookup, annotations, log) or _splits_of_folders(annotations, folder)
    extras = read_extras(folder)
    categories = extras.categories_with(sorted(names - set(extras.names)))
    stated = (*extras.names, *categories.names[len(extras.names) :])
    # If several classes have one name, it means the first; `opendetr.json` gives the ids of the others.
    category_ids = dict(reversed(list(zip(stated, categories.ids, strict=True))))
    return VocFolder(lookup, categories, splits, annotations, category_ids, extras)


def read_voc(voc: str | Path | VocFolder, split: str, log: FaultLog = RAISE_FAULTS) -> DetectionData:
    """One split of a VOC folder, in the order of the image names.

    Images and objects have ids from 1 in the order of all image names in the folder, so an image has the same id in
    every split. Raises DataError for broken files, missing images, and an unknown split.
    """
    voc = voc if isinstance(voc, VocFolder) else parse_voc(Path(voc))
    if split not in voc.splits:
        raise unknown_split(voc.folder, split, voc.splits)
    wanted = set(voc.splits[split])
    images: list[ImageRecord] = []
    faults: list[DataFault] = []
    paths: dict[str, Path] = {}
    bases: dict[Path, list[Path]] = {}
    for name, annotation in voc.annotations.items():
        if name in wanted:
            with log:
                place = annotation.path.parent
                if place not in bases:
                    outer = [] if place == voc.folder else _named_folders(place.parent, "jpegimages")
                    bases[place] = [place, *outer]
                paths[name] = _image_path(voc.lookup, annotation, bases[place], faults)
    sizes = ImageSizes(voc.folder)
    sizes.prefetch(list(paths.values()))
    annotated = AnnotatedSizes(sizes, lambda: _annotated_sizes(voc, paths))
    first_object = voc.extras.next_object_id
    for image_id, (name, annotation) in enumerate(voc.annotations.items(), start=voc.extras.next_image_id):
        if name in paths:
            with log:
                record = _image_record(voc, annotation, paths[name], image_id, first_object, faults, sizes, annotated)
                if record is not None:
                    images.append(record)
        first_object += len(annotation.objects)
    sizes.save()
    return DetectionData.from_records(split, voc.folder, voc.categories, images, faults, box_format="xyxy")


def _annotated_sizes(
    voc: VocFolder, paths: Mapping[str, Path]
) -> Iterator[tuple[Path, tuple[int, int], tuple[ObjectRecord, ...]]]:
    """Image file, annotated height and width, and objects of each image that gives its size."""
    for name, path in paths.items():
        annotation = voc.annotations[name]
        if annotation.size is not None:
            objects = tuple(obj.record(0, 0) for obj in annotation.objects)
            yield path, annotation.size, objects


def _named_folders(folder: Path, *names: str) -> list[Path]:
    """The folders of a name, in any case, in a folder; of several names, each inside the one before."""
    found = [folder]
    for name in names:
        inside = [
            (outer, entry) for outer in found if outer.is_dir() for entry in sorted(Lookup(outer).names_in(outer))
        ]
        found = [outer / entry for outer, entry in inside if entry.lower() == name and (outer / entry).is_dir()]
    return found


def _splits_of_folders(annotations: Mapping[str, _Annotation], folder: Path) -> dict[str, tuple[str, ...]]:
    """Split name -> image names, by the folders of the annotations."""
    splits: dict[str, list[str]] = {}
    for name, annotation in annotations.items():
        place = annotation.path.parent
        split = path_split(place.relative_to(folder).as_posix()) if place.is_relative_to(folder) else None
        splits.setdefault(split or SINGLE_SPLIT, []).append(name)
    return {split: tuple(names) for split, names in splits.items()}


def _lists(lookup: Lookup) -> list[Path]:
    """The lists of image names: those in `ImageSets/Main`, or else in `ImageSets`, or else files like `train.txt`."""
    folder = lookup.folder
    for names in (("imagesets", "main"), ("imagesets",)):
        found = [
            path / name
            for path in _named_folders(folder, *names)
            for name in sorted(lookup.names_in(path))
            if name.lower().endswith(".txt")
        ]
        if found:
            return found
    return [
        folder / name
        for name in sorted(lookup.names_in(folder))
        if name.lower().endswith(".txt") and usual_split(name[:-4]) in SPLIT_SPELLINGS.values()
    ]


def _split_lists(lookup: Lookup, annotations: Mapping[str, _Annotation], log: FaultLog) -> dict[str, tuple[str, ...]]:
    """List name -> image names. Lists with a second column are the per-class lists of VOC, not splits.

    A single list whose name is not that of a split is the whole dataset.
    """
    known = _Names(annotations)
    splits = {}
    for path in _lists(lookup):
        with log:
            lines = [line if line in annotations else line.strip() for line in _read_list(path).split("\n")]
            if any(len(line.split()) > 1 for line in lines if known.find(line) is None):
                continue
            if path.parent == lookup.folder and known.find(next(filter(None, lines), "")) is None:
                continue  # a text of another kind
            names = []
            for number, line in enumerate(lines, start=1):
                with log:
                    if line:
                        names.append(_listed_name(line, known, lookup.folder, path, number))
            if names:
                splits[path.stem] = tuple(names)
    usual = [usual_split(name) for name in splits]
    if len(splits) == 1 and usual[0] not in SPLIT_SPELLINGS.values():
        return dict.fromkeys([SINGLE_SPLIT], next(iter(splits.values())))
    return {
        split if usual.count(split) == 1 and split in SPLIT_SPELLINGS.values() else name: names
        for split, (name, names) in zip(usual, splits.items(), strict=True)
    }


class _Names:
    """Finds the image that a line of a list means."""

    def __init__(self, annotations: Mapping[str, _Annotation]) -> None:
        self._annotations = annotations
        self._by_key: dict[str, list[str]] | None = None

    def find(self, line: str) -> str | None:
        """The image name; None if there is none, or if several fit. The line may have a folder and a suffix."""
        if line in self._annotations:
            return line
        if self._by_key is None:
            self._by_key = {}
            for name in self._annotations:
                self._by_key.setdefault(name_key(name.rpartition("/")[2]), []).append(name)
        last = re.split(r"[\\/]", line)[-1]
        stem, suffix = os.path.splitext(last)  # noqa: PTH122
        is_file = suffix.lower() == ".xml" or is_image_name(last)
        found = next(filter(None, (self._by_key.get(name_key(key)) for key in (last, stem)[: 1 + is_file])), [])
        if len(found) > 1:
            folders = [name_key(part) for part in re.split(r"[\\/]", line)[:-1]]
            found = [name for name in found if name_key(name).split("/")[:-1] == folders]
        return found[0] if len(found) == 1 else None


def _read_list(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FaultError(FaultKind.BROKEN_FILE, path, "", f"cannot be read ({error})") from None


def _listed_name(line: str, known: _Names, folder: Path, path: Path, number: int) -> str:
    name = known.find(line)
    if name is None:
        detail = f"'{line}' has no {folder / 'Annotations'}/{line}.xml; add it, or remove the line"
        raise FaultError(FaultKind.MISSING_ANNOTATION, path, f"line {number}", detail)
    return name


def _parse_annotation(path: Path, log: FaultLog) -> _Annotation:
    root = read_xml(path)
    if root.tag != "annotation":
        detail = f"not VOC: expected <annotation>, found <{root.tag}>"
        raise FaultError(FaultKind.WRONG_STRUCTURE, path, "", detail)
    sides = [_length(root, "size/height"), _length(root, "size/width")]
    size = (sides[0], sides[1]) if all(sides) else None
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        with log:
            objects.append(_parse_object(element, number, path))
    return _Annotation(path, root.findtext("filename"), size, tuple(objects))


def _parse_object(element: ET.Element, number: int, path: Path) -> VocObject:
    at = f"object {number}"
    name = (element.findtext("name") or "").strip()
    if not name:
        raise FaultError(FaultKind.MISSING_FIELD, path, at, "<name> is missing")
    corners, degrees = _corners(element, path, at)
    return VocObject(number, name, corners, (element.findtext("difficult") or "").strip() == "1", degrees)


def _corners(element: ET.Element, path: Path, at: str) -> tuple[tuple[float, float, float, float], float]:
    """The corners of the box of an object, and its rotation in degrees.

    The element <robndbox> of roLabelImg has an angle in radians, the attribute "rotation" of CVAT one in degrees.
    """
    if element.find("bndbox") is None and element.find("robndbox") is not None:
        cx, cy, w, h, angle = _numbers(element, "robndbox", _ROTATED_BOX, path, at)
        box, degrees = (cx - w / 2, cy - h / 2, w, h), math.degrees(angle)
    else:
        x0, y0, x1, y1 = _numbers(element, "bndbox", _CORNERS, path, at)
        attributes = {
            part.findtext("name") or "": part.findtext("value") for part in element.iterfind("attributes/attribute")
        }
        degrees = named_number(attributes, ("rotation",)) or 0.0
        if not is_rotation(degrees):
            return (x0, y0, x1, y1), 0.0
        box = (x0, y0, x1 - x0, y1 - y0)
    x, y, w, h = rotated_box(box, degrees)
    return (x, y, pixels(x + w), pixels(y + h)), degrees if is_rotation(degrees) else 0.0


def _numbers(element: ET.Element, tag: str, names: tuple[str, ...], path: Path, at: str) -> list[float]:
    """The numbers in the children of an element. Raises FaultError if one is missing or not a number."""
    values = []
    for name in names:
        text = element.findtext(f"{tag}/{name}")
        if text is None:
            raise FaultError(FaultKind.MISSING_FIELD, path, at, f"<{tag}> has no <{name}>")
        try:
            values.append(float(text))
        except ValueError:
            detail = f"<{name}> is {reprlib.repr(text)}; expected a number"
            raise FaultError(FaultKind.BAD_VALUE, path, at, detail) from None
    return values


def _length(root: ET.Element, tag: str) -> int:
    """A side of the image in whole pixels; 0 if the annotation does not give a valid one."""
    try:
        length = float(root.findtext(tag) or 0)
    except ValueError:
        return 0
    return int(length) if 0 < length < MAX_SIDE else 0


def _image_path(lookup: Lookup, annotation: _Annotation, bases: Sequence[Path], faults: list[DataFault]) -> Path:
    """The image with the name of the annotation file, or else the one that the annotation names."""
    path, named = annotation.path, (annotation.file_name or "").strip()
    found = lookup.image_of(path, named, bases)
    if found is None:
        images = path.parent.parent / "JPEGImages" if path.parent.name.lower() == "annotations" else path.parent
        return lookup.require_image(named or path.stem + IMAGE_SUFFIXES[0], [images], path)
    if found.respelled:
        faults.append(respelled(named, found.path, path))
    return found.path


def _image_record(
    voc: VocFolder,
    annotation: _Annotation,
    path: Path,
    image_id: int,
    first_object: int,
    faults: list[DataFault],
    sizes: ImageSizes,
    annotated: AnnotatedSizes,
) -> ImageRecord | None:
    """The record of an image. For an unreadable image, adds a fault and returns None."""
    source = str(annotation.path)
    if file_length(path, source) == 0:
        faults.append(DataFault(FaultKind.EMPTY_FILE, str(path)))
        return None
    size, size_faults = annotation.size, list[DataFault]()
    if size is None:
        try:
            size = sizes.oriented(path)
        except ImageFileError as error:
            faults.append(error.fault)
            return None
        size_faults.append(DataFault(FaultKind.NO_SIZE, source))
    size_faults += [
        DataFault(FaultKind.ROTATED_BOX, source, f"object {obj.number}", f"{obj.degrees:g} degrees")
        for obj in annotation.objects
        if obj.degrees
    ]
    objects = tuple(
        obj.record(id_, voc.category_ids[obj.name]) for id_, obj in enumerate(annotation.objects, first_object)
    )
    if annotation.size is not None:
        size, more = annotated.settled(path, size, objects, source, "")
        size_faults += more
    height, width = size
    plain = ImageRecord(
        id=image_id, path=path, height=height, width=width, objects=objects, faults=tuple(size_faults), source=source
    )
    key = annotation.path.relative_to(voc.folder).as_posix()
    record = voc.extras.restored(key, plain, [obj.text for obj in annotation.objects])
    usable, object_faults = usable_objects(record.objects, height, width, source)
    return replace(record, objects=usable, faults=record.faults + object_faults)
