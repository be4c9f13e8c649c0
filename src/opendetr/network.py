"""HTTP: one client for weights and images.

It is urllib of the standard library: no HTTP library is among the dependencies, and none would resume a transfer.
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
    """A request that failed, and would fail again. The message is one line and does not name the address.

    Attributes:
        status: the code with which the server refused, or None.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class TransferError(NetworkError):
    """A request that failed because of the connection or the state of the server: it may succeed later."""


def is_offline() -> bool:
    """Whether the environment variable OPENDETR_OFFLINE forbids the network."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "no", "false")


def is_url(text: object) -> bool:
    """Whether this is an address that `open_url` takes."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


def open_url(url: str, *, timeout: float, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    """The response to a GET request, over the user's proxies; its body is still to be read, see `read_chunks`.

    Args:
        url: http or https, in any letters. A redirect to another protocol is refused.
        timeout: seconds without a byte. They do not bound the whole request: a name look-up may take longer.
        headers: sent besides the user agent.

    Raises:
        TransferError: the server reports an error of its own (5xx), or the connection breaks off.
        NetworkError: there is no such server or file, the address is wrong, the request is refused, or OPENDETR_OFFLINE
            is set.
    """
    if is_offline():
        raise NetworkError(f"{OFFLINE} is set: no network is used")
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
    """The body, piece by piece as it arrives.

    Raises:
        TransferError: it breaks off before the length that the server said.
        NetworkError: it cannot be read for another reason.
    """
    expected, received = content_length(response), 0
    while chunk := _next_chunk(response):
        received += len(chunk)
        yield chunk
    if expected is not None and received < expected:
        raise TransferError(f"the transfer broke off after {received} of {expected} bytes")


def content_length(response: http.client.HTTPResponse) -> int | None:
    """The number of bytes that the body has, where the server says it."""
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
    """Knows http, https and the user's proxies; a redirect to files or to other protocols is an error."""
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
    """The address with what is not ASCII written as addresses have it, and without its fragment."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    quoted = (quote(part, safe=_KEPT_IN_URLS) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, *quoted, ""))


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__
