"""The HTTP client: what it sends, which failures may pass, and that it keeps to http and to what the user allows."""

from __future__ import annotations

import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from opendetr.network import NetworkError, TransferError, is_offline, is_url, open_url, read_chunks
from opendetr.version import __version__
from web import redirects, sends, sends_raw, serving


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENDETR_OFFLINE", raising=False)
    with serving() as running:
        yield running


def fetched(url: str, timeout: float = 5) -> bytes:
    with open_url(url, timeout=timeout, headers={"X-More": "1"}) as response:
        return b"".join(read_chunks(response))


def test_headers_and_body(server):
    seen = {}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.update(handler.headers)
        sends(bytes(10**6))(handler)

    server.answers["/a"] = answer
    assert fetched(f"{server.url}/a#part") == bytes(10**6)
    assert (seen["User-Agent"], seen["X-More"]) == (f"opendetr/{__version__}", "1")
    assert server.asked == ["/a"]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("/ä b", "/%C3%A4%20b"),
        ("/a%20b", "/a%20b"),
        ("/a?q=ü&r=[1]", "/a?q=%C3%BC&r=[1]"),
        ("/a;b,c=(d)", "/a;b,c=(d)"),
    ],
)
def test_what_an_address_cannot_hold_is_quoted(server, given, asked):
    server.answers[asked] = sends(b"here")
    assert fetched(server.url + given) == b"here"
    assert server.asked == [asked]


def test_letters_of_the_protocol(server):
    server.answers["/a"] = sends(b"here")
    url = server.url.replace("http", "HTTP") + "/a"
    assert is_url(url) and fetched(url) == b"here"


def test_the_proxy_of_the_user_and_a_name_with_other_letters(server, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.url)
    asked = "http://xn--bcher-kva.invalid/a"
    server.answers[asked] = sends(b"from the proxy")
    assert fetched("http://bücher.invalid/a") == b"from the proxy"
    assert server.asked == [asked]


def test_a_length_that_is_no_number_is_not_believed(server):
    server.answers["/a"] = sends_raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n12345")
    assert fetched(f"{server.url}/a") == b"12345"


def breaks_off(handler: BaseHTTPRequestHandler) -> None:
    """An answer whose connection is reset in the middle of the body."""
    sends(b"12345", length=10)(handler)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


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
        (breaks_off, TransferError, None, "reset by peer"),
        (sends_raw(b"HTTP/1.1 404\r\n\r\n"), NetworkError, 404, "the server answers 404"),
        (sends_raw(b"HTTP/1.1 404 " + 500 * b"x" + b"\r\n\r\n"), NetworkError, 404, "404 xxx"),
    ],
    ids=["missing", "busy", "to a file", "to ftp", "short", "chunk", "silent", "reset", "no reason", "long reason"],
)
def test_failures(server, answer, kind, status, words):
    server.answers["/a"] = answer
    with pytest.raises(NetworkError) as caught:
        fetched(f"{server.url}/a")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250 and not str(caught.value).endswith("str")


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"], ids=["headers", "body"])
def test_silence_longer_than_the_timeout(server, begin):
    done = threading.Event()
    server.answers["/a"] = sends_raw(begin, b"", pause=lambda: done.wait(5))
    try:
        with pytest.raises(TransferError, match="timed out"):
            fetched(f"{server.url}/a", timeout=0.2)
    finally:
        done.set()


def test_a_server_that_is_not_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(NetworkError, match="refused") as caught:
            fetched(f"http://127.0.0.1:{unused.getsockname()[1]}/a")
    assert type(caught.value) is NetworkError


@pytest.mark.parametrize(
    ("value", "offline"),
    [(None, False), ("", False), ("0", False), ("No", False), ("FALSE", False), ("1", True), ("yes", True)],
)
def test_the_environment_forbids_the_network(monkeypatch, value, offline):
    monkeypatch.delenv("OPENDETR_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("OPENDETR_OFFLINE", value)
    assert is_offline() == offline


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1:1/x", "data:,x", "nothing", "http://", "http://\n"]
)
def test_other_addresses_are_refused(server, url):
    with pytest.raises(NetworkError):
        fetched(url)
    assert is_url(url) == url.startswith("http")


def test_offline_sends_no_request(server, monkeypatch):
    monkeypatch.setenv("OPENDETR_OFFLINE", "1")
    with pytest.raises(NetworkError, match="OPENDETR_OFFLINE is set"):
        fetched(f"{server.url}/a")
    assert server.asked == []
