"""Data sets in Pascal VOC's format: one XML file an image, and lists of names as splits.

A box is x = xmin, y = ymin, width = xmax - xmin, height = ymax - ymin, as every common reader takes it, so that figures
compare. (The 1-based, inclusive count of the original challenge would shift boxes by one pixel; most sets in this
format do not follow it.) `difficult` objects are objects like any other.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opendetr.categories import Categories
from opendetr.data.images import image_size
from opendetr.data.paths import IMAGE_SUFFIXES, file_length, inside, is_file
from opendetr.data.records import (
    DataError,
    DetectionData,
    ImageRecord,
    Kind,
    ObjectRecord,
    Remark,
    count_findings,
    usable_objects,
)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
ALL = "all"  # the name of the one split of a folder without lists


@dataclass(frozen=True)
class _Annotation:
    """One XML file: class names and corners of its objects, and the size (height, width) it gives, or None."""

    path: Path
    file_name: str | None
    size: tuple[int, int] | None
    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]


@dataclass(frozen=True)
class VocFolder:
    """A parsed VOC folder.

    Attributes:
        folder: holds `Annotations` and `JPEGImages`.
        categories: the classes of all annotations, sorted by name, with ids 1..K.
        splits: name -> the names of its images; the one split "all" where there are no lists.
    """

    folder: Path
    categories: Categories
    splits: Mapping[str, tuple[str, ...]]
    annotations: Mapping[str, _Annotation]


def parse_voc(folder: Path) -> VocFolder:
    """Read all annotations and lists of a VOC folder. Raises DataError that says what is wrong, and where."""
    paths = sorted((folder / "Annotations").glob("*.xml"))
    if not paths:
        raise DataError(f"{folder / 'Annotations'}: holds no XML files; a VOC folder has one for every image")
    annotations = {path.stem: _parse_annotation(path) for path in paths}
    names = sorted({name for annotation in annotations.values() for name, _ in annotation.objects})
    splits = _split_lists(folder, annotations) or {ALL: tuple(annotations)}
    return VocFolder(folder, Categories.from_names(names), splits, annotations)


def read_voc(voc: str | Path | VocFolder, split: str) -> DetectionData:
    """One split of a VOC folder, in the order of the image names.

    Images are numbered from 1 in the order of all names in the folder, objects likewise, so that an image has the same
    id in every split. Raises DataError for broken files, missing images, and an unknown split.
    """
    voc = voc if isinstance(voc, VocFolder) else parse_voc(Path(voc))
    if split not in voc.splits:
        raise DataError(f"{voc.folder}: no split '{split}'; it has {', '.join(voc.splits)}")
    wanted = set(voc.splits[split])
    images, remarks = [], []
    first_object = 1
    for image_id, (name, annotation) in enumerate(voc.annotations.items(), start=1):
        if name in wanted:
            path = _image_path(voc.folder, name, annotation)
            if file_length(path, str(annotation.path)) == 0:
                remarks.append(Remark(Kind.EMPTY_FILE, str(path)))
            else:
                images.append(_image_record(annotation, path, image_id, first_object, voc.categories))
        first_object += len(annotation.objects)
    remarks += [remark for image in images for remark in image.remarks]
    return DetectionData(
        categories=voc.categories,
        images=tuple(images),
        split=split,
        folder=voc.folder,
        findings=count_findings(remarks),
    )


def _split_lists(folder: Path, annotations: Mapping[str, _Annotation]) -> dict[str, tuple[str, ...]]:
    """List name -> image names. Lists with a second column are VOC's per-class lists, which are no splits."""
    splits = {}
    for path in sorted((folder / "ImageSets" / "Main").glob("*.txt")):
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
        if any(len(line) > 1 for line in lines):
            continue
        names = tuple(name for (name,) in lines)
        unknown = next((name for name in names if name not in annotations), None)
        if unknown is not None:
            raise DataError(f"{path}: '{unknown}' has no {folder / 'Annotations'}/{unknown}.xml")
        if names:
            splits[path.stem] = names
    return splits


def _parse_annotation(path: Path) -> _Annotation:
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        line, column = error.position
        raise DataError(f"{path}: broken XML in line {line}, column {column + 1}: {error.msg.split(':')[0]}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if root.tag != "annotation":
        raise DataError(f"{path}: not VOC: expected <annotation>, found <{root.tag}>")
    sides = [_length(root, "size/height"), _length(root, "size/width")]
    size = (sides[0], sides[1]) if all(sides) else None
    objects = tuple(
        _parse_object(element, f"{path}, object {index}") for index, element in enumerate(root.findall("object"), 1)
    )
    return _Annotation(path, root.findtext("filename"), size, objects)


def _parse_object(element: ET.Element, place: str) -> tuple[str, tuple[float, float, float, float]]:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{place}: <name> is missing")
    corners = []
    for corner in _CORNERS:
        text = element.findtext(f"bndbox/{corner}")
        if text is None:
            raise DataError(f"{place}: <bndbox> has no <{corner}>")
        try:
            corners.append(float(text))
        except ValueError:
            raise DataError(f"{place}: <{corner}> is {text!r}; expected a number") from None
    x0, y0, x1, y1 = corners
    return name, (x0, y0, x1, y1)


def _length(root: ET.Element, tag: str) -> int:
    """Whole pixels; 0 where the annotation does not say."""
    try:
        return int(float(root.findtext(tag) or 0))
    except (ValueError, OverflowError):
        return 0


def _image_path(folder: Path, name: str, annotation: _Annotation) -> Path:
    """The image of an annotation: it bears the annotation's name, or else the one that the annotation gives."""
    pictures = folder / "JPEGImages"
    suffixes = (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))
    same_name = next((path for suffix in suffixes if is_file(path := pictures / (name + suffix))), None)
    if same_name is not None or not annotation.file_name:
        return same_name or pictures / (name + IMAGE_SUFFIXES[0])
    return inside(pictures, annotation.file_name.strip(), str(annotation.path))


def _image_record(
    annotation: _Annotation, path: Path, image_id: int, first_object: int, categories: Categories
) -> ImageRecord:
    height, width = annotation.size or image_size(path)
    objects = [
        ObjectRecord(
            id=id_,
            category_id=categories.ids[categories.label_of_name(name)],
            box=(x0, y0, x1 - x0, y1 - y0),
            area=(x1 - x0) * (y1 - y0),
        )
        for id_, (name, (x0, y0, x1, y1)) in enumerate(annotation.objects, start=first_object)
    ]
    kept, remarks = usable_objects(objects, height, width, str(annotation.path))
    return ImageRecord(id=image_id, path=path, height=height, width=width, objects=kept, remarks=remarks)
