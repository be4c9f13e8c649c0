"""Find the images of a COCO file whose `file_name` is not the path of a file, see `lookup`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from opendetr.data.formats.coco import CocoFile, Row
from opendetr.data.formats.coco_videos import has_videos
from opendetr.data.formats.lookup import Lookup, respelled
from opendetr.data.paths import is_inside
from opendetr.data.records import DataFault, FaultLog


def with_found_names(
    coco: CocoFile, images_folder: Path, lookup: Lookup, faults: list[DataFault], log: FaultLog
) -> tuple[CocoFile, Path]:
    """The file with names of images that exist, and the folder that they are relative to.

    Names that already are the path of a file in the folder of images are kept, and so are names without an image: the
    reader reports them. Frames of videos are kept, because they may come from a video file.

    Args:
        coco: the file.
        images_folder: its folder of images.
        lookup: the files of the dataset.
        faults: gets a warning for each name that is spelled differently from its file.
        log: what to do at a name that fits several images.
    """
    names = lookup.names_in(images_folder)
    wrong = [
        index
        for index, row in enumerate(coco.images)
        if isinstance(name := row.get("file_name"), str)
        and name not in names
        and not _is_file(name, images_folder, lookup)
    ]
    if not wrong or has_videos(coco):
        return coco, images_folder
    inside = images_folder == lookup.folder or images_folder.is_relative_to(lookup.folder)
    base = lookup if inside else Lookup(images_folder)
    found: dict[int, Path] = {}
    for index in wrong:
        row = Row(coco.path, "images", index, coco.images[index])
        with log:
            image = base.image(
                row.content["file_name"], [images_folder, coco.path.parent, base.folder], coco.path, row.at
            )
            if image is not None:
                found[index] = image.path
                if image.respelled:
                    faults.append(respelled(row.content["file_name"], image.path, coco.path, row.at))
    if not found:
        return coco, images_folder
    images = []
    for index, content in enumerate(coco.images):
        name = content.get("file_name")
        path = found.get(index) or (images_folder / name if isinstance(name, str) and is_inside(name) else None)
        relative = path.relative_to(base.folder).as_posix() if path and path.is_relative_to(base.folder) else name
        images.append(content if path is None else {**content, "file_name": relative})
    return replace(coco, images=images), base.folder


def _is_file(name: str, folder: Path, lookup: Lookup) -> bool:
    """Whether a name with folders in it is the path of a file."""
    return "/" in name and is_inside(name) and lookup.has(folder / name)
