"""The sizes of the image files of a dataset, read from their headers when it is opened.

A header is read in microseconds if it is that of a PNG or JPEG, and by Pillow otherwise. The sizes of many files are
read in parallel and kept in the cache folder, until a file has another length or time of modification.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from opendetr.data.faults import FaultKind
from opendetr.data.images import ImageFileError, image_size, is_plausible_size, size_mismatch, stored_size
from opendetr.data.records import DataFault, ObjectRecord
from opendetr.distributed import usable_cpus
from opendetr.files import cache_folder, write_atomically

_VERSION = 1
_FEWEST_CACHED = 1000  # new sizes that are worth a file
_AT_ONCE = 1000
_HEAD = 4096  # bytes
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp", b"Exif\0", b"http://ns.adobe.com/xap")
# The markers of JPEG segments with the size of the image.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FIT = 0.5  # pixels by which a box may extend outside an image that it fits into

Size = tuple[int, int]


class _Known(NamedTuple):
    """What is known of a file: its length and time of modification, and height and width of its image.

    `stored` is the size before the EXIF orientation is applied, `oriented` that after it. None means not read yet, or
    that it cannot be read from the header alone.
    """

    length: int
    time: int
    stored: Size | None
    oriented: Size | None


class ImageSizes:
    """The sizes of the image files of one dataset.

    Args:
        folder: the dataset; the sizes of its files are cached together.
    """

    def __init__(self, folder: Path) -> None:
        key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
        self._file = cache_folder() / "image-sizes" / f"{key}.json"
        self._cached: dict[str, _Known] | None = None
        self._known: dict[str, _Known] = {}
        self._num_new = 0

    def prefetch(self, paths: Sequence[Path]) -> None:
        """Read the headers of many files that are not cached, in parallel. Files that cannot be read are left out."""
        files = list(dict.fromkeys(paths))
        parts = [files[start : start + _AT_ONCE] for start in range(0, len(files), _AT_ONCE)]
        if len(files) >= _FEWEST_CACHED and self._cached is None:
            self._cached = _read_cache(self._file)
        cached = self._cached or {}

        def read(part: Sequence[Path]) -> list[tuple[str, _Known | None]]:
            return [(name := str(path), _look(path, cached.get(name))) for path in part]

        if len(parts) < 2:
            results: Iterable[list[tuple[str, _Known | None]]] = map(read, parts)
        else:
            with ThreadPoolExecutor(min(8, 2 * usable_cpus())) as executor:
                results = list(executor.map(read, parts))
        for result in results:
            for name, known in result:
                if known is not None:
                    self._num_new += known is not cached.get(name)
                    self._known[name] = known

    def stored(self, path: Path) -> Size | None:
        """Height and width of the stored image, before its EXIF orientation; None if its header cannot be read."""
        known = self._of(path)
        if known is not None and known.stored is not None:
            return known.stored
        try:
            size = stored_size(path)
        except ImageFileError:
            return None
        if known is not None:
            self._keep(str(path), known._replace(stored=size))
        return size

    def oriented(self, path: Path) -> Size:
        """Height and width of the image after its EXIF orientation is applied. Raises ImageFileError."""
        known = self._of(path)
        if known is not None and known.oriented is not None:
            return known.oriented
        size = image_size(path)
        if known is not None:
            self._keep(str(path), known._replace(oriented=size))
        return size

    def save(self) -> None:
        """Write the sizes of many files to the cache. A cache that cannot be written is left as it is."""
        if self._num_new < _FEWEST_CACHED:
            return
        files = (self._cached or {}) | self._known
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps({"version": _VERSION, "files": files}, separators=(",", ":")))
        except (OSError, UnicodeError):
            return
        self._num_new = 0

    def _of(self, path: Path) -> _Known | None:
        name = str(path)
        if name not in self._known:
            known = _look(path, None)
            if known is None:
                return None
            self._keep(name, known)
        return self._known[name]

    def _keep(self, name: str, known: _Known) -> None:
        self._known[name] = known
        self._num_new += 1


def _read_cache(path: Path) -> dict[str, _Known]:
    """File name -> what is cached of it; empty if there is no valid cache."""
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != _VERSION:
            return {}
        return {
            name: _Known(length, time, _pair(stored), _pair(oriented))
            for name, (length, time, stored, oriented) in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _pair(value: list[int] | None) -> Size | None:
    return None if value is None else (int(value[0]), int(value[1]))


def _look(path: Path, cached: _Known | None) -> _Known | None:
    """What is known of a file: as cached if it is unchanged, else from its header. None if it is no readable file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        if cached is not None and (cached.length, cached.time) == (status.st_size, status.st_mtime_ns):
            return cached
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            stored, is_upright = _parse(handle, status.st_size)
        finally:
            os.close(handle)
    except (OSError, ValueError):
        return None
    if stored is None or not is_plausible_size(*stored, status.st_size):
        return _Known(status.st_size, status.st_mtime_ns, None, None)
    return _Known(status.st_size, status.st_mtime_ns, stored, stored if is_upright else None)


def _parse(handle: int, length: int) -> tuple[Size | None, bool]:
    """Height and width in a PNG or JPEG header, else None; and whether the file has no EXIF orientation for certain."""
    head = os.read(handle, _HEAD)
    if head.startswith(_PNG) and head[12:16] == b"IHDR" and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
        # The orientation of a PNG may follow its pixels.
        is_upright = length <= len(head) and not any(mark in head for mark in _ORIENTATION_MARKS)
        return ((height, width) if width and height else None), is_upright
    return _parse_jpeg(handle, head) if head.startswith(_JPEG) else (None, False)


def _parse_jpeg(handle: int, head: bytes) -> tuple[Size | None, bool]:
    """As `_parse`, for a file that begins with `head`: the segments up to the one with the size."""
    start, at, is_upright = 0, 2, True
    while True:
        if at - start + 10 > len(head):
            # A long segment, such as a preview image, is skipped.
            if not hasattr(os, "pread") or len(head := os.pread(handle, _HEAD, at)) < 10:
                return None, False
            start = at
        here = at - start
        if head[here] != 0xFF:
            return None, False
        marker = head[here + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        (segment,) = struct.unpack(">H", head[here + 2 : here + 4])
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", head[here + 5 : here + 9])
            return ((height, width) if height and width else None), is_upright
        if marker < 0xC0 or marker in (0xD8, 0xD9, 0xDA) or segment < 2:
            return None, False
        is_upright = is_upright and marker != 0xE1  # EXIF and XMP
        at += 2 + segment


# --------------------------------------------------------------------------------------------------- annotated sizes


class AnnotatedSizes:
    """Compares the sizes that annotations give with those of the files.

    Args:
        sizes: of the files.
        entries: path, annotated height and width, and annotated objects of each image that gives its size. They are
            used to tell whether the tool has swapped width and height.
    """

    def __init__(self, sizes: ImageSizes, entries: Callable[[], Iterable[tuple[Path, Size, Sequence[ObjectRecord]]]]):
        self._sizes = sizes
        self._entries = entries
        self._is_proved: bool | None = None

    def settled(
        self, path: Path, annotated: Size, objects: Sequence[ObjectRecord], source: str, at: str
    ) -> tuple[Size, tuple[DataFault, ...]]:
        """The size of an image in the frame of its boxes, and a fault if that is not the annotated one.

        If the file has the annotated height as its width and the reverse, and its boxes fit into it, then the
        annotation is wrong. It remains open which of both is wrong if the boxes of all such images fit into either.

        Args:
            path: the image file.
            annotated: height and width in the annotation.
            objects: the annotated objects.
            source: the annotation file.
            at: the position in it.

        Raises:
            FaultError: the size is another one.
        """
        stored = self._sizes.stored(path)
        if stored is None or stored == annotated:  # training skips a file that cannot be read
            return annotated, ()
        try:
            size = self._sizes.oriented(path)
        except ImageFileError:
            return annotated, ()
        if size == annotated:
            return annotated, ()
        if size != annotated[::-1] or not _fit(objects, size):
            raise size_mismatch(path, size, annotated)
        if objects and _fit(objects, annotated) and not self._any_proof():
            kind, detail = FaultKind.DOUBTFUL_SIZE, "its boxes fit into both"
        else:
            kind, detail = FaultKind.SWAPPED_SIZE, f"{annotated[1]}x{annotated[0]}"
        return size, (DataFault(kind, source, at, f"{path.name} is {size[1]}x{size[0]}, {detail}"),)

    def _any_proof(self) -> bool:
        """Whether the boxes of any image fit into the file and not into the swapped size that is annotated."""
        if self._is_proved is None:
            self._is_proved = any(
                self._sizes.stored(path) == annotated[::-1] and _fit(objects, annotated[::-1])
                for path, annotated, objects in self._entries()
                if annotated[0] != annotated[1] and not _fit(objects, annotated)
            )
        return self._is_proved


def _fit(objects: Iterable[ObjectRecord], size: Size) -> bool:
    """Whether all boxes lie inside an image of this height and width, but for a rounding error."""
    height, width = size
    return all(x + w <= width + _FIT and y + h <= height + _FIT for x, y, w, h in (obj.box for obj in objects))
