"""The cache folder, the suffixes of image files, atomic writes, and values of JSON files."""

from __future__ import annotations

import difflib
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READABLE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm"),
    *(".jpe", ".jfif", ".dib", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
"""Suffixes of images that every installation reads, in lower case."""
IMAGE_SUFFIXES = (*READABLE_SUFFIXES, ".avif", ".heic", ".heif", ".hif")
"""Suffixes of image files in lower case; some need an optional package. A name without a suffix is looked up in this
order."""
UNSUPPORTED_SUFFIXES = (
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"),
    *(".jxl", ".psd", ".tga", ".exr", ".hdr", ".dcm"),
)
"""Suffixes of images that are never read. They are named where a user would expect the image to be used."""


def cache_folder() -> Path:
    """The folder for downloads and compiled code: OPENDETR_CACHE, or ~/.cache/opendetr by default."""
    return Path(os.environ.get("OPENDETR_CACHE") or Path.home() / ".cache" / "opendetr")


def near_path(path: Path) -> str:
    """An ending for the message that `path` does not exist: "; did you mean ...?" with the nearest name, or nothing."""
    try:
        parent = next(parent for parent in path.parents if parent.is_dir())
        missing, *rest = path.relative_to(parent).parts
        entries = sorted(parent.iterdir(), key=lambda entry: entry.suffix != path.suffix)
        stems = [entry.stem for entry in entries]
        near = difflib.get_close_matches(Path(missing).stem, dict.fromkeys(stems), n=1, cutoff=0.7)
    except (OSError, ValueError, StopIteration):  # a path that no folder can have
        return ""
    found = next((found for name in near if (found := entries[stems.index(name)].joinpath(*rest)).exists()), None)
    return f"; did you mean {found}?" if found else ""


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Context manager with a temporary path in the same folder. At the end, the temporary file replaces `path` at once.

    After an error, `path` is unchanged and the temporary file is removed. The temporary name is short, so `path` may
    have the longest possible name. It ends in ".new", so it is never read as an image.

    Args:
        path: the file to write; its folder must exist.
        sync: wait until the content is on the disk. Even after a power failure, the old or the new file then exists.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. Its `filename` is `path`.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.new")
    try:
        with naming(path, instead_of=temporary):
            yield temporary
            if sync:
                flush(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Context manager in which an OSError without a file name gets that of `path`. Python names no file when a disk is
    full.

    Args:
        path: the file that is written.
        instead_of: a temporary file whose name is replaced, too.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename in (instead_of, str(instead_of)):
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: bytes | str, *, sync: bool = False) -> None:
    """Write a file completely or not at all; text is encoded in UTF-8. See `atomic_path`."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":  # other systems cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_value(value: Any) -> Any:
    """A value that JSON can represent: texts as keys, lists for tuples, and None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
