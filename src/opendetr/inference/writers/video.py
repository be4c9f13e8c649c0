"""Annotated videos, encoded by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from opendetr.data import DataError
from opendetr.files import atomic_path
from opendetr.inference.sources.video import library
from opendetr.inference.writers.background import Background
from opendetr.inference.writers.tables import Entry, Sink
from opendetr.results import Detections, Panoptic

_CODECS = ("libx264", "mpeg4")  # the first one that this build of FFmpeg has
_TICKS = 1000  # to the second: the times of frames are kept, also where they are not even


@contextmanager
def annotated_videos(folder: Path, background: Background) -> Iterator[Sink[Detections | Panoptic]]:
    """Writes the frames of each video, with what was found drawn on them, as a video without sound.

    A video is whole when the next one begins or the context ends; after an error nothing of it is left.
    """
    name: PurePath | None = None
    writer: VideoWriter | None = None
    with ExitStack() as current:

        def write(entry: Entry[Detections | Panoptic], pixels: np.ndarray) -> None:
            nonlocal name, writer
            if writer is None or entry.name != name:
                current.close()
                name, path = entry.name, folder / entry.name
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = current.enter_context(video_writer(path))
            writer.write(pixels, entry.found.time or 0.0)

        def add(entry: Entry[Detections | Panoptic]) -> None:
            if entry.found.frame is not None:
                background.submit(partial(_drawn, entry.found), partial(write, entry), size=entry.num_bytes)

        yield add


def _drawn(found: Detections | Panoptic) -> np.ndarray:
    return np.asarray(found.plot())


@contextmanager
def video_writer(path: Path) -> Iterator[VideoWriter]:
    """A writer of an MP4 file, which is there when the context ends without an error.

    Raises:
        VideoError: PyAV is missing.
        DataError: the file cannot be written.
    """
    av = library("av", "av", str(path))
    with atomic_path(path) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4") as container:
                writer = VideoWriter(av, container)
                yield writer
                writer.finish()
        except av.FFmpegError as error:
            raise DataError(f"{path}: the video cannot be written ({error.strerror})") from None


class VideoWriter:
    """Encodes images; the first one says how large the video is."""

    def __init__(self, av: Any, container: Any) -> None:
        self._av = av
        self._container = container
        self._stream: Any = None
        self._last = -1

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Append a frame, (H, W, 3) uint8 RGB, that is shown `seconds` after the start."""
        if self._stream is None:
            self._stream = self._new_stream(*pixels.shape[:2])
        size = (self._stream.width, self._stream.height)
        if pixels.shape[1] - size[0] not in (0, 1) or pixels.shape[0] - size[1] not in (0, 1):
            pixels = np.asarray(Image.fromarray(pixels).resize(size))
        even = np.ascontiguousarray(pixels[: size[1], : size[0]])
        frame = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        self._last = max(self._last + 1, round(seconds * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Encode what the codec still holds back."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))

    def _new_stream(self, height: int, width: int) -> Any:
        """A stream whose sides are even, as the codecs need them."""
        codec = next(name for name in _CODECS if name in self._av.codecs_available)
        stream = self._container.add_stream(codec, rate=25)
        stream.width, stream.height = width // 2 * 2, height // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS)
        return stream
