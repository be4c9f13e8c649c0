"""Names of the files that are written: never two alike, never too long, never outside the output folder."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import unquote, urlsplit

from opendetr.categories import Categories
from opendetr.inference.sources.video import is_video
from opendetr.network import is_url

# What is written ends as what was read, where Pillow writes it well: in the format of this name.
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
_OTHER_SUFFIX = ".png"
_VIDEO_SUFFIX = ".mp4"
# File systems allow 255 bytes; some are left for the numbers of frames and crops.
_MAX_BYTES = 255 - 40


class OutputNames:
    """Gives every source a relative path of its own: its place below the folder it was found in.

    About a hundred bytes are kept for each name given.

    Args:
        roots: the folders that images are looked for in.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = roots
        self._given: dict[str, int] = {}

    def name(self, source: str) -> PurePath:
        """A relative path, different (in a file system that ignores case, too) from those given before."""
        wanted = self._wanted(source)
        key = _key(wanted)
        number = self._given.get(key, 0) + 1
        if number == 1:
            self._given[key] = 1
            return wanted
        numbered = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        while _key(numbered) in self._given:
            number += 1
            numbered = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        self._given[key] = number
        self._given[_key(numbered)] = 1
        return numbered

    def _wanted(self, source: str) -> PurePath:
        place = PurePath(_name_in_url(source)) if is_url(source) else self._below_root(Path(source))
        suffix = place.suffix
        if suffix.lower() not in FORMATS:
            suffix = _VIDEO_SUFFIX if is_video(Path(source)) or source.startswith("camera ") else _OTHER_SUFFIX
        return place.with_name(shortened(place.stem, _MAX_BYTES) + suffix)

    def _below_root(self, path: Path) -> PurePath:
        root = next((root for root in self._roots if path.is_relative_to(root)), None)
        return PurePath(path.name) if root is None or path == root else path.relative_to(root)


def _key(path: PurePath) -> str:
    """The same for names that some file system takes for one."""
    return unicodedata.normalize("NFC", path.as_posix()).casefold()


def _name_in_url(url: str) -> str:
    last = unquote(PurePosixPath(urlsplit(url).path).name)
    return safe_name(last) if last else "picture"


def safe_name(text: str) -> str:
    """A file name, valid on every system, that resembles the text."""
    kept = "".join(letter if letter.isalnum() or letter in " -_.()" else "_" for letter in text).strip(" .")
    return shortened(kept, _MAX_BYTES) or "_"


def shortened(name: str, most: int) -> str:
    """The name in at most so many bytes; of a longer one the beginning, and a mark that stands for all of it."""
    whole = os.fsencode(name)
    if len(whole) <= most:
        return name
    mark = "-" + hashlib.sha256(whole).hexdigest()[:8]
    return whole[: most - len(mark)].decode(errors="ignore") + mark


def class_folders(categories: Categories) -> list[str]:
    """A folder name for each label, no two alike."""
    names = OutputNames(())
    return [names.name(safe_name(name) + _OTHER_SUFFIX).stem for name in categories.names]
