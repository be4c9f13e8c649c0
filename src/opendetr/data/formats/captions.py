"""Read datasets in MDETR's format: COCO with a caption per image, and the characters that name each object.

An image with several captions has an entry per caption. This is the format of the authors' files for Flickr30k
Entities, the mixed pre-training data, RefCOCO, RefCOCO+, RefCOCOg, PhraseCut, GQA, CLEVR and CLEVR-Ref+:

    images       file_name, height, width, id, caption, and further keys, see `IMAGE_KEYS`
    annotations  those of COCO, "tokens_positive": [[begin, end], ...] (or "tokens") and, in CLEVR-Ref+, "isfinal"

The images of the mixed data come from two datasets. They are in the subfolders `coco` and `vg` of the folder of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opendetr.categories import Categories
from opendetr.data.answers import gqa_answer_ids
from opendetr.data.faults import FaultKind
from opendetr.data.formats.coco import CocoFile, Row, is_integer, read_coco, shortened
from opendetr.data.records import (
    RAISE_FAULTS,
    DataFault,
    DetectionData,
    FaultError,
    FaultLog,
    ImageRecord,
    ObjectRecord,
)
from opendetr.data.spans import Span, counts_bytes, has_token

CAPTION, SPANS, IS_FINAL = "caption", "tokens_positive", "isfinal"
IMAGE_KEYS = (
    CAPTION,
    "dataset_name",
    "original_id",
    "original_img_id",
    "sentence_id",
    "task_id",
    "tokens_negative",
    "tokens_positive_eval",
    "data_source",
    "questionId",
    "question_type",
    "answer",
    "answer_ids",
    "expression_kind",
)
"""Keys of an image that become its extras, under the same names."""
_SOURCES = ("coco", "vg")  # values of "data_source"


def text_of(record: ImageRecord) -> str:
    """The caption of an image, for a question with its answer; "" without a caption."""
    return " ".join(str(record.extras[name]) for name in (CAPTION, "answer") if name in record.extras)


def is_captioned(coco: CocoFile) -> bool:
    """Whether a COCO file has captions."""
    return any(CAPTION in row for row in coco.images)


def with_sources(coco: CocoFile, folders: list[Path]) -> CocoFile:
    """The file with the subfolders of the sources in its file names, if one of the folders has such subfolders."""
    sources = {str(row.get("data_source")) for row in coco.images} & set(_SOURCES)
    if not any((folder / source).is_dir() for folder in folders for source in sources):
        return coco
    images = [
        {**row, "file_name": f"{row['data_source']}/{row['file_name']}"}
        if row.get("data_source") in _SOURCES and isinstance(row.get("file_name"), str)
        else row
        for row in coco.images
    ]
    return replace(coco, images=images)


def read_captions(
    coco: CocoFile,
    images_folder: Path,
    *,
    split: str,
    folder: Path,
    categories: Categories | None = None,
    log: FaultLog = RAISE_FAULTS,
) -> DetectionData:
    """Read one file with captions.

    The arguments are those of `read_coco`. The caption and the further keys of an image are its `extras`; the spans of
    an object are "tokens_positive" in its `extras`. Spans without a token are skipped, and the image has a fault.

    Raises DataError also for spans that are not pairs of numbers, and for spans that count bytes.
    """
    with log:
        _require_characters(coco)
    reader = _Reader(coco.path.parent)
    return read_coco(
        coco, images_folder, split=split, folder=folder, categories=categories, log=log,
        object_extras=reader.of_object, finish=reader.finish,
    )  # fmt: skip


@dataclass(frozen=True)
class _Reader:
    """Completes the records of COCO. `folder` contains the annotations."""

    folder: Path

    def of_object(self, row: Row) -> dict[str, Any]:
        """The spans of an annotation, and whether the caption refers to it, if the file says so."""
        extras: dict[str, Any] = {SPANS: _spans(row, row.content.get("tokens", row.content.get(SPANS)) or [])}
        if IS_FINAL in row.content:
            extras[IS_FINAL] = bool(row.content[IS_FINAL])
        return extras

    def finish(self, image: ImageRecord, row: Row) -> ImageRecord:
        """The image with its caption, and its objects with the usable spans."""
        caption, faults = row.text(CAPTION), list[DataFault]()
        extras = {key: row.content[key] for key in IMAGE_KEYS if row.content.get(key) is not None}
        if "tokens_positive_eval" in extras:
            phrases = extras["tokens_positive_eval"]
            if not isinstance(phrases, list):
                raise row.fault(FaultKind.BAD_VALUE, f"'tokens_positive_eval' is {shortened(phrases)}; expected a list")
            given = [_spans(row, phrase) for phrase in phrases]
            extras["tokens_positive_eval"] = [_usable(spans, caption, row.path, row.at, faults) for spans in given]
        ids = gqa_answer_ids(self.folder, extras.get("question_type"), extras.get("answer"))
        if ids is not None:
            extras["answer_ids"] = ids
        objects = tuple(_checked(obj, caption, row.path, faults) for obj in image.objects)
        return replace(image, objects=objects, extras=extras, faults=(*image.faults, *faults))


def _spans(row: Row, value: Any) -> tuple[Span, ...]:
    """The spans of a list of pairs. Raises FaultError for anything else."""
    is_list = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    if not is_list or not all(is_integer(number) for pair in value for number in pair):
        detail = f"its spans are {shortened(value)}; expected a list of [begin, end]"
        raise row.fault(FaultKind.BAD_VALUE, detail)
    return tuple((int(begin), int(end)) for begin, end in value)


def _checked(obj: ObjectRecord, caption: str, file: Path, faults: list[DataFault]) -> ObjectRecord:
    """The object with its usable spans; adds faults for the others, and for an object without any span."""
    spans: tuple[Span, ...] = obj.extras[SPANS]
    if not spans:
        faults.append(DataFault(FaultKind.NO_SPAN, str(file), obj.position))
    kept = _usable(spans, caption, file, obj.position, faults)
    return obj if len(kept) == len(spans) else replace(obj, extras={**obj.extras, SPANS: kept})


def _usable(spans: tuple[Span, ...], caption: str, file: Path, at: str, faults: list[DataFault]) -> tuple[Span, ...]:
    """The spans that are inside the caption and have a token; adds faults for the others, at a position in a file."""
    kept = []
    for begin, end in spans:
        if not 0 <= begin <= end <= len(caption):
            detail = f"[{begin}, {end}] of {len(caption)} characters"
            faults.append(DataFault(FaultKind.SPAN_OUTSIDE, str(file), at, detail))
        elif not has_token((begin, end), caption):
            detail = f"[{begin}, {end}] is {caption[begin:end]!r}"
            faults.append(DataFault(FaultKind.EMPTY_SPAN, str(file), at, detail))
        else:
            kept.append((begin, end))
    return tuple(kept)


def _require_characters(coco: CocoFile) -> None:
    """Raise FaultError if the spans of a file count bytes instead of characters.

    Such spans fit the words of a caption only if its characters outside ASCII count as several.
    """
    captions: Mapping[Any, tuple[int, str]] = {
        row.get("id"): (index, row[CAPTION])
        for index, row in enumerate(coco.images)
        if isinstance(row.get(CAPTION), str) and not row[CAPTION].isascii()
    }
    votes, first = 0, -1
    for index, content in enumerate(coco.annotations):
        place, caption = captions.get(content.get("image_id"), (-1, ""))
        if place < 0:
            continue
        row = Row(coco.path, "annotations", index, content)
        vote = counts_bytes(caption, _spans(row, content.get("tokens", content.get(SPANS)) or []))
        votes += vote
        first = place if first < 0 and vote > 0 else first
    if votes > 0:
        caption = shortened(coco.images[first][CAPTION])
        detail = f"the spans count bytes instead of characters (caption {caption}); convert them"
        raise FaultError(FaultKind.BYTE_SPANS, coco.path, f"images[{first}]", detail)
