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

from opendetr.data import DataError, video_library
from opendetr.files import atomic_path
from opendetr.inference.writers.background import Background
from opendetr.inference.writers.tables import Entry, Sink
from opendetr.results import Detections, Panoptic

_CODECS = ("libx264", "mpeg4")  # the first one that the installed FFmpeg supports is used
_TICKS = 1000  # per second; fine enough to keep the times of frames at any frame rate


@contextmanager
def annotated_videos(folder: Path, background: Background) -> Iterator[Sink[Detections | Panoptic]]:
    """A sink that writes the frames of each video with their results drawn on them, as a video without sound.

    A video is complete when the next one begins or the context ends. After an error the incomplete video is deleted.
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
            writer.write(pixels, entry.result.time or 0.0)

        def add(entry: Entry[Detections | Panoptic]) -> None:
            if entry.result.frame is not None:
                background.submit(partial(_drawn, entry.result), partial(write, entry), size=entry.num_bytes)

        yield add


def _drawn(result: Detections | Panoptic) -> np.ndarray:
    return np.asarray(result.plot())


@contextmanager
def video_writer(path: Path) -> Iterator[VideoWriter]:
    """A writer of an MP4 file. The file appears when the context ends without an error.

    Raises:
        VideoError: PyAV is missing.
        DataError: the file cannot be written.
    """
    av = video_library("av", "av", str(path))
    with atomic_path(path) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4") as container:
                writer = VideoWriter(av, container)
                yield writer
                writer.finish()
        except av.FFmpegError as error:
            raise DataError(f"{path}: the video cannot be written ({error.strerror})") from None


class VideoWriter:
    """Encodes frames. The first frame determines the size of the video."""

    def __init__(self, av: Any, container: Any) -> None:
        self._av = av
        self._container = container
        self._stream: Any = None
        self._last = -1

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Append a frame, (H, W, 3) uint8 RGB, shown `seconds` after the start."""
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
        """Encode the frames that the codec has buffered."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))

    def _new_stream(self, height: int, width: int) -> Any:
        """A stream of even width and height, as the codecs require."""
        codec = next(name for name in _CODECS if name in self._av.codecs_available)
        stream = self._container.add_stream(codec, rate=25)
        stream.width, stream.height = width // 2 * 2, height // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS)
        return stream
