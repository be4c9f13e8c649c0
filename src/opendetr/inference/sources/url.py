"""An image from the web: fetched completely within a time and a size, or not at all."""

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
    """The image at an address, (H, W, 3) uint8 RGB.

    What the server says about the type is not believed: the bytes decide.

    Raises:
        ImageError: there is no such server or image, it takes over MAX_SECONDS, has over MAX_BYTES, breaks off, or is
            no image; one line that begins with the address.
    """
    content, kind = _within(MAX_SECONDS, url, lambda: _fetched(url, time.monotonic() + MAX_SECONDS))
    with tempfile.TemporaryDirectory(prefix="opendetr-") as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return read_image(path)
        except ImageError:
            what = f"{len(content)} bytes that the server calls {kind}" if kind else f"{len(content)} bytes"
            raise ImageError(f"{url}: no image that can be read ({what}); give the address of an image") from None


def _fetched(url: str, deadline: float) -> tuple[bytes, str]:
    """The bytes at an address and what the server calls them."""
    content = bytearray()
    try:
        with open_url(url, timeout=_SILENCE_SECONDS) as response:
            for chunk in read_chunks(response):
                content += chunk
                if len(content) > MAX_BYTES:
                    raise ImageError(f"{url}: more than {MAX_BYTES / 2**20:g} MiB; fetch it yourself and give the file")
                if time.monotonic() > deadline:
                    raise _too_slow(url)
            return bytes(content), response.headers.get_content_type() if "Content-Type" in response.headers else ""
    except NetworkError as error:
        advice = "; try again" if isinstance(error, TransferError) else ""
        raise ImageError(f"{url}: cannot be fetched: {error}{advice}") from None


def _too_slow(url: str) -> ImageError:
    return ImageError(f"{url}: not there after {MAX_SECONDS:g} seconds; fetch it yourself and give the file")


def _within(seconds: float, url: str, function: Callable[[], Result]) -> Result:
    """What the function gives. Raises ImageError when it takes longer: name look-ups and headers know no time limit."""
    results: list[Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _too_slow(url)
    return results[0]
