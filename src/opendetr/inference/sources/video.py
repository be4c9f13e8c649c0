"""Frames of videos and cameras. PyAV decodes video files, OpenCV captures from cameras; both are optional packages."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from opendetr.data import VideoError, decode_video, video_library
from opendetr.inference.sources.source_image import SourceImage

_PATIENCE = 10_000  # milliseconds without an image from a stream


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
    for item in decode_video(path):
        yield item if isinstance(item, VideoError) else SourceImage(item.pixels, str(path), item.number, item.time)


def camera_frames(index: int) -> Iterator[SourceImage]:
    """Yield the images of a camera without end.

    Raises:
        VideoError: OpenCV is missing, there is no such camera, or it delivers no more images.
    """
    return _captured(index, f"camera {index}", "not found, or in use by another program")


def stream_frames(address: str) -> Iterator[SourceImage]:
    """Yield the images of a stream, such as that of a network camera, until it ends.

    Raises:
        VideoError: OpenCV is missing, the stream cannot be opened, or it delivers no more images. The message has no
            password.
    """
    reason = "the stream cannot be opened; check the address, the password and the network"
    return _captured(address, without_password(address), reason)


def without_password(address: str) -> str:
    """The address without the name and the password of a user."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _captured(source: int | str, name: str, missing: str) -> Iterator[SourceImage]:
    """Yield the images that OpenCV captures."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # it prints ten lines about a camera that it does not find
    cv2 = video_library("cv2", "opencv-python-headless", name)
    limits = [] if isinstance(source, int) else [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _PATIENCE,
                                                 cv2.CAP_PROP_READ_TIMEOUT_MSEC, _PATIENCE]  # fmt: skip
    capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits) if limits else cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            raise VideoError(f"{name}: {missing}")
        began = time.monotonic()
        number = 0
        while (taken := capture.read())[0]:
            seconds = time.monotonic() - began
            yield SourceImage(cv2.cvtColor(taken[1], cv2.COLOR_BGR2RGB), name, number, seconds)
            number += 1
        raise VideoError(f"{name}: no more images after {number}")
    finally:
        capture.release()
