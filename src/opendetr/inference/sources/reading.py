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
    image_in,
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
from opendetr.inference.sources.video import camera_frames, frames_and_faults, stream_frames
from opendetr.network import is_url

Source = str | Path | int | np.ndarray | Tensor | Image.Image | SourceImage | FrameFile
"""A path, URL, folder, pattern, video, camera index, array, tensor, PIL image or frame of a video."""

Report = Callable[[str], None]
_FRAMES_AHEAD = 8
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "udp://", "tcp://", "rtp://", "srt://", "mms://")
_BATCH_NDIM = 4  # dimensions of a batch of images


def plain_source(source: Any) -> Source | Iterable[Source]:
    """The source in one of the types of `Source`, or several of them.

    Path-like objects become paths, NumPy integers camera numbers, the content of an image file (bytes or an open file)
    a PIL image, and a batch (N, H, W, C) or (N, 3, H, W) the list of its images.

    Raises:
        ImageError: it is not a source, or the content is not that of an image. True is no camera number.
    """
    name = type(source).__name__
    is_batch = isinstance(source, np.ndarray | Tensor) and source.ndim == _BATCH_NDIM
    if isinstance(source, Source) and not isinstance(source, bool) and not is_batch:
        return source
    if isinstance(source, np.integer):
        return int(source)
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if source is None:
        raise ImageError("None is not an image; cv2.imread returns it for a file that it cannot read: check the path")
    if isinstance(source, bytes | bytearray | memoryview | io.IOBase) or hasattr(source, "read"):
        return _opened(source, name)
    if is_batch:
        return list(source)
    if isinstance(source, Mapping | Set) or not isinstance(source, Iterable):
        raise ImageError(f"{name} is not an image; give a path, URL, PIL image, array or tensor, or a list of these")
    return source


def from_bgr(source: Any) -> Any:
    """The source with arrays, batches of arrays and the arrays of a list or an iterator converted from BGR to RGB."""
    if isinstance(source, np.ndarray):
        order = {3: (2, 1, 0), 4: (2, 1, 0, 3)}.get(source.shape[-1] if source.ndim in (3, _BATCH_NDIM) else 0)
        return source if order is None else source[..., list(order)]
    if isinstance(source, list | tuple | Iterator):
        return (from_bgr(item) for item in source)
    return source


def _opened(file: Any, name: str) -> Image.Image:
    """The image with this content, bytes or an open file. Raises ImageError if it is not that of an image."""
    if isinstance(file, bytes | bytearray | memoryview):
        return image_in(bytes(file), name)
    name = f"an open file ({name})"
    try:
        content = file.read()
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read ({error}); open it again, in binary mode") from None
    if isinstance(content, str):
        raise ImageError(f"{name}: contains text, not an image; open it in binary mode, or give its path")
    return image_in(content, name)


def is_one_image(source: Any) -> bool:
    """Whether a source is one image, not a collection such as a folder or a video."""
    if isinstance(source, np.ndarray | Tensor | Image.Image | SourceImage | FrameFile):
        return True
    if is_stream(source):
        return False
    return isinstance(source, str | Path) and (is_url(source) or _is_file_of_one(str(source)))


def is_stream(source: Any) -> bool:
    """Whether a source is the address of a stream, such as that of a network camera."""
    return isinstance(source, str) and source.lower().startswith(_STREAMS)


def is_endless(source: Any) -> bool:
    """Whether a source has no end and arrives at its own pace: a camera or a stream."""
    return is_stream(source) or (isinstance(source, int) and not isinstance(source, bool))


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
            if is_stream(source):
                raise ImageError(f"{source} in a list: a stream may never end, so give it alone")
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
    if is_stream(source):
        return stream_frames(str(source))
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
        elif is_endless(source) or (isinstance(source, str | Path) and is_video(Path(source))):
            return None
        else:
            total += sum(1 for _ in _pieces_of_all((source,), _ignore, skip))
    return total


def _ignore(_line: str) -> None:
    """Discard the message."""


def folders_of(source: Source) -> set[Path]:
    """The folders that contain the files of a source. For a folder, the folder itself."""
    if not isinstance(source, str | Path) or is_url(source) or is_stream(source):
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
