"""HTTP client for weights and images.

It uses urllib of the standard library. An HTTP library would be one more dependency, and could not resume transfers
either.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from urllib.parse import quote, urlsplit, urlunsplit

from opendetr.version import __version__

OFFLINE = "OPENDETR_OFFLINE"
_CHUNK = 2**18
_KEPT_IN_URLS = "%/:=&?~#+!$,;'@()*[]"


class NetworkError(ValueError):
    """A request failed, and repeating it would not help. The message is one line without the URL.

    Attributes:
        status: the HTTP status code of the response, or None.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class TransferError(NetworkError):
    """A request failed because of the connection or the state of the server. It may succeed later."""


def is_offline() -> bool:
    """Whether the environment variable OPENDETR_OFFLINE disables network access."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "no", "false")


def is_url(text: object) -> bool:
    """Whether `text` is a URL that `open_url` supports."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


def open_url(url: str, *, timeout: float, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    """Send a GET request through the user's proxies. Read the body of the response with `read_chunks`.

    Args:
        url: an http or https URL, which may contain non-ASCII characters. Redirects to other protocols are refused.
        timeout: maximum time without data, in seconds. It does not limit the whole request: a name look-up may take
            longer.
        headers: headers to send in addition to the user agent.

    Raises:
        TransferError: the server reports an internal error (5xx), or the connection is lost.
        NetworkError: the server or file does not exist, the URL is invalid, the request is refused, or OPENDETR_OFFLINE
            is set.
    """
    if is_offline():
        raise NetworkError(f"{OFFLINE} is set: network access is disabled")
    try:
        headers = {"User-Agent": f"opendetr/{__version__}", **(headers or {})}
        response: http.client.HTTPResponse = _opener().open(
            urllib.request.Request(_ascii(url), headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        error.close()
        kind = TransferError if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR else NetworkError
        raise kind(f"the server answers {_one_line(f'{error.code} {error.reason}')}", error.code) from None
    except urllib.error.URLError as error:
        raise NetworkError(_one_line(error.reason)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failure(error) from None
    return response


def read_chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Iterate over the body of a response in chunks as they arrive.

    Raises:
        TransferError: the transfer ends before the announced length.
        NetworkError: the body cannot be read for another reason.
    """
    expected, received = content_length(response), 0
    while chunk := _next_chunk(response):
        received += len(chunk)
        yield chunk
    if expected is not None and received < expected:
        raise TransferError(f"the transfer ended after {received} of {expected} bytes")


def content_length(response: http.client.HTTPResponse) -> int | None:
    """The length of the body in bytes, or None if the server does not announce it."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _next_chunk(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failure(error) from None


def _failure(error: Exception) -> NetworkError:
    is_lost = isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)
    return (TransferError if is_lost else NetworkError)(_one_line(error))


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https with the user's proxies. Redirects to files or other protocols are errors."""
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
    """The URL with non-ASCII characters encoded, and without its fragment."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    quoted = (quote(part, safe=_KEPT_IN_URLS) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, *quoted, ""))


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__
