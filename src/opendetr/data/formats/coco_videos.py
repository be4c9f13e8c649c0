"""Read videos in COCO files: as `opendetr data convert` writes them, and as other tools do.

They are COCO with further keys:

    images       video (the name of the video), frame_id (the number of the frame, from 1)
    annotations  track_id (the same for an object in all frames of its video), visibility (0..1), distractor (whether it
                 only looks like an object of its class)

Other tools write `video_id`, the id of an entry of a list `videos` with a `name` or `file_name`, instead of `video`;
`instance_id` instead of `track_id`; and frames that count from 0. An object with a negative id has no track.

If the image of a frame does not exist, the frame is read from the video file. The name of this file is the `name` or
`file_name` of the video, or the `file_name` of the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from opendetr.categories import Categories
from opendetr.data.formats.coco import CocoFile, Row, is_integer, read_coco
from opendetr.data.formats.tracks import checked_tracks, missing_frames
from opendetr.data.images import ImageFileError
from opendetr.data.paths import inside, is_file, is_inside
from opendetr.data.records import (
    RAISE_FAULTS,
    DataFault,
    DetectionData,
    FaultLog,
    ImageRecord,
    ObjectRecord,
    count_faults,
)
from opendetr.data.video_files import VideoFrames, extract_frames, is_video

VIDEO, FRAME = "video", "frame_id"
"""Keys of an image that become its extras, under the same names."""
TRACK, VISIBILITY, DISTRACTOR = "track_id", "visibility", "distractor"
"""Keys of an annotation that become the extras of its object, under the same names."""
_VIDEO_ID, _INSTANCE, _FILE = "video_id", "instance_id", "file_name"


def has_videos(coco: CocoFile) -> bool:
    """Whether every image of a COCO file belongs to a video, every annotation has a track id, and some have a track."""
    in_videos = all(
        (isinstance(row.get(VIDEO), str) or is_integer(row.get(_VIDEO_ID))) and is_integer(row.get(FRAME))
        for row in coco.images
    )
    values = [row.get(TRACK, row.get(_INSTANCE)) for row in coco.annotations]
    ids = [value for value in values if is_integer(value)]
    have_tracks = len(ids) == len(values) and max(ids, default=0) >= 0
    return bool(coco.images) and in_videos and have_tracks


def video_file_names(coco: CocoFile) -> list[str]:
    """The names of the video files of a COCO file with videos, as it gives them."""
    return [name for names in _named_frames(coco)[1].values() for name in names]


def read_videos(
    coco: CocoFile,
    images_folder: Path,
    *,
    split: str,
    folder: Path,
    categories: Categories | None = None,
    log: FaultLog = RAISE_FAULTS,
) -> DetectionData:
    """Read one file with videos. The arguments and errors are those of `read_coco`.

    Of several objects with one id in a frame, the first one is kept.
    """
    faults: list[DataFault] = []
    frames, names = _named_frames(coco)
    annotations = [{**row, TRACK: row.get(TRACK, row.get(_INSTANCE))} for row in coco.annotations]
    coco = replace(coco, images=frames, annotations=annotations)
    files = _Files(images_folder, names, _extracted(coco, images_folder, names, faults))
    data = read_coco(
        coco, images_folder, split=split, folder=folder, categories=categories, log=log,
        object_extras=_of_object, finish=files.finish, locate=files.locate,
    )  # fmt: skip
    by_video: dict[str, list[ImageRecord]] = {}
    for image in data.images:
        by_video.setdefault(image.extras[VIDEO], []).append(image)
    images: dict[int, ImageRecord] = {}
    for name, of_video in by_video.items():
        numbers = {image.extras[FRAME] for image in of_video}
        if name not in files.videos:
            faults += missing_frames(numbers, min(numbers), max(numbers), coco.path, f"video {name}")
        images |= {image.id: image for image in _checked(of_video, len(numbers), coco.path, faults)}
    faults += [fault for entry in data.fault_counts for fault in entry.faults]
    ordered = tuple(images[image.id] for image in data.images)
    return replace(data, images=ordered, fault_counts=count_faults(faults))


def _named_frames(coco: CocoFile) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The entries of the images with `video` and `frame_id` as OpenDETR writes them, and the possible video files.

    The second is a mapping: name of a video -> the names of files that may be its video file.
    """
    rows = {int(row["id"]): row for row in coco.videos if is_integer(row.get("id"))}
    texts = {id_: [row[key] for key in ("name", _FILE) if isinstance(row.get(key), str)] for id_, row in rows.items()}
    frequency = Counter(names[0] for names in texts.values() if names)
    shift = 1 if min(row[FRAME] for row in coco.images) == 0 else 0  # our frames count from 1
    images, files = [], {}
    for row in coco.images:
        video, candidates = row.get(VIDEO), []
        if not isinstance(video, str):
            number = int(row[_VIDEO_ID])
            candidates = texts.get(number, [])
            video = candidates[0] if candidates else str(number)
            video = video if frequency[video] < 2 else f"{video}-{number}"
        images.append({**row, VIDEO: video, FRAME: int(row[FRAME]) + shift})
        if video not in files:
            named = (name for name in (*candidates, video, row.get(_FILE)) if isinstance(name, str))
            files[video] = list(dict.fromkeys(name for name in named if is_video(Path(name))))
    return images, files


def _of_object(row: Row) -> dict[str, Any]:
    visibility = row.content.get(VISIBILITY)
    return {
        TRACK: row.integer(TRACK),
        VISIBILITY: visibility if isinstance(visibility, int | float) and 0 <= visibility <= 1 else 1.0,
        DISTRACTOR: row.content.get(DISTRACTOR) is True,
    }


# --------------------------------------------------------------------------------------------------------------- frames


@dataclass(frozen=True)
class _Files:
    """The image files of the frames.

    Attributes:
        folder: of the images and the video files.
        names: name of a video -> those of the files that it may be.
        videos: name of a video -> the frames of its video file, if they are needed.
    """

    folder: Path
    names: Mapping[str, Sequence[str]]
    videos: Mapping[str, VideoFrames]

    def locate(self, row: Row) -> Path | None:
        """The image of an entry; None for a frame that its video file does not have."""
        video = row.text(VIDEO)
        if video in self.videos and not _has_image(row.content, self.folder):
            return self.videos[video].files.get(row.integer(FRAME))
        if _FILE not in row.content and self.names[video]:
            return inside(self.folder, self.names[video][0], row.path, row.at)  # named as missing
        return inside(self.folder, row.text(_FILE), row.path, row.at)

    def finish(self, image: ImageRecord, row: Row) -> ImageRecord:
        """The record with its video and the number of its frame."""
        video, number = row.text(VIDEO), row.integer(FRAME)
        is_extracted = video in self.videos and image.path == self.videos[video].files.get(number)
        name = f"{video}/{image.path.name}" if is_extracted else ""
        return replace(image, name=name, extras={VIDEO: video, FRAME: number})


def _has_image(row: Mapping[str, Any], folder: Path) -> bool:
    """Whether the image of an entry is a file."""
    name = row.get(_FILE)
    return isinstance(name, str) and not is_video(Path(name)) and is_inside(name) and is_file(folder / name)


def _extracted(
    coco: CocoFile, folder: Path, names: Mapping[str, Sequence[str]], faults: list[DataFault]
) -> dict[str, VideoFrames]:
    """Name of a video -> the frames of its video file, for videos whose frames are not all images.

    Adds a fault for each video file that cannot be read, and a warning for each that lacks frames.
    """
    needed: dict[str, list[int]] = {}
    for row in coco.images:
        if names[row[VIDEO]] and not _has_image(row, folder):
            needed.setdefault(row[VIDEO], []).append(row[FRAME])
    found = {}
    for video, numbers in needed.items():
        path = next((folder / name for name in names[video] if is_inside(name) and is_file(folder / name)), None)
        if path is not None:
            try:
                found[video] = extract_frames(path)
                faults += missing_frames(found[video].files, 1, max(numbers), path)
            except ImageFileError as error:
                found[video] = VideoFrames({})
                faults.append(error.fault)
    return found


# --------------------------------------------------------------------------------------------------------------- tracks


class _Tracked(NamedTuple):
    """An object in a frame; see `TrackEntry`."""

    frame: int
    track: int
    category: int
    at: str
    obj: ObjectRecord


def _checked(
    images: Iterable[ImageRecord], num_frames: int, path: Path, faults: list[DataFault]
) -> Iterator[ImageRecord]:
    """The frames of a video without the objects whose id their frame has already. Adds faults and warnings."""
    images = sorted(images, key=lambda image: image.extras[FRAME])
    entries = [
        _Tracked(image.extras[FRAME], obj.extras[TRACK], obj.category_id, obj.position, obj)
        for image in images
        for obj in image.objects
        if obj.extras[TRACK] >= 0
    ]
    kept = {id(entry.obj) for entry in checked_tracks(entries, path, num_frames, faults)}
    for image in images:
        objects = tuple(obj for obj in image.objects if obj.extras[TRACK] < 0 or id(obj) in kept)
        yield image if len(objects) == len(image.objects) else replace(image, objects=objects)
