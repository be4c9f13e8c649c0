"""Frames of videos and cameras. PyAV decodes video files, OpenCV captures from cameras; both are optional packages."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

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
        VideoError: PyAV is missing, the file is not a video, or it breaks off. The frames before that are yielded.
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
        raise VideoError(f"{name}: needs {package}; install it with `python -m pip install {package}`") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
