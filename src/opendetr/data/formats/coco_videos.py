"""Read videos in COCO files, as `opendetr data convert` writes them.

They are COCO with further keys:

    images       video (the name of the video), frame_id (the number of the frame, from 1)
    annotations  track_id (the same for an object in all frames of its video), visibility (0..1), distractor (whether it
                 only looks like an object of its class)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from opendetr.categories import Categories
from opendetr.data.formats.coco import CocoFile, Row, is_integer, read_coco
from opendetr.data.records import RAISE_FAULTS, DetectionData, FaultLog, ImageRecord

VIDEO, FRAME = "video", "frame_id"
"""Keys of an image that become its extras, under the same names."""
TRACK, VISIBILITY, DISTRACTOR = "track_id", "visibility", "distractor"
"""Keys of an annotation that become the extras of its object, under the same names."""


def has_videos(coco: CocoFile) -> bool:
    """Whether every image of a COCO file belongs to a video and every annotation to a track."""
    in_videos = all(isinstance(row.get(VIDEO), str) and is_integer(row.get(FRAME)) for row in coco.images)
    return bool(coco.images) and in_videos and all(is_integer(row.get(TRACK)) for row in coco.annotations)


def read_videos(
    coco: CocoFile,
    images_folder: Path,
    *,
    split: str,
    folder: Path,
    categories: Categories | None = None,
    log: FaultLog = RAISE_FAULTS,
) -> DetectionData:
    """Read one file with videos. The arguments and errors are those of `read_coco`."""
    return read_coco(
        coco, images_folder, split=split, folder=folder, categories=categories, log=log,
        object_extras=_of_object, finish=_finish,
    )  # fmt: skip


def _of_object(row: Row) -> dict[str, Any]:
    visibility = row.content.get(VISIBILITY)
    return {
        TRACK: row.integer(TRACK),
        VISIBILITY: visibility if isinstance(visibility, int | float) and 0 <= visibility <= 1 else 1.0,
        DISTRACTOR: row.content.get(DISTRACTOR) is True,
    }


def _finish(image: ImageRecord, row: Row) -> ImageRecord:
    return replace(image, extras={VIDEO: row.text(VIDEO), FRAME: row.integer(FRAME)})
