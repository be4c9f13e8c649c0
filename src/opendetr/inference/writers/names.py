"""Names of output files: unique, not too long, and never outside the output folder."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import unquote, urlsplit

from opendetr.data import is_video
from opendetr.network import is_url

# Output images keep the suffix of the input if it is one of these, and have Pillow's format of this name.
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
_OTHER_SUFFIX = ".png"
_VIDEO_SUFFIX = ".mp4"
# File systems allow 255 bytes. Some are reserved for the numbers of frames and crops.
_MAX_BYTES = 255 - 40


class OutputNames:
    """Assigns each source a unique relative path: its path below its input folder.

    Keeps about a hundred bytes for each name.

    Args:
        roots: the input folders.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = roots
        self._used: dict[str, int] = {}

    def name(self, source: str) -> PurePath:
        """A relative path that differs from all earlier ones, also in a file system that ignores case."""
        preferred = self._preferred(source)
        key = _key(preferred)
        number = self._used.get(key, 0) + 1
        if number == 1:
            self._used[key] = 1
            return preferred
        numbered = preferred.with_name(f"{preferred.stem}-{number}{preferred.suffix}")
        while _key(numbered) in self._used:
            number += 1
            numbered = preferred.with_name(f"{preferred.stem}-{number}{preferred.suffix}")
        self._used[key] = number
        self._used[_key(numbered)] = 1
        return numbered

    def _preferred(self, source: str) -> PurePath:
        path = PurePath(_name_in_url(source)) if is_url(source) else self._below_root(Path(source))
        suffix = path.suffix
        if suffix.lower() not in FORMATS:
            suffix = (
                _VIDEO_SUFFIX
                if is_video(Path(source)) or source.startswith("camera ") or ("://" in source and not is_url(source))
                else _OTHER_SUFFIX
            )
        return path.with_name(shortened(path.stem, _MAX_BYTES) + suffix)

    def _below_root(self, path: Path) -> PurePath:
        root = next((root for root in self._roots if path.is_relative_to(root)), None)
        return PurePath(path.name) if root is None or path == root else path.relative_to(root)


def _key(path: PurePath) -> str:
    """A key that is equal for names that some file system treats as equal."""
    return unicodedata.normalize("NFC", path.as_posix()).casefold()


def _name_in_url(url: str) -> str:
    last = unquote(PurePosixPath(urlsplit(url).path).name)
    return safe_name(last) if last else "image"


def safe_name(text: str) -> str:
    """A file name, valid on every system, made from the text."""
    valid = "".join(char if char.isalnum() or char in " -_.()" else "_" for char in text).strip(" .")
    return shortened(valid, _MAX_BYTES) or "_"


def shortened(name: str, max_bytes: int) -> str:
    """The name, in at most `max_bytes` bytes. A longer name keeps its beginning and gets a digest of the full name."""
    encoded = os.fsencode(name)
    if len(encoded) <= max_bytes:
        return name
    digest = "-" + hashlib.sha256(encoded).hexdigest()[:8]
    return encoded[: max_bytes - len(digest)].decode(errors="ignore") + digest


class FolderNames:
    """Assigns each name of a class, or each phrase, a unique folder name.

    Args:
        names: the names that are known, which come first.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._unique = OutputNames(())
        self._of: dict[str, str] = {}
        for name in names:
            self.of(name)

    def of(self, name: str) -> str:
        """The folder name, the same for the same name."""
        if name not in self._of:
            self._of[name] = self._unique.name(safe_name(name) + _OTHER_SUFFIX).stem
        return self._of[name]
