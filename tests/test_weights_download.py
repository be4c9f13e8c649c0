"""Downloads from a real web server on this machine that breaks off, lies, is slow, and knows ranges or does not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from opendetr import presets
from opendetr.files import cache_folder
from opendetr.weights import WeightsError, download, local_file, published_files
from opendetr.weights.download import cached_path
from web import Answer, Server, redirects, sends, sends_raw, serving

fetching = sys.modules[download.__module__]
CONTENT = np.random.default_rng(0).bytes(300_000)
HASH = hashlib.sha256(CONTENT).hexdigest()
FILE = f"/model-{HASH[:8]}.pth"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENDETR_OFFLINE", raising=False)
    monkeypatch.setattr(fetching, "_PAUSE_SECONDS", 0.0)
    with serving() as running:
        yield running


class Ranged:
    """Sends what is asked for of a file, at most so much in one answer.

    Attributes:
        starts: where each answer began.
    """

    def __init__(self, content: bytes = CONTENT, most: int = len(CONTENT), tag: str = '"1"') -> None:
        self.content = content
        self.most = most
        self.tag = tag
        self.starts: list[int] = []

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "")
        if handler.headers.get("If-Range", self.tag) != self.tag:
            asked = ""
        start = int(asked.removeprefix("bytes=").removesuffix("-") or 0)
        self.starts.append(start)
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if asked else 200)
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.send_header("ETag", self.tag)
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        handler.wfile.write(self.content[start : start + self.most])
        handler.close_connection = True


def in_turn(*answers: Answer) -> Answer:
    """An answer a request."""
    rest = iter(answers)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        next(rest)(handler)

    return answer


def left(folder: Path) -> set[str]:
    """Files in the cache, locks left out."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def failure(url: str) -> str:
    with pytest.raises(WeightsError) as caught:
        download(url)
    line = str(caught.value)
    assert "\n" not in line
    assert url in line and str(cached_path(url)) in line  # what was wanted, and where to put it by hand
    return line


# ----------------------------------------------------------------------------------------------------------- it arrives


def test_once_and_then_from_the_cache(server):
    server.answers[FILE] = Ranged()
    path = download(server.url + FILE)
    assert path == cache_folder() / FILE[1:]
    assert path.read_bytes() == CONTENT
    assert download(server.url + FILE) == path
    assert server.asked == [FILE]
    assert left(cache_folder()) == {FILE[1:]}


def test_a_broken_transfer_is_gone_on_with(server):
    server.answers[FILE] = answer = Ranged(most=100_000)
    assert download(server.url + FILE).read_bytes() == CONTENT
    assert answer.starts == [0, 100_000, 200_000]


def test_what_an_earlier_process_left_is_gone_on_with(server):
    """It was killed: a part of the file is there, and its lock."""
    path = cached_path(server.url + FILE)
    path.parent.mkdir(parents=True)
    Path(f"{path}.part").write_bytes(CONTENT[:123_456])
    Path(f"{path}.lock").touch()
    server.answers[FILE] = answer = Ranged()
    assert download(server.url + FILE).read_bytes() == CONTENT
    assert answer.starts == [123_456]


@pytest.mark.parametrize("rest", [b"", b"x", b"y" * 400_000], ids=["whole", "one more", "much more"])
def test_what_is_left_may_be_whole_or_wrong(server, rest):
    path = cached_path(server.url + FILE)
    path.parent.mkdir(parents=True)
    Path(f"{path}.part").write_bytes((CONTENT if len(rest) < 2 else b"") + rest)
    server.answers[FILE] = Ranged()
    assert download(server.url + FILE).read_bytes() == CONTENT


def test_the_beginning_of_another_file_is_thrown_away(server):
    path = cached_path(server.url + FILE)
    path.parent.mkdir(parents=True)
    Path(f"{path}.part").write_bytes(b"not the same" * 1000)
    server.answers[FILE] = answer = Ranged()
    assert download(server.url + FILE).read_bytes() == CONTENT
    assert answer.starts == [12_000, 0]


def test_a_file_that_changes_between_two_answers(server):
    """The server knows by the tag, and sends the whole new one."""
    other = CONTENT[::-1]
    first, second = Ranged(other, most=1000, tag='"old"'), Ranged()
    server.answers[FILE] = in_turn(first, second)
    assert download(server.url + FILE).read_bytes() == CONTENT
    assert second.starts == [0]


def test_a_server_without_ranges_sends_all_again(server):
    server.answers[FILE] = in_turn(sends(CONTENT[:5000], length=len(CONTENT)), sends(CONTENT))
    assert download(server.url + FILE).read_bytes() == CONTENT


def test_a_server_that_does_not_say_how_much(server):
    server.answers[FILE] = sends(CONTENT, length=-1)
    assert download(server.url + FILE).read_bytes() == CONTENT


def test_errors_of_the_server_pass(server):
    server.answers[FILE] = in_turn(sends(b"", code=503), sends(b"", code=500), Ranged())
    assert download(server.url + FILE).read_bytes() == CONTENT


def test_a_slow_server_is_waited_for(server, monkeypatch):
    """The limit is for silence, not for the whole."""
    monkeypatch.setattr(fetching, "_SILENCE_SECONDS", 0.5)
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode()
    pieces = [CONTENT[start : start + 60_000] for start in range(0, len(CONTENT), 60_000)]
    server.answers[FILE] = sends_raw(head, *pieces, pause=lambda: time.sleep(0.15))
    began = time.monotonic()
    assert download(server.url + FILE).read_bytes() == CONTENT
    assert time.monotonic() - began > 0.6


def test_redirections_are_followed(server):
    server.answers[FILE] = redirects(f"{server.url}/elsewhere")
    server.answers["/elsewhere"] = Ranged()
    assert download(server.url + FILE).read_bytes() == CONTENT


def test_one_fetches_and_the_others_wait(server):
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        Ranged()(handler)

    server.answers[FILE] = slowly
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(download, [server.url + FILE] * 4))
    assert len(paths) == 1 and paths.pop().read_bytes() == CONTENT
    assert server.asked == [FILE]


def test_one_process_fetches_and_the_other_waits(server):
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        Ranged()(handler)

    server.answers[FILE] = slowly
    code = f"from opendetr.weights import download; print(download({server.url + FILE!r}))"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    while not server.asked:
        assert other.poll() is None
        time.sleep(0.01)
    path = download(server.url + FILE)
    assert other.communicate()[0].strip() == str(path)
    assert server.asked == [FILE]


# --------------------------------------------------------------------------------------------------- it does not arrive


def test_a_lie_about_the_hash_leaves_nothing(server):
    server.answers[FILE] = Ranged(CONTENT[:-1] + b"?")
    assert "the hash of the received file begins with" in failure(server.url + FILE)
    assert left(cache_folder()) == set()


def test_a_transfer_that_never_ends_keeps_what_there_is(server):
    server.answers[FILE] = in_turn(Ranged(most=1000), *[sends_raw(b"")] * 3)
    line = failure(server.url + FILE)
    assert "1000 bytes are kept for the next attempt" in line
    assert left(cache_folder()) == {f"{FILE[1:]}.part"}
    server.answers[FILE] = answer = Ranged()
    assert download(server.url + FILE).read_bytes() == CONTENT
    assert answer.starts == [1000]


def test_a_silent_server(server, monkeypatch):
    monkeypatch.setattr(fetching, "_SILENCE_SECONDS", 0.1)
    server.answers[FILE] = sends_raw(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", pause=lambda: time.sleep(0.4))
    assert "timed out" in failure(server.url + FILE)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (sends(b"", code=404), "the server answers 404"),
        (sends(b"", code=403), "the server answers 403"),
        (sends(b"", code=500), "the server answers 500"),
        (redirects("file:///etc/passwd"), "302"),
    ],
    ids=["not found", "forbidden", "broken", "to a file"],
)
def test_one_line_says_why(server, answer: Answer, words: str):
    server.answers[FILE] = answer
    assert words in failure(server.url + FILE)


def test_another_part_than_asked_for(server):
    path = cached_path(server.url + FILE)
    path.parent.mkdir(parents=True)
    Path(f"{path}.part").write_bytes(CONTENT[:1000])

    def wrong(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-9/{len(CONTENT)}")
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(CONTENT[:10])

    server.answers[FILE] = wrong
    assert "a different part" in failure(server.url + FILE)


def test_nobody_answers(server):
    assert "refused" in failure("http://127.0.0.1:9" + FILE)


def test_offline(server, monkeypatch):
    server.answers[FILE] = Ranged()
    monkeypatch.setenv("OPENDETR_OFFLINE", "1")
    assert "OPENDETR_OFFLINE is set" in failure(server.url + FILE)
    assert server.asked == []
    path = cached_path(server.url + FILE)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)  # by hand
    assert download(server.url + FILE) == path


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "file"))
    failure(server.url + FILE)


def test_a_damaged_file_in_the_cache(server):
    path = cached_path(server.url + FILE)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(WeightsError, match="not the published file"):
        download(server.url + FILE)


# ------------------------------------------------------------------------------------------------- what a user may name


def test_addresses_that_say_no_hash_or_say_it_behind(server):
    for name, content in (("/a/model.safetensors", b"a"), ("/b/model.safetensors", b"b")):
        server.answers[name] = Ranged(content, most=1)
        assert local_file(server.url + name).read_bytes() == content  # two places for one name
    good = f"{server.url}/a/model.safetensors#sha256={hashlib.sha256(b'a').hexdigest()}"
    assert local_file(good).read_bytes() == b"a"
    with pytest.raises(WeightsError, match="not the published file"):
        local_file(f"{server.url}/b/model.safetensors#sha256={HASH}")


@pytest.mark.parametrize("name", ["hf:nothing", "hf:../../etc", "hf:a/b/c"])
def test_names_that_are_no_repository(name):
    with pytest.raises(WeightsError, match="expected hf:owner/name"):
        local_file(name)


def test_a_repository_offline(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("OPENDETR_OFFLINE", "1")
    with pytest.raises(WeightsError, match="not cached") as caught:
        local_file("hf:nobody/has-this-one")
    assert "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """One repository, owner/name, with the files of a folder."""

    folder: Path
    commit = "a" * 40

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = {file.name: file for file in self.folder.iterdir()}
        if path == "/api/models/owner/name/revision/main":
            record = {"id": "owner/name", "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
            self._send(json.dumps(record).encode())
        elif path.startswith("/api/models/owner/name/tree/"):
            rows = [{"type": "file", "path": name, "size": file.stat().st_size, "oid": "b" * 40}
                    for name, file in files.items()]  # fmt: skip
            self._send(json.dumps(rows).encode())
        elif path.startswith(f"/owner/name/resolve/{self.commit}/") and Path(path).name in files:
            self._send(files[Path(path).name].read_bytes())
        else:
            self._send(b"", 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, content: bytes, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        if code != 200:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_words: object) -> None:
        """Says nothing."""


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_repository(tmp_path, file):
    """Fetched, then found without the network; in a process of its own, as the address of the hub is read once."""
    pytest.importorskip("huggingface_hub")
    (tmp_path / "repository").mkdir()
    for name in (file, "config.json", "README.md", "training_args.bin"):
        (tmp_path / "repository" / name).write_bytes(name.encode())
    handler = type("Handler", (Hub,), {"folder": tmp_path / "repository"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    code = """
import os
from opendetr.weights import WeightsError, local_file
print(local_file("hf:owner/name"))
os.environ["OPENDETR_OFFLINE"] = "1"
print(local_file("hf:owner/name"))
del os.environ["OPENDETR_OFFLINE"]
try:
    local_file("hf:owner/other")
except WeightsError as error:
    print(error)
"""
    address = f"http://127.0.0.1:{server.server_address[1]}"
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | settings
        )
    finally:
        server.shutdown()
        server.server_close()
    first, second, failed = done.stdout.splitlines()
    assert first == second
    assert Path(first).read_bytes() == file.encode()
    assert {path.name for path in Path(first).parent.iterdir()} == {file, "config.json"}
    assert failed.startswith("hf:owner/other: cannot be downloaded (") and "give their folder" in failed


# -------------------------------------------------------------------------------------------------------- the catalogue


def test_the_catalogue_of_weights():
    names = presets.list_models()
    for name, weights in published_files().items():
        assert name in names
        assert weights.ap is None or 0.3 < weights.ap < 0.5
        assert weights.is_checked == name.startswith("detr-")
        assert not weights.is_checked or weights.place.endswith(weights.file)
    assert len({weights.path for weights in published_files().values()}) == len(published_files())


def test_weights_without_a_hash_are_not_downloaded_unasked(server, tmp_path):
    weights = published_files()["conditional-detr-r50"]
    assert presets.weights_origin("conditional-detr-r50") is None
    with pytest.raises(WeightsError) as caught:
        presets.published_weights("conditional-detr-r50")
    for words in (weights.place, str(weights.path), "hf:microsoft/conditional-detr-resnet-50", "without a hash"):
        assert words in str(caught.value)
    assert server.asked == []
    weights.path.parent.mkdir(parents=True)
    weights.path.write_bytes(b"by hand")
    assert presets.published_weights("conditional-detr-r50") == weights.path
    assert presets.weights_origin("conditional-detr-r50") == weights.place


def test_origins():
    assert presets.weights_origin(presets.DEFAULT_MODEL) == "package"
    assert presets.weights_origin("detr-r50") == published_files()["detr-r50"].place
    assert presets.weights_origin("detr-r18") is None
    assert presets.published_weights("detr-r18") is None
