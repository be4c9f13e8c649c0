"""What a folder contains: the kinds of its annotation files, by their content, and a description for messages."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from opendetr.data.faults import FaultKind, count_noun
from opendetr.data.formats.coco import parse_coco
from opendetr.data.formats.labelme import is_labelme
from opendetr.data.formats.lookup import Lookup
from opendetr.data.formats.table import TABLE_SUFFIXES, require_columns
from opendetr.data.formats.via import is_via
from opendetr.data.formats.yolo import YoloRow, parse_row
from opendetr.data.listing import is_image_name
from opendetr.data.records import DataError, FaultError
from opendetr.data.text import first_line, root_tag

_HEAD_BYTES = 4096
_MAX_PARSED = 2**24  # a larger JSON file is judged by its beginning
_COCO_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:')
_LABELME_KEYS = re.compile(rb'"(shapes|imagePath)"\s*:')
_MAX_FOLDERS = 8  # that a message describes
_MAX_SUFFIXES = 4
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
_OTHER_FILES = {
    ".tfrecord": "TFRecord",
    ".tfrecords": "TFRecord",
    ".record": "TFRecord",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".mat": "MATLAB",
    ".h5": "HDF5",
    ".pkl": "pickled",
    ".ndjson": "NDJSON",
    ".jsonl": "JSON Lines",
}


class JsonKind(StrEnum):
    """What a JSON file contains."""

    COCO = "COCO"
    LABELME = "labelme"
    VIA = "VIA"
    OTHER = "other"


class _Foreign(NamedTuple):
    """A JSON format that is not read: its name, the keys by which it is known, and what to export instead."""

    name: str
    keys: frozenset[str]
    advice: str


_FOREIGN = (
    _Foreign("Label Studio", frozenset({"data", "annotations"}), "export COCO, YOLO or Pascal VOC from Label Studio"),
    _Foreign("Label Studio", frozenset({"data", "completions"}), "export COCO, YOLO or Pascal VOC from Label Studio"),
    _Foreign("CreateML", frozenset({"image", "annotations"}), "export Pascal VOC or YOLO instead"),
    _Foreign("VoTT", frozenset({"assets", "tags"}), "export Pascal VOC or CSV from VoTT"),
    _Foreign("VoTT", frozenset({"asset", "regions"}), "export Pascal VOC or CSV from VoTT"),
    _Foreign("VIA 3", frozenset({"project", "metadata", "view"}), "export COCO from VIA"),
    _Foreign("Datumaro", frozenset({"items", "categories"}), "export COCO instead"),
    _Foreign("Supervisely", frozenset({"objects", "size"}), "export COCO or Pascal VOC instead"),
    _Foreign("Labelbox", frozenset({"data_row", "projects"}), "export COCO instead"),
)


def json_kind(path: Path) -> JsonKind:
    """What a JSON file contains, by its beginning, or else by its whole content."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return JsonKind.OTHER
    stripped = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not stripped.startswith(b"{"):
        return JsonKind.OTHER
    if _LABELME_KEYS.search(head) and not _COCO_KEYS.search(head):
        return JsonKind.LABELME
    content = _content(path)
    if content is None:  # too large, or broken
        is_coco = _COCO_KEYS.search(head) is not None
    else:
        is_coco = len({"images", "annotations", "categories"} & content.keys()) > 1
    if is_coco:
        return JsonKind.COCO
    return JsonKind.LABELME if is_labelme(content) else JsonKind.VIA if is_via(content) else JsonKind.OTHER


def json_files(paths: Iterable[Path], kind: JsonKind) -> list[Path]:
    """The JSON files of a kind among some files."""
    return [path for path in paths if json_kind(path) is kind]


def _content(path: Path) -> Any:
    """The content of a JSON file; None if it is large or cannot be parsed."""
    try:
        return json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_PARSED else None
    except (OSError, ValueError, RecursionError):
        return None


def contents(lookup: Lookup) -> str:
    """The files of a dataset by suffix, two levels deep: "2 .json; images/: 8 .png; train/labels/: 5 .txt"."""
    counts: dict[str, Counter[str]] = {}
    for folder, names in lookup.tree:
        place = "/".join(folder.split("/")[:2])
        counts.setdefault(place, Counter()).update(Path(name).suffix.lower() or "without suffix" for name in names)
    listed = []
    for place, of_place in counts.items():
        if of_place:
            most = of_place.most_common()
            texts = [f"{number:,} {suffix}" for suffix, number in most[:_MAX_SUFFIXES]]
            rest = sum(number for _, number in most[_MAX_SUFFIXES:])
            texts += [f"{rest:,} others"] if rest else []
            listed.append((f"{place}/: " if place else "") + ", ".join(texts))
    more = [f"{len(listed) - _MAX_FOLDERS} more folders"] if len(listed) > _MAX_FOLDERS else []
    return "; ".join([*listed[:_MAX_FOLDERS], *more]) or "no files"


def nearest(lookup: Lookup) -> FaultError | str:
    """The format that comes closest to a dataset of no known one, and what it lacks: the fault of a file, or a text."""
    files = [(lookup.folder / folder / name) for folder, names in lookup.tree for name in names]
    others = [path for path in files if not is_image_name(path.name)]
    for check in (_near_json, _near_xml, _near_table, _near_text, _not_read):
        found: FaultError | str | None = check(others, lookup)
        if found is not None:
            return found
    images = len(files) - len(others)
    if not images:
        return "nothing in it is an annotation file or an image"
    return f"{count_noun(images, 'image')} without annotations; `opendetr pretrain` learns from such images"


def _with_suffix(paths: Iterable[Path], *suffixes: str) -> Iterator[Path]:
    return (path for path in paths if path.suffix.lower() in suffixes)


def _near_json(paths: list[Path], lookup: Lookup) -> FaultError | None:
    """The fault of the first JSON file: of a format that is not read, or as COCO."""
    for path in _with_suffix(paths, ".json"):
        content = _content(path)
        first = content[0] if isinstance(content, list) and content else content
        keys = set(first) if isinstance(first, dict) else set()
        for foreign in _FOREIGN:
            if keys >= foreign.keys:
                detail = f"is in the format of {foreign.name}, which is not read; {foreign.advice}"
                return FaultError(FaultKind.WRONG_STRUCTURE, path, "", detail)
    for path in _with_suffix(paths, ".json"):
        try:
            parse_coco(path)
        except FaultError as error:
            return error
    return None


def _near_xml(paths: list[Path], lookup: Lookup) -> FaultError | None:
    path = next(_with_suffix(paths, ".xml"), None)
    if path is None:
        return None
    tag = root_tag(path)
    found = f"found <{tag}>" if tag else "found no tag"
    detail = f"neither Pascal VOC nor CVAT: expected <annotation> or <annotations>, {found}"
    return FaultError(FaultKind.WRONG_STRUCTURE, path, "", detail)


def _near_table(paths: list[Path], lookup: Lookup) -> FaultError | None:
    for path in _with_suffix(paths, *TABLE_SUFFIXES):
        try:
            require_columns(path)
        except FaultError as error:
            return error
    return None


def _near_text(paths: list[Path], lookup: Lookup) -> FaultError | str | None:
    """Why the text files are no YOLO labels."""
    texts = [path for path in _with_suffix(paths, ".txt") if not path.name.lower().startswith("readme")]
    if not texts:
        return None
    stems = {path.stem for path in lookup.images()}
    path = next((path for path in texts if path.stem in stems), texts[0])
    row = parse_row(first_line(path), 1)
    name = path.relative_to(lookup.folder).as_posix()
    if isinstance(row, YoloRow):
        return f"YOLO comes closest, but {name} has no image {path.stem}.jpg (or another suffix); add the images"
    return f"YOLO comes closest, but in {name}, line 1: {row[1]}"


def _not_read(paths: list[Path], lookup: Lookup) -> str | None:
    archive = next(_with_suffix(paths, *_ARCHIVES), None)
    if archive is not None:
        return f"{archive.relative_to(lookup.folder).as_posix()} is an archive; unpack it"
    other = next(_with_suffix(paths, *_OTHER_FILES), None)
    if other is None:
        return None
    name, kind = other.relative_to(lookup.folder).as_posix(), _OTHER_FILES[other.suffix.lower()]
    return f"{name} is a {kind} file, which is not read; export COCO, Pascal VOC or YOLO"


def unknown_format(lookup: Lookup, expected: str) -> DataError:
    """The error for a folder of no known format: what it contains, which format comes closest, and what that lacks."""
    holds = f"{lookup.folder} contains {contents(lookup)}"
    near = nearest(lookup)
    if isinstance(near, FaultError):
        fault = near.fault
        return FaultError(fault.kind, fault.file, fault.at, f"{fault.detail}; {holds}")
    detail = f"contains no annotations; it contains {contents(lookup)}; {near}; {expected}"
    return FaultError(FaultKind.NO_DATA, lookup.folder, "", detail)
