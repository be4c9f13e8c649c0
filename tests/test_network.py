"""The HTTP client: what it sends, which failures may pass, and that it keeps to http and to what the user allows."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler

import pytest

from opendetr.network import NetworkError, TransferError, is_url, open_url, read_chunks
from opendetr.version import __version__
from web import redirects, sends, sends_raw, serving


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENDETR_OFFLINE", raising=False)
    with serving() as running:
        yield running


def fetched(url: str) -> bytes:
    with open_url(url, timeout=5, headers={"X-More": "1"}) as response:
        return b"".join(read_chunks(response))


def test_headers_and_body(server):
    seen = {}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.update(handler.headers)
        sends(bytes(10**6))(handler)

    server.answers["/a"] = answer
    assert fetched(f"{server.url}/a#part") == bytes(10**6)
    assert (seen["User-Agent"], seen["X-More"]) == (f"opendetr/{__version__}", "1")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nshort"


@pytest.mark.parametrize(
    ("answer", "kind", "status", "words"),
    [
        (sends(b"", code=404), NetworkError, 404, "the server answers 404 Not Found"),
        (sends(b"", code=503), TransferError, 503, "the server answers 503"),
        (redirects("file:///etc/passwd"), NetworkError, 302, "not allowed"),
        (redirects("ftp://127.0.0.1:1/x"), NetworkError, None, "unknown url type: ftp"),
        (sends(b"12345", length=10), TransferError, None, "ended after 5 of 10 bytes"),
        (sends_raw(CHUNKED), TransferError, None, "IncompleteRead"),
        (sends_raw(b""), TransferError, None, "closed connection"),
    ],
    ids=["missing", "busy", "to a file", "to ftp", "short", "chunk", "silent"],
)
def test_failures(server, answer, kind, status, words):
    server.answers["/a"] = answer
    with pytest.raises(NetworkError) as caught:
        fetched(f"{server.url}/a")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1:1/x", "data:,x", "nothing", "http://", "http://\n"]
)
def test_other_addresses_are_refused(server, url):
    with pytest.raises(NetworkError):
        fetched(url)
    assert is_url(url) == url.startswith("http")


def test_offline_asks_nobody(server, monkeypatch):
    monkeypatch.setenv("OPENDETR_OFFLINE", "1")
    with pytest.raises(NetworkError, match="OPENDETR_OFFLINE is set"):
        fetched(f"{server.url}/a")
    assert server.asked == []
