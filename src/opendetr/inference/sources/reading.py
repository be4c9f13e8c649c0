"""Load images from any source that a user can name."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from opendetr.data import (
    DataError,
    ImageError,
    VideoError,
    files_matching,
    images_in,
    is_pattern,
    is_video,
    read_image,
    to_pixels,
)
from opendetr.files import IMAGE_SUFFIXES
from opendetr.inference.sources.prefetch import read_ahead
from opendetr.inference.sources.source_image import FrameFile, SourceImage
from opendetr.inference.sources.url import read_url
from opendetr.inference.sources.video import camera_frames, frames_and_faults
from opendetr.network import is_url

Source = str | Path | int | np.ndarray | Tensor | Image.Image | SourceImage | FrameFile
"""A path, URL, folder, pattern, video, camera index, array, tensor, PIL image or frame of a video."""

Report = Callable[[str], None]
_FRAMES_AHEAD = 8


def plain_source(source: Any) -> Source | Iterable[Source]:
    """The source with path-like objects as paths and NumPy integers as camera numbers.

    Raises:
        ImageError: it is not a source. Some such values could be misread without an error: the items of bytes are
            numbers, like those of cameras, and True is 1.
    """
    name = type(source).__name__
    if isinstance(source, Source) and not isinstance(source, bool):
        return source
    if isinstance(source, np.integer):
        return int(source)
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if isinstance(source, bytes | bytearray | memoryview):
        raise ImageError(f"{name} is not an image; give its path, or PIL.Image.open(io.BytesIO(content))")
    if isinstance(source, io.IOBase):
        raise ImageError(f"an open file ({name}) is not an image; give its path, or PIL.Image.open(file)")
    if isinstance(source, Mapping | Set) or not isinstance(source, Iterable):
        raise ImageError(f"{name} is not an image; give a path, URL, PIL image, array or tensor, or a list of these")
    return source


def is_one_image(source: Any) -> bool:
    """Whether a source is one image, not a collection such as a folder or a video."""
    if isinstance(source, np.ndarray | Tensor | Image.Image | SourceImage | FrameFile):
        return True
    return isinstance(source, str | Path) and (is_url(source) or _is_file_of_one(str(source)))


def _is_file_of_one(text: str) -> bool:
    path = Path(text)
    return not (_is_folder(path) or is_video(path) or (is_pattern(text) and not _exists(path)))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # an invalid file name
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def each_image(
    source: Source | Iterable[Source], report: Report | None = None, *, skip: Path | None = None
) -> Iterator[Source]:
    """Yield the images of a source: image files as paths that are not loaded yet, video frames as loaded images.

    Args:
        source: anything that `Predictor.predict` takes. The items of a list may be of different kinds.
        report: called with a one-line message for each of several inputs that cannot be read.
        skip: a folder to skip.

    Raises:
        DataError: a folder or pattern has no images (raised by the call, not by the iterator, unless the source is a
            list). While iterating: an input cannot be read and `report` is not given.
    """
    if isinstance(source, Source):
        return _pieces(source, report, skip)
    return _pieces_of_all(source, report, skip)


def _pieces_of_all(sources: Iterable[Source], report: Report | None, skip: Path | None) -> Iterator[Source]:
    for item in sources:
        try:
            source = plain_source(item)
            if isinstance(source, int):
                raise ImageError(f"camera {source} in a list: a camera never ends, so give its number alone")
            if not isinstance(source, Source):
                raise ImageError(f"{type(source).__name__} in a list is not an image; give a list of images")
            yield from _pieces(source, report, skip)
        except DataError as error:
            if report is None:
                raise
            report(str(error))


def _pieces(source: Source, report: Report | None, skip: Path | None) -> Iterator[Source]:
    if isinstance(source, int):
        return camera_frames(source)
    if not isinstance(source, str | Path) or is_one_image(source):
        return iter((source,))
    path = Path(source)
    if _is_folder(path):
        return _folder(path, report, skip)
    if is_video(path):
        return reported(read_ahead(frames_and_faults(path), _FRAMES_AHEAD), report)
    return _pieces_of_all(files_matching(str(source)), report, skip)


def _folder(path: Path, report: Report | None, skip: Path | None) -> Iterator[Path]:
    images = images_in(path, skip=skip, on_unreadable=report)
    first = next(images, None)
    if first is None:
        raise DataError(f"{path}: no image in this folder; supported are {', '.join(sorted(IMAGE_SUFFIXES))}")
    return chain((first,), images)


def reported(frames: Iterator[SourceImage | VideoError], report: Report | None) -> Iterator[SourceImage]:
    """The frames. Errors, yielded or raised, are reported, or raised without `report`."""
    try:
        for item in frames:
            if not isinstance(item, VideoError):
                yield item
            elif report is None:
                raise item
            else:
                report(str(item))
    except ImageError as error:
        if report is None:
            raise
        report(str(error))


def count_images(sources: Iterable[Source], *, skip: Path | None = None) -> int | None:
    """The number of images in the sources, or None if one of them is a video or a camera."""
    total = 0
    for source in sources:
        if is_one_image(source):
            total += 1
        elif isinstance(source, int) or (isinstance(source, str | Path) and is_video(Path(source))):
            return None
        else:
            total += sum(1 for _ in _pieces_of_all((source,), _ignore, skip))
    return total


def _ignore(_line: str) -> None:
    """Discard the message."""


def folders_of(source: Source) -> set[Path]:
    """The folders that contain the files of a source. For a folder, the folder itself."""
    if not isinstance(source, str | Path) or is_url(source):
        return set()
    path = Path(source)
    if _is_folder(path):
        return {path}
    if is_pattern(str(source)) and not _exists(path):
        return {Path(match).parent for match in glob.glob(str(source), recursive=True)}  # noqa: PTH207
    return {path.parent} if _is_folder(path.parent) else set()


def read_source(source: Source) -> SourceImage:
    """Load one image, (H, W, 3) uint8 RGB, with its EXIF orientation applied.

    Raises:
        ImageError: it cannot be loaded. The message is one line.
    """
    if isinstance(source, SourceImage):
        return source
    if isinstance(source, FrameFile):
        return SourceImage(_file(source.path), str(source.path), source.frame, source.time)
    if isinstance(source, str | Path):
        return SourceImage(read_url(str(source)) if is_url(source) else _file(Path(source)), str(source))
    return SourceImage(to_pixels(source))


def _file(path: Path) -> np.ndarray:
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: neither an image nor a folder; give a file")
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    return read_image(path)
