"""Frames of videos and cameras. PyAV decodes video files, OpenCV captures from cameras; both are optional packages."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from opendetr.config import needs_package
from opendetr.data import ImageError
from opendetr.inference.sources.source_image import SourceImage

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"})
_ASSUMED_RATE = 25  # frames per second, for a video without a frame rate


class VideoError(ImageError):
    """A video or camera cannot be read, or breaks off. The message is one line and starts with its name."""


def is_video(path: Path) -> bool:
    """Whether the file name has the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def video_frames(path: Path) -> Iterator[SourceImage]:
    """Yield the frames of the first video stream of a file, rotated as its metadata says.

    Raises:
        VideoError: PyAV is missing, the file is not a video, or a frame cannot be decoded. The frames before that are
            yielded.
    """
    for item in frames_and_faults(path):
        if isinstance(item, VideoError):
            raise item
        yield item


def frames_and_faults(path: Path) -> Iterator[SourceImage | VideoError]:
    """As `video_frames`, but yield an error in the place of frames that cannot be decoded, and go on after them.

    Raises:
        VideoError: PyAV is missing, the file is not a video, or no frame can be decoded.
    """
    if not path.is_file():
        raise VideoError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    av = library("av", "av", str(path))
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
            yield SourceImage(_upright(item), str(path), number, seconds)
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
        av = library("av", "av", str(path))
        with av.open(str(path.absolute())) as container:
            return (container.streams.video[0].frames or None) if container.streams.video else None
    except (VideoError, OSError, ValueError):  # reading the frames says what is wrong
        return None


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB, rotated as the metadata of the video says."""
    pixels = frame.to_ndarray(format="rgb24")
    turns, remainder = divmod(int(frame.rotation), 90)
    return pixels if remainder or turns % 4 == 0 else np.ascontiguousarray(np.rot90(pixels, turns))


def camera_frames(index: int) -> Iterator[SourceImage]:
    """Yield the images of a camera without end.

    Raises:
        VideoError: OpenCV is missing, there is no such camera, or it delivers no more images.
    """
    name = f"camera {index}"
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # it prints ten lines about a camera that it does not find
    cv2 = library("cv2", "opencv-python-headless", name)
    capture = cv2.VideoCapture(index)
    try:
        if not capture.isOpened():
            raise VideoError(f"{name}: not found, or in use by another program")
        began = time.monotonic()
        number = 0
        while (taken := capture.read())[0]:
            seconds = time.monotonic() - began
            yield SourceImage(cv2.cvtColor(taken[1], cv2.COLOR_BGR2RGB), name, number, seconds)
            number += 1
        raise VideoError(f"{name}: no more images after {number}")
    finally:
        capture.release()


def library(module: str, package: str, name: str) -> Any:
    """Import a package that only videos need. If it is missing, raise VideoError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise VideoError(f"{name}: {needs_package(package)}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
