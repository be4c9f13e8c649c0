"""Files from the web, fetched once: whole and as published, or not at all.

A transfer that breaks off is gone on with where it stopped, by this call or a later one. The file gets its name only
when it is whole and its hash is right, and of several processes one fetches while the others wait.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from filelock import FileLock

from opendetr.files import cache_folder
from opendetr.network import OFFLINE, NetworkError, TransferError, content_length, is_offline, open_url, read_chunks
from opendetr.visualize import progress_bar
from opendetr.weights.errors import WeightsError

_SILENCE_SECONDS = 30.0
_PAUSE_SECONDS = 1.0
_MAX_FRUITLESS = 3
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_HASH_BEHIND = re.compile(r"sha256=([0-9a-f]{8,64})", re.IGNORECASE)

Progress = Callable[[int, int | None], None]


def cached_path(url: str) -> Path:
    """Where the file of an address is kept: under its name if that carries its hash, else apart for every address."""
    address, _ = urldefrag(url)
    name = unquote(urlsplit(address).path).rpartition("/")[2] or "weights"
    if _HASH_IN_NAME.search(name):
        return cache_folder() / name
    return cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def download(url: str) -> Path:
    """The file of an address, from the cache or from where it is published.

    Args:
        url: http or https. What the file's SHA-256 begins with is taken from its name (NAME-HASH.pth) or from behind
            the address (#sha256=HASH) and compared; an address that says neither is taken at its word.

    Raises:
        WeightsError: it cannot be had, or it is not the published file.
    """
    path, prefix = cached_path(url), _hash_prefix(url)
    if not path.is_file():
        if is_offline():
            raise WeightsError(f"cannot download {url}: {OFFLINE} is set: no network is used; put the file at {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.is_file():  # another process may have been faster
                    _fetch(urldefrag(url)[0], path, prefix)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"cannot download {url} ({reason}); without a network, put the file at {path}") from None
    if not _sha256(path).startswith(prefix):
        raise WeightsError(f"{path}: not the published file, its hash does not begin with {prefix}; remove it")
    return path


def _hash_prefix(url: str) -> str:
    """What the file's SHA-256 begins with; empty where the address does not say."""
    address, behind = urldefrag(url)
    found = _HASH_BEHIND.fullmatch(behind) or _HASH_IN_NAME.search(urlsplit(address).path)
    return found[1].lower() if found else ""


def _fetch(url: str, path: Path, prefix: str) -> None:
    """Fetch a file completely. Raises NetworkError or OSError, and leaves what there is of it for the next time."""
    part = path.with_name(f"{path.name}.part")
    if not prefix:
        part.unlink(missing_ok=True)  # nothing would tell whether it is the beginning of the same file
    resumed = part.exists()
    with progress_bar(path.name, in_bytes=True) as progress:
        _transfer(url, part, progress)
        if resumed and not _sha256(part).startswith(prefix):
            part.unlink()
            _transfer(url, part, progress)
    found = _sha256(part)
    if not found.startswith(prefix):
        part.unlink()
        raise NetworkError(f"the hash of what was sent begins with {found[:8]}, not with {prefix}")
    part.replace(path)


def _transfer(url: str, part: Path, progress: Progress) -> None:
    """Bring `part` to its end, over as many requests as that takes while one in three brings something."""
    num_fruitless, version = 0, ""
    while True:
        before = _size(part)
        try:
            with _request(url, before, version) as response:
                version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                _receive(response, part, before, progress)
                return
        except TransferError as error:
            num_fruitless = 0 if _size(part) > before else num_fruitless + 1
            if num_fruitless == _MAX_FRUITLESS:
                raise NetworkError(f"{error}; {_size(part)} bytes are kept for the next try") from None
        time.sleep(_PAUSE_SECONDS)


def _request(url: str, start: int, version: str) -> HTTPResponse:
    """The response to a request for the bytes from `start` on, or for the whole file where it has changed since."""
    headers = {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version and not version.startswith("W/"):
            headers["If-Range"] = version
    try:
        return open_url(url, timeout=_SILENCE_SECONDS, headers=headers)
    except NetworkError as error:
        if not (start and error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
    return open_url(url, timeout=_SILENCE_SECONDS)


def _receive(response: HTTPResponse, part: Path, start: int, progress: Progress) -> None:
    """Write the body after what is there, or over it where the server sends the whole file."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        start = 0
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise NetworkError("the server sent another part of the file than was asked for")
    length = content_length(response)
    total = None if length is None else start + length
    with part.open("ab" if start else "wb") as file:
        for chunk in read_chunks(response):
            file.write(chunk)
            progress(file.tell(), total)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
