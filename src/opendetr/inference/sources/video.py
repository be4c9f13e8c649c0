"""Videos and cameras as numbered images. PyAV reads the files, OpenCV the cameras; both are needed only here."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from opendetr.data import ImageError
from opendetr.inference.sources.source_image import SourceImage

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"})
_ASSUMED_RATE = 25  # frames a second where a video does not say


class VideoError(ImageError):
    """A video or camera that cannot be read, or not to its end: one line with its name."""


def is_video(path: Path) -> bool:
    """Whether the file's name ends as those of videos do."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def video_frames(path: Path) -> Iterator[SourceImage]:
    """The frames of a video file's first video stream, upright as players show them.

    Raises:
        VideoError: PyAV is missing, the file is no video, or it breaks off; the frames before that are given.
    """
    if not path.is_file():
        raise VideoError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    av = library("av", "av", str(path))
    try:
        container = av.open(str(path.absolute()))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a video that can be read ({_reason(error)})") from None
    number = 0
    with container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no moving images, or is cut off; replace it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or _ASSUMED_RATE)
        try:
            for number, frame in enumerate(container.decode(stream), start=1):
                seconds = (number - 1) / rate if frame.time is None else float(frame.time)
                yield SourceImage(_upright(frame), str(path), number - 1, seconds)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path}: the video breaks off after {number} frames ({_reason(error)})") from None
        if number == 0:
            raise VideoError(f"{path}: holds no moving images, or is cut off; replace it")


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as the video asks for."""
    pixels = frame.to_ndarray(format="rgb24")
    turns, remainder = divmod(int(frame.rotation), 90)
    return pixels if remainder or turns % 4 == 0 else np.ascontiguousarray(np.rot90(pixels, turns))


def camera_frames(index: int) -> Iterator[SourceImage]:
    """The images of a camera, without end.

    Raises:
        VideoError: OpenCV is missing, there is no such camera, or it gives no more images.
    """
    name = f"camera {index}"
    cv2 = library("cv2", "opencv-python-headless", name)
    capture = cv2.VideoCapture(index)
    try:
        if not capture.isOpened():
            raise VideoError(f"{name}: there is none, or another program uses it")
        began = time.monotonic()
        number = 0
        while (taken := capture.read())[0]:
            seconds = time.monotonic() - began
            yield SourceImage(cv2.cvtColor(taken[1], cv2.COLOR_BGR2RGB), name, number, seconds)
            number += 1
        raise VideoError(f"{name}: gave no more images after {number}")
    finally:
        capture.release()


def library(module: str, package: str, name: str) -> Any:
    """A package that only videos need. Raises VideoError that says how to install it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise VideoError(f"{name}: needs {package}; install it with `python -m pip install {package}`") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
