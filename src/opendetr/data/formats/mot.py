"""Read videos in the MOTChallenge format, and its variant that CVAT exports.

A video is a folder with its frames in `img1/`, or a video file, and `gt/gt.txt`, which has a row for every object of a
frame. In MOTChallenge, it also has `seqinfo.ini`. A row is `frame, id, left, top, width, height, flag, class,
visibility`; columns after the sixth may be missing. Frames count from 1. The splits are the folders that contain the
videos, such as `train/` and `test/`.

`gt/labels.txt` names the classes, one per line, as CVAT writes it. Without it, the classes are those of MOTChallenge:
pedestrians are the objects. Rows of the classes that look like pedestrians are distractors, and those of other classes
are not read.

An object that is not evaluated, because its flag is 0 or because it is a distractor, is a crowd region for detection:
it is not trained on and never counts as missed.

The extras of images and objects are those of `data.formats.coco_videos`. Images are ordered by video and frame, and
have ids from 1.
"""

from __future__ import annotations

import configparser
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from opendetr.categories import Categories
from opendetr.data.formats.coco_videos import DISTRACTOR, FRAME, TRACK, VIDEO, VISIBILITY
from opendetr.data.formats.mot_rows import MotRow, parse_rows, usable_rows
from opendetr.data.formats.splits import SINGLE_SPLIT, split_folders
from opendetr.data.formats.tracks import missing_frames
from opendetr.data.images import ImageFileError, image_size
from opendetr.data.listing import number_frames
from opendetr.data.paths import inside, is_file
from opendetr.data.records import (
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
from opendetr.data.text import read_text
from opendetr.data.video_files import VideoFrames, extract_frames, is_video
from opendetr.files import IMAGE_SUFFIXES

_PEDESTRIAN = "pedestrian"
_PEDESTRIAN_CLASSES = (1, -1)  # -1: MOT15, which has no classes
# Person on vehicle, non-motorised vehicle, static person, distractor, reflection.
_DISTRACTOR_CLASSES = (2, 6, 7, 8, 12)
_OTHER_CLASSES = (3, 4, 5, 9, 10, 11, 13)


@dataclass(frozen=True)
class _Video:
    """One video.

    Attributes:
        name: unique in the dataset.
        folder: contains `img1` or a video file, and `gt`.
        frames: frame number, from 1 -> image file.
        video: the video file that the frames were extracted from, or None.
        size: height and width of the first image that can be read; None if there is none.
        rows: the objects.
        labels: the class names of `gt/labels.txt`; None if there is no such file.
        faults: faults and warnings about the video.
    """

    name: str
    folder: Path
    frames: Mapping[int, Path]
    video: Path | None
    size: tuple[int, int] | None
    rows: tuple[MotRow, ...]
    labels: tuple[str, ...] | None
    faults: tuple[DataFault, ...]

    @property
    def truth(self) -> Path:
        """The file of the objects."""
        return self.folder / "gt" / "gt.txt"


@dataclass(frozen=True)
class MotFolder:
    """A parsed folder of videos.

    Attributes:
        folder: the dataset.
        categories: the classes of all videos.
        splits: name -> its videos.
    """

    folder: Path
    categories: Categories
    splits: Mapping[str, tuple[_Video, ...]]


@dataclass(frozen=True)
class VideoFolder:
    """The frames of one video in a folder.

    Attributes:
        frames: frame number, from 1 -> image file, in ascending order.
        frame_rate: frames per second; None if it is not known.
        annotations: the annotated frames; None if there are no annotations that can be read.
        video: the annotated video file that the frames were extracted from, or None.
    """

    frames: Mapping[int, Path]
    frame_rate: float | None = None
    annotations: DetectionData | None = None
    video: Path | None = None


def open_video(folder: Path) -> VideoFolder | None:
    """The video in a folder: one in the MOTChallenge format, with or without annotations, or only images.

    Faults of the annotations are skipped. None if the folder has neither `img1/` nor images in it, nor an
    annotated video file that can be read.

    Raises:
        DataError: an annotation file leads out of the folder.
    """
    log = FaultLog(raises=False)
    info_file, truth = folder / "seqinfo.ini", folder / "gt" / "gt.txt"
    info = _read_info(info_file, log)
    inner = inside(folder, info.get("imdir") or "img1", info_file, "imDir")
    rows = parse_rows(truth, []) if is_file(truth) else []
    is_annotated = bool(rows) and (inner.is_dir() or not _images_in(folder))
    found: VideoFrames | None = None
    with log:
        found = _find_frames(inner if inner.is_dir() or is_annotated else folder, rows, truth)
    if found is None:
        return None
    annotations = read_mot(parse_mot(folder, log), SINGLE_SPLIT, log) if is_annotated else None
    rate = info.get("framerate", "")
    is_rate = re.fullmatch(r"\d{1,4}(\.\d{1,6})?", rate) is not None and float(rate) > 0
    return VideoFolder(found.files, float(rate) if is_rate else None, annotations or None, found.video)


def find_videos(folder: Path) -> dict[str, list[Path]]:
    """Split name -> the folders of its videos; empty if `folder` has none."""
    if _is_video_folder(folder):
        return {SINGLE_SPLIT: [folder]}
    folders = _folders(folder)
    videos = [path for path in folders if _is_video_folder(path)]
    if videos:
        return {SINGLE_SPLIT: videos}
    videos_in = {path.name: [video for video in _folders(path) if _is_video_folder(video)] for path in folders}
    splits = split_folders(name for name, own in videos_in.items() if own)
    return {split: videos_in[name] for name, split in splits.items()}


def _folders(folder: Path) -> list[Path]:
    """The folders inside a folder, sorted by name; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:  # does not ask the system about each of many files
            return sorted(folder / entry.name for entry in entries if _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_video_folder(folder: Path) -> bool:
    return is_file(folder / "gt" / "gt.txt")


def parse_mot(folder: Path, log: FaultLog = RAISE_FAULTS) -> MotFolder:
    """Read all videos of a folder. Raises DataError that names the fault and its place.

    Args:
        folder: contains the videos, or folders of videos; or one video.
        log: what to do at an unusable video or row.
    """
    splits = find_videos(folder)
    if not splits:
        raise DataError(f"{folder}: contains no videos; a video is a folder with gt/gt.txt and img1/ or a video file")
    parsed: dict[str, tuple[_Video, ...]] = {}
    for split, paths in splits.items():
        videos = []
        for path in paths:
            with log:
                videos.append(_parse_video(path, path.name if len(splits) == 1 else f"{split}/{path.name}", log))
        parsed[split] = tuple(videos)
    labelled = _labelled(video for videos in parsed.values() for video in videos)
    known = {split: tuple(_known_rows(video, labelled, log) for video in videos) for split, videos in parsed.items()}
    names = [_PEDESTRIAN] if labelled is None or labelled.labels is None else labelled.labels
    return MotFolder(folder, Categories.from_names(names), known)


def read_mot(mot: MotFolder, split: str, log: FaultLog = RAISE_FAULTS) -> DetectionData:
    """One split, in the order of its videos and frames. Raises DataError for an unknown split."""
    if split not in mot.splits:
        raise unknown_split(mot.folder, split, mot.splits)
    images: list[ImageRecord] = []
    faults: list[DataFault] = []
    first_image = first_object = 1
    for name, videos in mot.splits.items():
        for video in videos:
            if name == split:
                with log:
                    images += _image_records(video, mot.categories, first_image, first_object, faults)
            first_image += len(video.frames)
            first_object += len(video.rows)
    return DetectionData.from_records(split, mot.folder, mot.categories, images, faults)


# --------------------------------------------------------------------------------------------------------------- videos


def _parse_video(folder: Path, name: str, log: FaultLog) -> _Video:
    faults: list[DataFault] = []
    info_file = folder / "seqinfo.ini"
    info = _read_info(info_file, log)
    truth = folder / "gt" / "gt.txt"
    labels = _read_labels(folder / "gt" / "labels.txt")
    rows = parse_rows(truth, faults)
    try:
        found = _find_frames(inside(folder, info.get("imdir") or "img1", info_file, "imDir"), rows, truth)
        size = _size_of(found.files.values())
    except ImageFileError as error:
        return _Video(name, folder, {}, None, None, (), labels, (*faults, error.fault))
    frames, length = found.files, info.get("seqlength", "")
    num_frames = int(length) if re.fullmatch(r"[0-9]{1,9}", length) else max(frames)
    # Rows after the end of a video file show that it is not the whole video.
    expected = max([num_frames, *(row.frame for row in rows)]) if found.video else num_frames
    faults += missing_frames(frames, 1, expected, found.video or folder)
    stated = tuple(info.get(key, "") for key in ("imheight", "imwidth"))
    if all(stated) and stated != tuple(map(str, size)):
        detail = f"{stated[1]} x {stated[0]}; the images have {size[1]} x {size[0]} pixels"
        faults.append(DataFault(FaultKind.VIDEO_SIZE, str(info_file), "", detail))
    kept = usable_rows(rows, truth, num_frames, faults)
    return _Video(name, folder, frames, found.video, size, kept, labels, tuple(faults))


def _size_of(paths: Iterable[Path]) -> tuple[int, int]:
    """Height and width of the first image that can be read. Raises the error of the first one if none can be."""
    errors = []
    for path in paths:
        try:
            return image_size(path)
        except ImageFileError as error:
            errors.append(error)
    raise errors[0]


def _read_info(path: Path, log: FaultLog) -> dict[str, str]:
    """The values of `seqinfo.ini`, with names in lower case. Empty if the file is missing or skipped as faulty."""
    values: dict[str, str] = {}
    if path.is_file():
        with log:
            parser = configparser.ConfigParser(interpolation=None, strict=False)
            try:
                parser.read_string(read_text(path))
                values = dict(parser["Sequence"])
            except (configparser.Error, KeyError):
                detail = "has no section [Sequence] with rows like seqLength=600"
                raise FaultError(FaultKind.BROKEN_FILE, path, "", detail) from None
    return values


def _find_frames(images: Path, rows: list[MotRow], truth: Path) -> VideoFrames:
    """The frames of a video: the images in a folder, or else those of the video file beside `gt`.

    The numbers are those of `number_frames`. If the annotations count from 1, the first frame has number 1.

    Raises:
        ImageFileError: the video file cannot be read.
        FaultError: there are neither images nor exactly one video file.
    """
    paths = _images_in(images)
    if not paths:
        return extract_frames(_find_video_file(images, truth))
    numbers = number_frames(paths)
    first = min(numbers)
    annotated = min((row.frame for row in rows), default=1)
    shift = 1 - first if first == 0 or annotated < first else 0
    return VideoFrames({number + shift: path for number, path in numbers.items()})


def _images_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES] if folder.is_dir() else []


def _find_video_file(images: Path, truth: Path) -> Path:
    """The video file beside the folder `gt`. Raises FaultError unless there is exactly one."""
    folder = truth.parent.parent
    files = sorted(path for path in folder.iterdir() if is_video(path) and is_file(path)) if is_file(truth) else []
    if len(files) == 1:
        return files[0]
    detail = f"its frames are missing; put them into {images}, as 000001.jpg and so on, or the video file into {folder}"
    if files:
        detail = f"{folder} has the video files {files[0].name} and {files[1].name}; keep the annotated one"
    raise FaultError(FaultKind.MISSING_IMAGE, truth, "", detail)


def _read_labels(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())


# -------------------------------------------------------------------------------------------------------------- records


def _labelled(videos: Iterable[_Video]) -> _Video | None:
    """The first video that names its classes. Raises FaultError if another one has different classes."""
    first = None
    for video in videos:
        first = first or (video if video.labels is not None else None)
        if first and video.labels not in (None, first.labels):
            detail = f"differs from {first.folder / 'gt' / 'labels.txt'}; all videos need the same classes"
            raise FaultError(FaultKind.BAD_CLASSES, video.folder / "gt" / "labels.txt", "", detail)
    return first


def _known_rows(video: _Video, labelled: _Video | None, log: FaultLog) -> _Video:
    """The video without the rows whose class has no name.

    Args:
        video: the video.
        labelled: the video that names the classes; None for the classes of MOTChallenge.
        log: what to do at such a row.
    """
    if labelled is None or labelled.labels is None:
        known = {*_PEDESTRIAN_CLASSES, *_DISTRACTOR_CLASSES, *_OTHER_CLASSES}
        where = "MOTChallenge's list; write gt/labels.txt with a name per line"
    else:
        known, where = set(range(1, len(labelled.labels) + 1)), "gt/labels.txt"
    rows = []
    for row in video.rows:
        with log:
            if row.category not in known:
                detail = f"class {row.category} is not in {where}"
                raise FaultError(FaultKind.UNKNOWN_CLASS, video.truth, row.at, detail)
            rows.append(row)
    return replace(video, rows=tuple(rows))


def _image_records(
    video: _Video, categories: Categories, first_image: int, first_object: int, faults: list[DataFault]
) -> list[ImageRecord]:
    """The records of the frames of a video. Adds the faults about the video as a whole."""
    faults += video.faults
    if video.size is None:
        return []
    by_frame: dict[int, list[ObjectRecord]] = defaultdict(list)
    for id_, row in enumerate(video.rows, start=first_object):
        record = _object_record(row, id_, has_labels=video.labels is not None, categories=categories)
        if record is not None:
            by_frame[row.frame].append(record)
    height, width = video.size
    source, records = str(video.truth), []
    for id_, (frame, path) in enumerate(video.frames.items(), start=first_image):
        usable, object_faults = usable_objects(by_frame[frame], height, width, source, f"frame {frame}")
        records.append(
            ImageRecord(
                id=id_,
                path=path,
                height=height,
                width=width,
                objects=usable,
                faults=object_faults,
                source=source,
                name=f"{video.name}/{video.video.name}/{path.name}" if video.video else "",
                extras={VIDEO: video.name, FRAME: frame},
            )
        )
    return records


def _object_record(row: MotRow, id_: int, *, has_labels: bool, categories: Categories) -> ObjectRecord | None:
    """The record of a row; None for a class that is neither evaluated nor a distractor."""
    distractor = not has_labels and row.category in _DISTRACTOR_CLASSES
    if not has_labels and not distractor and row.category not in _PEDESTRIAN_CLASSES:
        return None
    return ObjectRecord(
        id=id_,
        category_id=categories.ids[row.category - 1 if has_labels else 0],
        box=row.box,
        area=math.prod(row.box[2:]),
        crowd=distractor or not row.flag,
        at=row.at,
        extras={TRACK: row.track, VISIBILITY: row.visibility, DISTRACTOR: distractor},
    )
