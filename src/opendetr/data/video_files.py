"""Video files: their frames in order, decoded by PyAV (an optional package), and extracted as images.

A dataset whose videos are files needs its frames in any order. So they are extracted once, into the cache.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image

from opendetr.config import needs_package
from opendetr.data.faults import FaultKind
from opendetr.data.images import ImageError, ImageFileError
from opendetr.data.records import DataError
from opendetr.files import cache_folder

_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"})
_ASSUMED_RATE = 25  # frames per second, for a video without a frame rate
_INDEX = "frames.json"  # in the folder of extracted frames; written last
_QUALITY = 95  # of extracted frames, as JPEG without colour subsampling

_log = logging.getLogger(__name__)


class VideoError(ImageError):
    """A video or camera cannot be read, or breaks off. The message is one line and starts with its name."""


class VideoFrame(NamedTuple):
    """A decoded frame: (H, W, 3) uint8 RGB, its number from 0, and seconds since the start of the video."""

    pixels: np.ndarray
    number: int
    time: float


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video as images.

    Attributes:
        files: frame number, from 1 -> image file, in ascending order. Frames that cannot be decoded are missing.
        video: the video file that they were extracted from, or None.
    """

    files: Mapping[int, Path]
    video: Path | None = None


def is_video(path: Path) -> bool:
    """Whether the file name has the suffix of a video."""
    return path.suffix.lower() in _SUFFIXES


def decode_video(path: Path) -> Iterator[VideoFrame | VideoError]:
    """Yield the frames of the first video stream of a file, rotated as its metadata says.

    An error takes the place of frames that cannot be decoded. The frames after them follow.

    Raises:
        VideoError: PyAV is missing, the file is not a video, or no frame can be decoded.
    """
    if not path.is_file():
        raise VideoError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    av = video_library("av", "av", str(path))
    try:
        container = av.open(str(path.absolute()))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a video that can be read ({_reason(error)})") from None
    number = broken = 0  # frames, those that cannot be decoded included; the latest of these in a row
    reason, is_empty = "", True
    with container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no moving images, or is cut off; replace it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or _ASSUMED_RATE)
        for item in _decoded(av, container, stream):
            if isinstance(item, str):
                number, broken, reason = number + 1, broken + 1, item
                continue
            if broken:
                yield _undecodable(path, number, broken, reason)
            seconds = number / rate if item.time is None else float(item.time)
            yield VideoFrame(_upright(item), number, seconds)
            number, broken, is_empty = number + 1, 0, False
        if is_empty:
            why = f" ({reason})" if broken else ""
            raise VideoError(f"{path}: holds no moving images, or is cut off{why}; replace it")
        if broken:
            yield _undecodable(path, number, broken, reason)


def _decoded(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream; for a frame that cannot be decoded, the reason."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError, ValueError) as error:  # the file breaks off
            yield _reason(error)
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except (av.FFmpegError, OSError, ValueError) as error:
            yield _reason(error)


def _undecodable(path: Path, number: int, count: int, reason: str) -> VideoError:
    """The error for the last `count` of the first `number` frames. Messages count frames from 1."""
    frames = f"frame {number}" if count == 1 else f"frames {number - count + 1} to {number}"
    return VideoError(f"{path}: {frames} cannot be decoded ({reason})")


def count_frames(path: Path) -> int | None:
    """The number of frames that a video file states; None if it states none or cannot be read."""
    try:
        av = video_library("av", "av", str(path))
        with av.open(str(path.absolute())) as container:
            return (container.streams.video[0].frames or None) if container.streams.video else None
    except (VideoError, OSError, ValueError):  # reading the frames says what is wrong
        return None


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB, rotated as the metadata of the video says."""
    pixels = frame.to_ndarray(format="rgb24")
    turns, remainder = divmod(int(frame.rotation), 90)
    return pixels if remainder or turns % 4 == 0 else np.ascontiguousarray(np.rot90(pixels, turns))


def video_library(module: str, package: str, name: str) -> Any:
    """Import a package that only videos need. If it is missing, raise VideoError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise VideoError(f"{name}: {needs_package(package)}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ----------------------------------------------------------------------------------------------------- extracted frames


def extract_frames(path: Path) -> VideoFrames:
    """The frames of a video file as images in the cache folder.

    The first call extracts them, and so does the first call after a change of the file. Of several processes, one
    extracts while the others wait.

    Raises:
        ImageFileError: the file is not a video that can be read, or no frame can be decoded.
        DataError: PyAV is missing, or the frames cannot be written.
    """
    video_library("av", "av", str(path))
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    folder = cache_folder() / "frames" / f"{path.stem[:64]}-{digest}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        status = path.stat()
        state = {"size": status.st_size, "modified": status.st_mtime_ns}
        with FileLock(f"{folder}.lock"):
            index = _read_index(folder, state) or _extract(path, folder, state)
    except VideoError as error:
        detail = str(error).removeprefix(f"{path}: ")
        raise ImageFileError(FaultKind.UNREADABLE_IMAGE, path, "", detail) from None
    except OSError as error:
        detail = f"its frames cannot be extracted into {folder} ({error.strerror or error})"
        raise DataError(f"{path}: {detail}; set OPENDETR_CACHE to a folder with free space") from None
    return VideoFrames({number: _frame_file(folder, number) for number in index["frames"]}, path)


def _read_index(folder: Path, state: Mapping[str, int]) -> dict[str, Any] | None:
    """The index of extracted frames; None unless they are complete and those of the file in this state."""
    try:
        index: dict[str, Any] = json.loads((folder / _INDEX).read_bytes())
        num_files = sum(file.suffix == ".jpg" for file in folder.iterdir())
        is_complete = index["state"] == state and num_files == len(index["frames"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if is_complete else None


def _extract(path: Path, folder: Path, state: Mapping[str, int]) -> dict[str, Any]:
    """Write the frames of a video file and their index into `folder`, which then appears at once."""
    count = count_frames(path)
    what = "its frames" if count is None else f"its {count:,} frames"
    _log.warning("%s: extracting %s into %s, once", path, what, folder)
    part = folder.with_name(f"{folder.name}.part")
    for each in (part, folder):
        shutil.rmtree(each, ignore_errors=True)
    part.mkdir()
    numbers = []
    for item in decode_video(path):
        if not isinstance(item, VideoError):
            numbers.append(item.number + 1)
            Image.fromarray(item.pixels).save(_frame_file(part, numbers[-1]), quality=_QUALITY, subsampling=0)
    index = {"video": str(path), "state": state, "frames": numbers}
    (part / _INDEX).write_text(json.dumps(index), encoding="utf-8")
    part.replace(folder)
    return index


def _frame_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.jpg"
