"""Read datasets in the YOLO format: `data.yaml`, and for every image a text file with a row for each object.

A row is `class cx cy w h`, or `class x1 y1 x2 y2 ...` for a polygon, in fractions of the width and height of the image
after its EXIF orientation is applied. The box of a polygon is its bounding box, and its area is that of the polygon.
With `kpt_shape` in `data.yaml`, a row is a box and its keypoints, which are not read.
The class number is the id of the category. `data.yaml` names the classes (a list, or numbers with names) and gives
folders or lists of images as splits:

    path: .
    train: images/train
    val: images/val
    names: {0: cat, 1: dog}

The labels of `images/train/1.jpg` are in `labels/train/1.txt`, or else next to the image. A folder with `images` and
`labels` can also be read without `data.yaml`. Its classes are then named by `classes.txt`, or else by their numbers.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from opendetr.categories import Categories
from opendetr.data.faults import FaultKind
from opendetr.data.formats.annotated import points_box
from opendetr.data.formats.json_files import read_json
from opendetr.data.formats.links import Place, find_place, through_text_links
from opendetr.data.formats.lookup import Lookup, composed, name_key, respelled
from opendetr.data.formats.sidecar import Extras, read_extras
from opendetr.data.formats.spellings import is_rotated_quad
from opendetr.data.formats.splits import (
    SINGLE_SPLIT,
    SPLIT_SPELLINGS,
    folder_split,
    path_split,
    split_folders,
    usual_split,
)
from opendetr.data.formats.yolo_rows import FEWEST_POLYGON_NUMBERS, RowLengths, YoloRow, box_or_polygon, row_lengths
from opendetr.data.images import ImageFileError
from opendetr.data.listing import is_image_name
from opendetr.data.paths import file_length, is_file
from opendetr.data.records import (
    RAISE_FAULTS,
    DataError,
    DataFault,
    DetectionData,
    FaultError,
    FaultLog,
    ImageRecord,
    ObjectRecord,
    unknown_split,
    usable_objects,
)
from opendetr.data.sizes import ImageSizes
from opendetr.data.text import first_line, read_text

YAML_SUFFIXES = (".yaml", ".yml")
DARKNET_SUFFIX = ".data"
USUAL_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml", "config.yaml")
# Files with a class name per line, the first kind found counts.
_NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "names.txt", "labels.txt", "predefined_classes.txt")
_LABEL_STUDIO_NOTES = "notes.json"
_NO_SPLITS = frozenset({"path", "names", "nc"})
_SKIP_UNLABELLED = "skip_if_label_file_missing"
_MAX_DESCRIPTION_BYTES = 2**24
_MAX_LABEL_BYTES = 2**26
_MAX_CLASSES = 100_000
_LARGEST_CLASS = 2**31
_ROUNDING = 0.01  # COCO rounds boxes to two decimals
_KEYPOINTS = "kpt_shape"


def format_row(obj: ObjectRecord, label: int, height: int, width: int, *, polygon: bool) -> str:
    """The row of an object as a box or as a polygon (see `is_polygon`). Numbers have all their digits."""
    x, y, w, h = obj.box
    if polygon:
        (points,) = obj.segmentation
        values = [value / side for value, side in zip(points, (width, height) * (len(points) // 2), strict=True)]
    else:
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    return " ".join((str(label), *map(repr, map(float, values))))


def is_polygon(obj: ObjectRecord) -> bool:
    """Whether a row can store the outline of an object: it is one polygon, and its bounding box is the box."""
    polygons = obj.segmentation
    if not isinstance(polygons, list) or len(polygons) != 1 or not isinstance(polygons[0], list):
        return False
    points = polygons[0]
    if len(points) < FEWEST_POLYGON_NUMBERS or len(points) % 2 or not all(isinstance(p, int | float) for p in points):
        return False
    distances = (abs(a - b) for a, b in zip(points_box(points[0::2], points[1::2]), obj.box, strict=True))
    return all(distance < _ROUNDING for distance in distances)


class _Image(NamedTuple):
    """An image file and its label file, which need not exist."""

    path: Path
    labels: Path


class _Labels(NamedTuple):
    """The rows of a label file, and the faults of invalid rows; `exists` is whether the file exists."""

    rows: tuple[YoloRow, ...]
    faults: tuple[DataFault, ...]
    exists: bool


@dataclass(frozen=True)
class YoloFolder:
    """A parsed YOLO dataset.

    Attributes:
        folder: the dataset.
        categories: its classes.
        labels_of_numbers: class number -> label (index of the class in `categories`).
        splits: name -> its images.
        labels: image -> the content of its label file, in the order of the image ids.
        extras: the content of `opendetr.json`.
        faults: the faults of the dataset as a whole.
        omit_unlabelled: skip images without a label file, instead of treating them as images without objects.
    """

    folder: Path
    categories: Categories
    labels_of_numbers: Mapping[int, int]
    splits: Mapping[str, tuple[_Image, ...]]
    labels: Mapping[_Image, _Labels]
    extras: Extras
    faults: tuple[DataFault, ...]
    omit_unlabelled: bool


def find_description(folder: Path) -> Path | None:
    """The description of a folder: `data.yaml`, a YAML or Darknet file of another name; None if there is none.

    Raises FaultError when a file with a usual name is not valid YAML, and DataError when several files describe a
    dataset.
    """
    names = Lookup(folder).names_in(folder)
    return the_description(folder, [folder / name for name in names if _may_describe(name)])


def the_description(folder: Path, paths: Iterable[Path]) -> Path | None:
    """The one of some files that describes a dataset, a file with a usual name first. Errors as `find_description`."""
    descriptions = []
    for path in sorted(filter(is_file, paths), key=lambda path: (path.name.lower() not in USUAL_NAMES, path)):
        try:
            content = parse_description(path, Lookup(folder))
        except FaultError:
            if path.name in USUAL_NAMES:
                raise
        else:
            if _describes(content):
                descriptions.append(path)
    if len(descriptions) > 1:
        first, second = descriptions[:2]
        if first.name.lower() not in USUAL_NAMES or (second.name.lower() in USUAL_NAMES and first.parent != folder):
            names = ", ".join(path.relative_to(folder).as_posix() for path in descriptions)
            raise DataError(f"{folder}: {names} each describe a dataset; name the one to use")
    return descriptions[0] if descriptions else None


def descriptions_in(lookup: Lookup) -> list[Path]:
    """The YAML and Darknet files anywhere in a dataset."""
    return lookup.files(*YAML_SUFFIXES, DARKNET_SUFFIX)


def _may_describe(name: str) -> bool:
    return name.lower().endswith((*YAML_SUFFIXES, DARKNET_SUFFIX))


def is_bare_folder(folder: Path) -> bool:
    """Whether a folder without a description has the YOLO layout: `images`, and text files in `labels`."""
    return bool(_bare_splits(folder))


def has_labels(lookup: Lookup) -> bool:
    """Whether a dataset has a label file with a row for an image of its name, in any folders."""
    stems = {name_key(path.stem) for path in lookup.images()}
    texts = (path for path in lookup.files(".txt") if name_key(path.stem) in stems)
    return any(_looks_like_labels(path) for path in texts)


def parse_yolo(source: Path, log: FaultLog = RAISE_FAULTS, folder: Path | None = None) -> YoloFolder:
    """Read the description and all label files. Raises DataError that names the fault and its place.

    Args:
        source: the folder of the dataset, its `data.yaml`, or a list of images.
        log: what to do at an unusable file.
        folder: the folder of the dataset; `source`, or the folder of `source`, when omitted.
    """
    description = source if source.is_file() else find_description(source)
    folder = folder or (source.parent if source.is_file() else source)
    lookup = Lookup(folder)
    content = parse_description(description, lookup) if description else {}
    if description and not _describes(content):
        detail = "does not describe a dataset; add 'train', 'val' and 'names'"
        raise FaultError(FaultKind.WRONG_STRUCTURE, description, "", detail)
    faults: list[DataFault] = []
    splits = _splits(content, lookup, description, faults, log)
    with log:
        splits = _with_distant_labels(splits, lookup, faults)
    written = {}
    for image in sorted({image for images in splits.values() for image in images}, key=_order):
        with log:
            written[image] = _parse_labels(image.labels, exists=lookup.has(image.labels))
    lengths = row_lengths(written.values(), _keypoints(content, description))
    labels = {image: _understood(rows, lengths, image.labels) for image, rows in written.items()}
    _require_labels(labels, description or folder)
    extras = read_extras(folder)
    names, class_faults = _class_names(content, description, lookup, labels)
    if lengths.doubt:
        faults.append(DataFault(FaultKind.EXTRA_NUMBERS, str(description or folder), "", lengths.doubt))
    categories = _categories(names, extras, description or folder)
    return YoloFolder(
        folder=folder,
        categories=categories,
        labels_of_numbers={number: label for label, number in enumerate(names)},
        splits=splits,
        labels=labels,
        extras=extras,
        faults=(*faults, *class_faults),
        omit_unlabelled=str(content.get(_SKIP_UNLABELLED)).lower() == "true",
    )


def read_yolo(yolo: str | Path | YoloFolder, split: str, log: FaultLog = RAISE_FAULTS) -> DetectionData:
    """One split of a YOLO dataset, in the order of the image names.

    Images and objects have ids from 1 in the order of all image names in the dataset, so an image has the same id in
    every split. Raises DataError for missing images, and for an unknown split.
    """
    yolo = yolo if isinstance(yolo, YoloFolder) else parse_yolo(Path(yolo))
    if split not in yolo.splits:
        raise unknown_split(yolo.folder, split, yolo.splits)
    wanted = set(yolo.splits[split])
    images, faults = [], list(yolo.faults)
    sizes = ImageSizes(yolo.folder)
    sizes.prefetch([image.path for image in yolo.labels if image in wanted])
    image_id, first_object = yolo.extras.next_image_id, yolo.extras.next_object_id
    for image, labels in yolo.labels.items():
        if image in wanted and yolo.omit_unlabelled and not labels.exists:
            faults.append(DataFault(FaultKind.OMITTED_IMAGE, str(image.path)))
        elif image in wanted:
            with log:
                record = _image_record(yolo, image, image_id, first_object, faults, sizes)
                if record is not None:
                    images.append(record)
        image_id += 1
        first_object += len(labels.rows)
    sizes.save()
    faults += _orphans(wanted, yolo.labels)
    return DetectionData.from_records(split, yolo.folder, yolo.categories, images, faults, box_format="cxcywh")


def label_file(image: PurePosixPath) -> PurePosixPath:
    """The label file of an image: `images/train/1.jpg` -> `labels/train/1.txt`.

    If no folder in the path is named `images`, the label file is next to the image.
    """
    parts = list(image.parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return PurePosixPath(*parts).with_suffix(".txt")


# ----------------------------------------------------------------------------------------------------- the description


def parse_yaml(path: Path) -> Any:
    """The content of a YAML file, with all scalars as strings, because YAML reads a class named `no` as False."""
    text = read_text(path, max_bytes=_MAX_DESCRIPTION_BYTES)
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise FaultError(FaultKind.BROKEN_FILE, path, at, f"broken YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise FaultError(FaultKind.BROKEN_FILE, path, "", f"broken YAML: {reason}") from None


def parse_description(path: Path, lookup: Lookup) -> Any:
    """The content of a file that describes a dataset, as that of a YAML file.

    A Darknet file (`obj.data`) has rows such as `train = data/train.txt`. A text file is a list of images.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return {"names": [], usual_split(path.stem) if _is_split(path.stem) else SINGLE_SPLIT: path.name}
    if suffix != DARKNET_SUFFIX:
        return parse_yaml(path)
    rows = (line.partition("=") for line in read_text(path, max_bytes=_MAX_DESCRIPTION_BYTES).split("\n"))
    values = {key.strip().lower(): value.strip() for key, equals, value in rows if equals and value.strip()}
    if not values.keys() & {"classes", "names"}:
        return {}
    content: dict[str, Any] = {"nc": values.get("classes"), "names": []}
    names = lookup.place(values["names"], [path.parent], path) if "names" in values else None
    if names is not None:
        content["names"] = [line.strip() for line in read_text(names).split("\n") if line.strip()]
    for key in ("train", "valid", "val", "test"):
        if key in values and lookup.place(values[key], [path.parent], path) is not None:
            content[key] = values[key]
    return content


def _is_split(name: str) -> bool:
    return usual_split(name) in SPLIT_SPELLINGS.values()


def _describes(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    return (
        "names" in content
        or "nc" in content
        or all(isinstance(content.get(key), str | list) for key in ("train", "val"))
    )


def _splits(
    content: Mapping[str, Any], lookup: Lookup, description: Path | None, faults: list[DataFault], log: FaultLog
) -> dict[str, tuple[_Image, ...]]:
    """Split name -> its images."""
    folder = lookup.folder
    bases = _bases(content, description.parent if description else folder)
    bases += [] if folder in bases else [folder]
    lookups = [lookup, *(Lookup(base) for base in bases if not base.is_relative_to(folder))]
    file = description or folder
    splits: dict[str, tuple[_Image, ...]] = {}
    for key, value in content.items():
        entries = [value] if isinstance(value, str) else value
        if key in _NO_SPLITS or not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            continue
        places = [(entry, _find_entry(entry, bases, lookup, file)) for entry in entries if entry.strip()]
        missing = next((entry for entry, place in places if place is None), None)
        if missing is None and places:
            with log:
                images = [
                    image for _, place in places if place for image in _images(place, bases, lookups, faults, log)
                ]
                splits[SPLIT_SPELLINGS.get(key.lower(), key)] = tuple(dict.fromkeys(images))
        elif key in ("train", "val") and missing is not None:
            with log:
                detail = f"there is no {missing!r} in {' or '.join(map(str, bases))}; correct or remove the entry"
                raise FaultError(FaultKind.WRONG_STRUCTURE, file, f"'{key}'", detail)
    bare = {} if splits else _bare_splits(folder)
    splits |= {name: tuple(_images_in(place, lookup)) for name, place in bare.items()}
    splits = splits or _listed_splits(lookup, bases, faults, log) or _splits_of_folders(lookup)
    if not splits:
        detail = "names no images; add 'train' and 'val' with folders or lists of images"
        raise FaultError(FaultKind.NO_DATA, file, "", detail)
    return splits


def _find_entry(entry: str, bases: Sequence[Path], lookup: Lookup, file: Path) -> Place | None:
    """The folder or list that an entry of a description names."""
    found = find_place(entry, bases, lookup.folder)
    path = None if found else lookup.place(entry.strip(), bases, file)
    if path is None or (path.is_dir() and not Lookup(path).has_images()):  # such as labels/train for images/train
        return found
    return Place(path, path)


def _bases(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Folders that paths in a description may be relative to: its `path`, if it exists, and its own folder."""
    path = content.get("path")
    stated = folder / path if isinstance(path, str) and path.strip() else folder
    return list(dict.fromkeys(base for base in (stated, folder) if base.is_dir()))


def _images(
    place: Place, bases: Sequence[Path], lookups: Sequence[Lookup], faults: list[DataFault], log: FaultLog
) -> Iterator[_Image]:
    """The images of a folder, or of a text file that lists images."""
    lookup = lookups[0]
    if place.path.is_dir():
        if place.path.resolve() in lookup.folder.resolve().parents:  # searching it could take hours
            detail = f"contains the dataset {lookup.folder}; name the folder of its images"
            raise FaultError(FaultKind.WRONG_STRUCTURE, place.path, "", detail)
        yield from _images_in(place, lookup)
        return
    if place.path.suffix.lower() != ".txt":
        detail = "neither a folder nor a .txt list of images"
        raise FaultError(FaultKind.WRONG_STRUCTURE, place.path, "", detail)
    bases = [place.path.parent, *bases]
    for number, line in enumerate(read_text(place.path).split("\n"), start=1):
        with log:
            if line.strip():
                at, name = f"line {number}", line.strip()
                options = (of_base.image(name, bases, place.path, at) for of_base in lookups)
                image = next(filter(None, options), None)
                if image is None:
                    detail = f"the image {name!r} is missing; add it, or remove it from the list"
                    raise FaultError(FaultKind.MISSING_IMAGE, place.path, at, detail)
                if image.respelled:
                    faults.append(respelled(name, image.path, place.path, at))
                yield _image(Place(image.path, image.name), lookup)


def _images_in(place: Place, lookup: Lookup) -> Iterator[_Image]:
    inside = Lookup(place.path)
    for folder, names in inside.tree:
        for name in filter(is_image_name, names):
            yield _image(Place(place.path / folder / name, place.name / folder / name), lookup)


def _image(place: Place, lookup: Lookup) -> _Image:
    """The image with its label file: in `labels`, or next to the image if only that file exists."""
    usual = Path(label_file(PurePosixPath(place.name.as_posix())))
    if lookup.has(usual):
        return _Image(place.path, usual)
    adjacent = place.name.with_suffix(".txt")
    return _Image(place.path, adjacent if lookup.has(adjacent) else usual)


def _with_distant_labels(
    splits: dict[str, tuple[_Image, ...]], lookup: Lookup, faults: list[DataFault]
) -> dict[str, tuple[_Image, ...]]:
    """The splits, where images without a label file in a usual place have the one of their name in another place.

    Label files of all images in the usual places belong to those.
    """
    images = {image for of_split in splits.values() for image in of_split}
    lacking = [image for image in images if not lookup.has(image.labels)]
    if not lacking:
        return splits
    known = {image.labels for image in images}
    free = [path for path in lookup.files(".txt") if path not in known and path.name.lower() not in _NAME_LISTS]
    if free:
        others = {_image(Place(path, path), lookup).labels for path in lookup.images()}
        free = [path for path in free if path not in others and _looks_like_labels(path, empty=True)]
    pairs = lookup.pairs([image.path for image in lacking], free)
    faults += [
        respelled(text.name, path, text) for path, text in pairs.items() if composed(text.stem) != composed(path.stem)
    ]
    new = {image: _Image(image.path, pairs[image.path]) for image in lacking if image.path in pairs}
    return {name: tuple(new.get(image, image) for image in of_split) for name, of_split in splits.items()}


def _listed_splits(
    lookup: Lookup, bases: Sequence[Path], faults: list[DataFault], log: FaultLog
) -> dict[str, tuple[_Image, ...]]:
    """Split name -> its images, for lists such as `train.txt` beside the images."""
    lists = [path for path in lookup.files(".txt") if _is_split(path.stem) and is_image_name(first_line(path).strip())]
    splits: dict[str, tuple[_Image, ...]] = {}
    for path in lists:
        name = usual_split(path.stem)
        if name not in splits:
            splits[name] = tuple(dict.fromkeys(_images(Place(path, path), bases, [lookup], faults, log)))
    return splits


def _splits_of_folders(lookup: Lookup) -> dict[str, tuple[_Image, ...]]:
    """Split name -> its images, for images in any folders that contain one with a label file."""
    by_folder: dict[Path, list[_Image]] = {}
    for path in lookup.images():
        by_folder.setdefault(path.parent, []).append(_image(Place(path, path), lookup))
    stems = {name_key(path.stem) for path in lookup.files(".txt")}
    splits: dict[str, list[_Image]] = {}
    for folder, images in by_folder.items():
        if any(name_key(image.path.stem) in stems for image in images):
            split = path_split(folder.relative_to(lookup.folder).as_posix()) or SINGLE_SPLIT
            splits.setdefault(split, []).extend(images)
    return {name: tuple(images) for name, images in splits.items()}


def _looks_like_labels(path: Path, *, empty: bool = False) -> bool:
    """Whether the first row of a text file is that of an object; `empty` for a file without rows."""
    line = first_line(path)
    row = _parse_numbers(line, 1) if line else None
    if row is None:
        return empty
    # Further numbers may follow a box, such as keypoints or a confidence.
    return isinstance(row, YoloRow) and isinstance(box_or_polygon(row._replace(values=row.values[:4])), YoloRow)


def _order(image: _Image) -> tuple[str, str]:
    """Sort key: the file name before the folder, so that the images of a dataset have the same order in all formats."""
    return image.path.name, image.path.as_posix()


def _bare_splits(folder: Path) -> dict[str, Place]:
    """Split name -> its images, for a folder without a description.

    The folder contains `images` and `labels`, or a folder for each split that contains them.
    """
    images = through_text_links(folder / "images")
    if images is not None and images.is_dir() and _holds_text(folder / "labels"):
        splits = split_folders(sub.name for sub in _folders(images))
        named = {
            name: Place(images / sub, folder / "images" / sub) for sub, name in splits.items() if folder_split(sub)
        }
        return named or {SINGLE_SPLIT: Place(images, folder / "images")}
    parts = [sub for sub in _folders(folder) if (sub / "images").is_dir() and _holds_text(sub / "labels")]
    if len(parts) == 1 and folder_split(parts[0].name) is None:
        return {}  # a folder around the dataset
    splits = split_folders(sub.name for sub in parts)
    return {splits[sub.name]: Place(sub / "images", sub / "images") for sub in parts}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _holds_text(folder: Path) -> bool:
    return any(path.suffix == ".txt" for path in folder.rglob("*.txt"))


# --------------------------------------------------------------------------------------------------------- the classes


def _class_names(
    content: Mapping[str, Any], description: Path | None, lookup: Lookup, labels: Mapping[_Image, _Labels]
) -> tuple[dict[int, str], tuple[DataFault, ...]]:
    """Class number -> name, in the order of the numbers; and faults: classes without a name, and shifted numbers."""
    place = description or lookup.folder
    names = _stated_names(content.get("names"), place) or _listed_names(lookup)
    count = _stated_count(content.get("nc"), place)
    if names and count is not None and count not in (len(names), max(names) + 1):
        detail = f"is {count}, but there are {len(names)} names; correct one of them"
        raise FaultError(FaultKind.BAD_CLASSES, place, "'nc'", detail)
    if not names:
        used = {row.label for content in labels.values() for row in content.rows}
        numbers = sorted(used) if count is None else range(count)
        names = {number: f"class_{number}" for number in numbers}
        return names, tuple(DataFault(FaultKind.NAMELESS_CLASS, str(place), f"class {number}") for number in names)
    return dict(sorted(names.items())), _shifted_classes(names, place, labels)


def _shifted_classes(names: Mapping[int, str], place: Path, labels: Mapping[_Image, _Labels]) -> tuple[DataFault, ...]:
    """A fault if the class numbers of all rows are 1 to N, where 0 to N - 1 are listed."""
    used = {row.label for content in labels.values() for row in content.rows}
    if not used or sorted(names) != list(range(len(names))) or max(used) != len(names) or 0 in used:
        return ()
    detail = f"{len(names)} are listed, from 0 to {len(names) - 1}; no object has 0, and some have {len(names)}"
    return (DataFault(FaultKind.SHIFTED_CLASSES, str(place), "'names'", detail),)


def _stated_names(value: Any, place: Path) -> dict[int, str]:
    if isinstance(value, str):
        value = [value] if value.strip() else []
    if value is None or isinstance(value, list):
        value = dict(enumerate(value or []))
    names = {}
    for key, name in value.items():
        number = _parse_integer(str(key))
        if number is None or not isinstance(name, str):
            detail = f"{reprlib.repr(key)} is not a class number with a name; write a list, or number: name"
            raise FaultError(FaultKind.BAD_CLASSES, place, "'names'", detail)
        names[number] = name
    if len(names) != len(value):
        raise FaultError(FaultKind.BAD_CLASSES, place, "'names'", "a number has two names; remove one of them")
    return names


def _stated_count(value: Any, place: Path) -> int | None:
    if value in (None, ""):
        return None
    count = _parse_integer(value)
    if count is None or not 0 < count <= _MAX_CLASSES:
        raise FaultError(
            FaultKind.BAD_CLASSES, place, "'nc'", f"is {reprlib.repr(value)}; expected a number of classes"
        )
    return count


def _parse_integer(value: Any) -> int | None:
    """The integer that a string contains; None for other strings and other types."""
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _listed_names(lookup: Lookup) -> dict[int, str]:
    """Class number -> name, by a list of classes in the dataset; empty if there is none.

    Raises FaultError if several lists of one kind contradict each other.
    """
    usual = [lookup.folder, lookup.folder / "labels"]
    near = [folder / name for name in _NAME_LISTS[:2] for folder in usual if lookup.has(folder / name)][:1]
    found = near or lookup.files(*{Path(name).suffix for name in _NAME_LISTS})
    for kind in _NAME_LISTS:
        longest: list[str] = []
        first: Path | None = None
        for path in (path for path in found if path.name.lower() == kind and not _looks_like_labels(path)):
            lines = [line.strip() for line in read_text(path).strip().split("\n")]
            shorter = min(len(lines), len(longest))
            if first is not None and lines[:shorter] != longest[:shorter]:
                detail = f"differs from {first}; all splits need the same classes"
                raise FaultError(FaultKind.BAD_CLASSES, path, "", detail)
            first, longest = path, max(longest, lines, key=len)
        if longest:
            return {number: line for number, line in enumerate(longest) if line}
    return _names_of_notes(lookup)


def _names_of_notes(lookup: Lookup) -> dict[int, str]:
    """Class number -> name, by the `notes.json` that Label Studio writes; empty if there is none."""
    path = lookup.folder / _LABEL_STUDIO_NOTES
    content = read_json(path) if is_file(path) else None
    rows = content.get("categories") if isinstance(content, dict) else None
    rows = rows if isinstance(rows, list) else []
    pairs = [(row.get("id"), row.get("name")) for row in rows if isinstance(row, dict)]
    return {id_: name for id_, name in pairs if isinstance(id_, int) and id_ >= 0 and isinstance(name, str)}


def _categories(names: Mapping[int, str], extras: Extras, place: Path) -> Categories:
    """The classes with the ids that `opendetr.json` gives, or else with their numbers as ids."""
    known = extras.categories
    if known is None:
        return Categories(tuple(names.values()), tuple(names))
    if not set(range(len(known))) <= names.keys():
        detail = f"names {len(names)} classes, opendetr.json {len(known)}; name them all, or delete opendetr.json"
        raise FaultError(FaultKind.BAD_CLASSES, place, "", detail)
    added = extras.categories_with([name for number, name in names.items() if number >= len(known)])
    stated = [known.names[n] if names[n] == name else names[n] for n, name in enumerate(extras.names)]
    return replace(added, names=(*stated, *added.names[len(known) :]))


# ------------------------------------------------------------------------------------------------------------ the rows


def _keypoints(content: Mapping[str, Any], description: Path | None) -> int:
    """The number of keypoints that follow each box; 0 if the description states none."""
    shape = content.get(_KEYPOINTS)
    if shape is None:
        return 0
    sides = [_parse_integer(side) for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or not sides[0] or sides[1] not in (2, 3):
        detail = f"is {reprlib.repr(shape)}; expected the number of keypoints, and 2 or 3 numbers for each"
        raise FaultError(FaultKind.WRONG_STRUCTURE, description or "", f"'{_KEYPOINTS}'", detail)
    return sides[0]


def _parse_labels(path: Path, *, exists: bool) -> list[YoloRow | DataFault] | None:
    """The rows of a label file as they are written, and the faults of invalid rows; None if there is no such file."""
    if not exists:
        return None
    entries: list[YoloRow | DataFault] = []
    for number, line in enumerate(read_text(path, max_bytes=_MAX_LABEL_BYTES).split("\n"), start=1):
        if line.strip():
            entries.append(_placed(_parse_numbers(line, number), path, number))
    return entries


def _understood(entries: list[YoloRow | DataFault] | None, lengths: RowLengths, path: Path) -> _Labels:
    """The rows of a label file as boxes and polygons, and the faults of the others."""
    rows, faults = [], []
    for entry in entries or ():
        row = entry if isinstance(entry, DataFault) else _placed(lengths.understood(entry), path, entry.line)
        if isinstance(row, DataFault):
            faults.append(row)
            continue
        rows.append(row)
        if lengths.has_quads and is_rotated_quad(row.values):
            faults.append(DataFault(FaultKind.ROTATED_BOX, str(path), f"line {row.line}"))
    return _Labels(tuple(rows), tuple(faults), exists=entries is not None)


def _placed(row: YoloRow | tuple[FaultKind, str], path: Path, line: int) -> YoloRow | DataFault:
    if isinstance(row, YoloRow):
        return row
    kind, detail = row
    return DataFault(kind, str(path), f"line {line}", detail)


def parse_row(text: str, line: int) -> YoloRow | tuple[FaultKind, str]:
    """A row of a box or a polygon; for an invalid row, the kind of fault and a message."""
    row = _parse_numbers(text, line)
    return box_or_polygon(row) if isinstance(row, YoloRow) else row


def _parse_numbers(text: str, line: int) -> YoloRow | tuple[FaultKind, str]:
    """The class and the numbers of a row; for an invalid row, the kind of fault and a message."""
    fields = text.split()
    try:
        label, *values = map(float, fields)
    except ValueError:
        invalid = next(field for field in fields if not _is_float(field))
        return FaultKind.INVALID_ROW, f"{invalid[:40]!r} is not a number"
    if not label.is_integer() or not 0 <= label < _LARGEST_CLASS:
        return FaultKind.INVALID_ROW, f"{fields[0][:40]!r} is not a class number"
    return YoloRow(line, int(label), tuple(values))


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _require_labels(labels: Mapping[_Image, _Labels], place: Path) -> None:
    if labels and not any(content.exists for content in labels.values()):
        expected = next(iter(labels)).labels
        detail = f"none of {len(labels)} images has a label file; add them, such as {expected}"
        raise FaultError(FaultKind.NO_DATA, place, "", detail)


def _image_record(
    yolo: YoloFolder, image: _Image, image_id: int, first_object: int, faults: list[DataFault], sizes: ImageSizes
) -> ImageRecord | None:
    """The record of an image. For an unreadable image, adds a fault and returns None."""
    labels = yolo.labels[image]
    source = str(image.labels if labels.exists else image.path)
    if file_length(image.path, source) == 0:
        faults.append(DataFault(FaultKind.EMPTY_FILE, str(image.path)))
        return None
    key = image.labels.relative_to(yolo.folder).as_posix() if image.labels.is_relative_to(yolo.folder) else ""
    extra = yolo.extras.of(key, image.path)
    try:
        height, width = (extra and extra.size) or sizes.oriented(image.path)
    except ImageFileError as error:
        faults.append(error.fault)
        return None
    rows, row_faults = _listed_rows(labels, yolo.labels_of_numbers, source)
    objects = tuple(
        row.record(id_, yolo.categories.ids[yolo.labels_of_numbers[row.label]], height, width)
        for id_, row in enumerate(rows, start=first_object)
    )
    plain = ImageRecord(
        id=image_id, path=image.path, height=height, width=width, objects=objects, faults=row_faults, source=source
    )
    record = yolo.extras.restored(key, plain, [row.text for row in rows])
    usable, object_faults = usable_objects(record.objects, height, width, source)
    return replace(record, objects=usable, faults=record.faults + object_faults)


def _listed_rows(labels: _Labels, known: Mapping[int, int], source: str) -> tuple[list[YoloRow], tuple[DataFault, ...]]:
    """The rows of listed classes, and the faults of the other rows, of invalid rows and of a missing label file."""
    unlisted = [row for row in labels.rows if row.label not in known]
    faults = [
        DataFault(
            FaultKind.UNLISTED_CLASS, source, f"line {row.line}", f"class {row.label}, but {len(known)} are listed"
        )
        for row in unlisted
    ]
    if not labels.exists:
        faults.append(DataFault(FaultKind.UNLABELLED_IMAGE, source))
    return [row for row in labels.rows if row.label in known], (*labels.faults, *faults)


def _orphans(images: Set[_Image], known: Collection[_Image]) -> list[DataFault]:
    """Warnings for label files of no image of the dataset, in the folders with the labels of these images."""
    folders = {image.labels.parent for image in images if "labels" in image.labels.parts}
    used = {image.labels for image in known}
    files = (path for folder in sorted(folders) for path in sorted(folder.glob("*.txt")))
    return [
        DataFault(FaultKind.ORPHAN_LABELS, str(path))
        for path in files
        if path not in used and path.name.lower() not in _NAME_LISTS
    ]
