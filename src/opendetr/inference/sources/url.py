"""Download an image from a URL, with limits on time and size."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from opendetr.data import ImageError, read_image
from opendetr.network import NetworkError, TransferError, open_url, read_chunks

MAX_BYTES = 64 * 2**20
MAX_SECONDS = 60.0
_SILENCE_SECONDS = 15.0

Result = TypeVar("Result")


def read_url(url: str) -> np.ndarray:
    """Download and decode the image at a URL, (H, W, 3) uint8 RGB.

    The content determines the image format; the content type that the server sends is ignored.

    Raises:
        ImageError: the server or the image does not exist, the download takes longer than MAX_SECONDS, is larger than
            MAX_BYTES or breaks off, or the content is not an image. The message is one line and starts with the URL.
    """
    content, kind = _within(MAX_SECONDS, url, lambda: _download(url, time.monotonic() + MAX_SECONDS))
    with tempfile.TemporaryDirectory(prefix="opendetr-") as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return read_image(path)
        except ImageError:
            details = f"{len(content)} bytes, content type {kind}" if kind else f"{len(content)} bytes"
            raise ImageError(f"{url}: not an image that can be read ({details}); give the URL of an image") from None


def _download(url: str, deadline: float) -> tuple[bytes, str]:
    """The content at a URL and its content type, "" if the server sends none."""
    content = bytearray()
    try:
        with open_url(url, timeout=_SILENCE_SECONDS) as response:
            for chunk in read_chunks(response):
                content += chunk
                if len(content) > MAX_BYTES:
                    raise ImageError(f"{url}: more than {MAX_BYTES / 2**20:g} MiB; download it and give the file")
                if time.monotonic() > deadline:
                    raise _too_slow(url)
            return bytes(content), response.headers.get_content_type() if "Content-Type" in response.headers else ""
    except NetworkError as error:
        advice = "; try again" if isinstance(error, TransferError) else ""
        raise ImageError(f"{url}: cannot be downloaded: {error}{advice}") from None


def _too_slow(url: str) -> ImageError:
    return ImageError(f"{url}: the download takes more than {MAX_SECONDS:g} seconds; download it and give the file")


def _within(seconds: float, url: str, function: Callable[[], Result]) -> Result:
    """Call the function in a thread; raise ImageError after `seconds`. DNS look-ups and headers have no other limit."""
    results: list[Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="download", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _too_slow(url)
    return results[0]
