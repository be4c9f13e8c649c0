"""An image from the web: fetched whole within a time and a size, or not at all."""

from __future__ import annotations

import http.client
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np

from opendetr.data.images import ImageError, read_image
from opendetr.version import __version__

MAX_BYTES = 64 * 2**20
MAX_SECONDS = 60.0
_SILENCE_SECONDS = 15.0
_CHUNK = 2**16
_KEPT_IN_URLS = "%/:=&?~#+!$,;'@()*[]"

Result = TypeVar("Result")


def is_url(text: object) -> bool:
    """Whether this is the address of something on the web."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


def read_url(url: str) -> np.ndarray:
    """The image at an address, (H, W, 3) uint8 RGB.

    What the server says about the type is not believed: the bytes decide.

    Raises:
        ImageError: there is no such server or image, it takes over MAX_SECONDS, has over MAX_BYTES, breaks off, or is
            no image; one line that begins with the address.
    """
    content, kind = _within(MAX_SECONDS, url, lambda: _fetched(url, time.monotonic() + MAX_SECONDS))
    with tempfile.TemporaryDirectory(prefix="opendetr-") as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            return read_image(path)
        except ImageError:
            what = f"{len(content)} bytes that the server calls {kind}" if kind else f"{len(content)} bytes"
            raise ImageError(f"{url}: no image that can be read ({what}); give the address of an image") from None


def _fetched(url: str, deadline: float) -> tuple[bytes, str]:
    """The bytes at an address and what the server calls them."""
    try:
        request = urllib.request.Request(_ascii(url), headers={"User-Agent": f"opendetr/{__version__}"})
        with _opener().open(request, timeout=_SILENCE_SECONDS) as response:
            length = response.headers.get("Content-Length", "")
            content = _body(response, url, deadline)
            if length.isdecimal() and len(content) < int(length):
                raise ImageError(f"{url}: the transfer broke off after {len(content)} of {length} bytes; try again")
            return content, response.headers.get_content_type() if "Content-Type" in response.headers else ""
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{url}: the server answers {error.code} ({_short(error.reason)})") from None
    except urllib.error.URLError as error:
        raise ImageError(f"{url}: cannot be fetched ({_short(error.reason)})") from None
    except ImageError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"{url}: cannot be fetched ({_short(error)})") from None


def _body(response: Any, url: str, deadline: float) -> bytes:
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > MAX_BYTES:
            raise ImageError(f"{url}: more than {MAX_BYTES / 2**20:g} MiB; fetch it yourself and give the file")
        if time.monotonic() > deadline:
            raise _too_slow(url)
    return bytes(content)


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


def _opener() -> urllib.request.OpenerDirector:
    """Knows http, https and the user's proxies; a redirection to files or to other protocols is an error."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _ascii(url: str) -> str:
    """The address with what is not ASCII written as addresses have it."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    quoted = (quote(part, safe=_KEPT_IN_URLS) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, *quoted, ""))


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__
