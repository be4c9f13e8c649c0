"""Downloads files once, and checks that they are complete and as published.

An interrupted transfer resumes where it stopped, in this call or a later one. The file gets its final name only when it
is complete and its hash matches. Of several processes, one downloads while the others wait.
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
_HASH_IN_FRAGMENT = re.compile(r"sha256=([0-9a-f]{8,64})", re.IGNORECASE)

Progress = Callable[[int, int | None], None]


def cached_path(url: str) -> Path:
    """The cache path of a URL. A file whose name contains no hash gets a folder per URL, to tell equal names apart."""
    address, _ = urldefrag(url)
    name = unquote(urlsplit(address).path).rpartition("/")[2] or "weights"
    if _HASH_IN_NAME.search(name):
        return cache_folder() / name
    return cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def download(url: str) -> Path:
    """The cached file of a URL, which is downloaded if it is not cached yet.

    Args:
        url: http or https. The file's SHA-256 must begin with the hash in the name (NAME-HASH.pth) or in the fragment
            (#sha256=HASH) of the URL. The file is not checked if the URL has neither.

    Raises:
        WeightsError: the file cannot be downloaded, or its hash does not match.
    """
    path, prefix = cached_path(url), _hash_prefix(url)
    if not path.is_file():
        if is_offline():
            raise WeightsError(f"cannot download {url} ({OFFLINE} is set); put the file at {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.is_file():  # another process may have downloaded it meanwhile
                    _fetch(urldefrag(url)[0], path, prefix)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"cannot download {url} ({reason}); without a network, put the file at {path}") from None
    if not _sha256(path).startswith(prefix):
        raise WeightsError(f"{path}: not the published file, its hash does not begin with {prefix}; delete it")
    return path


def _hash_prefix(url: str) -> str:
    """The first digits of the file's SHA-256; empty if the URL has none."""
    address, fragment = urldefrag(url)
    match = _HASH_IN_FRAGMENT.fullmatch(fragment) or _HASH_IN_NAME.search(urlsplit(address).path)
    return match[1].lower() if match else ""


def _fetch(url: str, path: Path, prefix: str) -> None:
    """Download a complete file. On NetworkError or OSError the part received so far stays for the next attempt."""
    part = path.with_name(f"{path.name}.part")
    if not prefix:
        part.unlink(missing_ok=True)  # without a hash, it may be the beginning of another file
    resumed = part.exists()
    with progress_bar(path.name, in_bytes=True) as progress:
        _transfer(url, part, progress)
        if resumed and not _sha256(part).startswith(prefix):
            part.unlink()
            _transfer(url, part, progress)
    digest = _sha256(part)
    if not digest.startswith(prefix):
        part.unlink()
        raise NetworkError(f"the hash of the received file begins with {digest[:8]}, not with {prefix}")
    part.replace(path)


def _transfer(url: str, part: Path, progress: Progress) -> None:
    """Complete `part`. Gives up after three requests in a row that bring no data."""
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
                raise NetworkError(f"{error}; {_size(part)} bytes are kept for the next attempt") from None
        time.sleep(_PAUSE_SECONDS)


def _request(url: str, start: int, version: str) -> HTTPResponse:
    """Request the bytes from `start` on, or the whole file if it has changed since."""
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
    """Append the body to `part`, or overwrite `part` if the server sends the whole file."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        start = 0
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise NetworkError("the server sent a different part of the file than requested")
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
