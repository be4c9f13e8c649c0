"""The clips that a tracker follows objects in: videos, cameras, folders of frames, and images in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from opendetr.data import (
    DataError,
    DetectionData,
    ImageError,
    VideoFolder,
    count_frames,
    files_matching,
    image_size,
    is_pattern,
    is_video,
    number_frames,
)
from opendetr.data import open_video as open_folder
from opendetr.files import IMAGE_SUFFIXES, near_path
from opendetr.inference.sources.reading import Report, Source, each_image, is_one_image, plain_source, reported
from opendetr.inference.sources.source_image import FrameFile
from opendetr.inference.sources.video import camera_frames

_ASSUMED_RATE = 25.0  # frames per second, for a folder that does not state them
_NEEDED = "tracking needs a video, a folder of frames or a camera"


@dataclass(frozen=True)
class Clip:
    """One video: its frames in order.

    Attributes:
        source: the path of the video or folder, or "camera 0", or "images".
        read: yields the frames, given a function that is called with a line for each fault. Folders give frames as
            files. Raises DataError.
        num_frames: the number of frames; None if it is not known.
        annotations: the annotated frames; None if there are none.
        notes: lines for the user about the frames, such as missing numbers.
        is_live: whether it is a camera.
    """

    source: str
    read: Callable[[Report | None], Iterator[Source]]
    num_frames: int | None = None
    annotations: DetectionData | None = None
    notes: tuple[str, ...] = ()
    is_live: bool = False


def find_clips(source: Source | Iterable[Source], *, skip: Path | None = None) -> list[Clip]:
    """The clips of a source, in the order of their paths.

    Every folder that directly contains images is one clip. It has the name of the folder, or of its parent if the
    folder is called `img1`. The images that match a pattern are one clip, and so are those of a list.

    Args:
        source: a video, a folder of frames or of such folders and videos, a pattern, the index of a camera, or images.
        skip: a folder to skip.

    Raises:
        DataError: there are no frames.
    """
    plain: Any = plain_source(source)
    if isinstance(plain, int):
        return [Clip(f"camera {plain}", lambda report: reported(camera_frames(plain), report), is_live=True)]
    if not isinstance(plain, str | Path):
        images = [plain] if isinstance(plain, Source) else plain
        return [Clip("images", lambda report: each_image(images, report))]
    path = Path(plain)
    if is_video(path):
        return [_video(path)]
    if path.is_dir():
        return _below(path, skip)
    if is_pattern(str(plain)) and not path.exists():
        return _matching(str(plain), skip)
    if is_one_image(plain) and path.is_file():
        raise DataError(f"{plain}: is one image; {_NEEDED}")
    raise DataError(f"{plain}: no such file{near_path(path)}; {_NEEDED}")


def _video(path: Path) -> Clip:
    return Clip(str(path), lambda report: each_image(path, report), count_frames(path))


def _below(folder: Path, skip: Path | None) -> list[Clip]:
    """The clips in a folder and its subfolders. Raises DataError if there are none."""
    clips, visited = [], set()
    for name, folders, files in os.walk(folder, followlinks=True):
        path, folders[:] = Path(name), sorted(each for each in folders if not each.startswith("."))
        real = path.resolve()
        if real in visited or (skip is not None and real == skip.resolve()):
            folders[:] = []
            continue
        visited.add(real)
        found = open_folder(path)
        if found is not None:
            folders[:] = [each for each in folders if each not in ("img1", "gt")]
            clips.append(_clip_of(path, found))
        videos = (path / each for each in sorted(files) if is_video(Path(each)))
        clips += [_video(each) for each in videos if found is None or each != found.video]
    if not clips:
        raise DataError(f"{folder}: neither frames nor videos in this folder; {_NEEDED}")
    return clips


def _clip_of(folder: Path, found: VideoFolder) -> Clip:
    """The clip of the video or the frames in a folder, with their annotations. It has the name of the folder."""
    if found.video is not None:
        return replace(_video(found.video), source=str(folder), annotations=found.annotations)
    name = folder.parent if folder.name == "img1" and folder.parent.name else folder
    seconds = 1 / (found.frame_rate or _ASSUMED_RATE)

    def read(_report: Report | None) -> Iterator[Source]:
        _require_one_size(found.frames)
        return (FrameFile(path, number - 1, (number - 1) * seconds) for number, path in found.frames.items())

    return Clip(str(name), read, len(found.frames), found.annotations, _gaps(folder, found.frames))


def _require_one_size(frames: Mapping[int, Path]) -> None:
    """Raise DataError if the images differ in size. Images that cannot be read are left to the reader."""
    first: tuple[Path, tuple[int, int]] | None = None
    for path in frames.values():
        try:
            size = image_size(path)
        except ImageError:
            continue
        first = first or (path, size)
        if size != first[1]:
            (height, width), (other_height, other_width) = size, first[1]
            raise DataError(
                f"{path}: is {width} x {height}, but {first[0].name} is {other_width} x {other_height}; the frames of "
                "a video have one size, so put other images into another folder"
            )


def _gaps(folder: Path, frames: Mapping[int, Path]) -> tuple[str, ...]:
    """A line about frame numbers that are missing between others; none if there is no gap."""
    gaps = [(before + 1, after - 1) for before, after in pairwise(frames) if after > before + 1]
    if not gaps:
        return ()
    count, (first, last) = sum(end - start + 1 for start, end in gaps), gaps[0]
    place = str(first) if first == last else f"{first} to {last}"
    more = "" if len(gaps) == 1 else f" and {count - (last - first + 1)} others"
    frame = "frame" if count == 1 else "frames"
    return (f"{folder}: {frame} {place}{more} missing; objects are followed across the gap",)


def _matching(pattern: str, skip: Path | None) -> list[Clip]:
    """The clips that a pattern matches: its images are one, its videos and folders are others."""
    paths = [Path(match) for match in files_matching(pattern)]
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    clips = [_clip_of(images[0].parent, VideoFolder(number_frames(images)))] if images else []
    for path in paths:
        if is_video(path):
            clips.append(_video(path))
        elif path.is_dir():
            clips += _below(path, skip)
    if not clips:
        raise DataError(f"{pattern}: matches neither frames nor videos; {_NEEDED}")
    return clips
