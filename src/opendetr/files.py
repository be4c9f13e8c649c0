"""Files: the cache folder, the suffixes of images, and atomic writes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm")
"""How the names of image files end, in lower case; where a name is looked for without its suffix, in this order."""


def cache_folder() -> Path:
    """Where downloads and built code are kept: what OPENDETR_CACHE names, else ~/.cache/opendetr."""
    return Path(os.environ.get("OPENDETR_CACHE") or Path.home() / ".cache" / "opendetr")


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path in the same folder. The file written there replaces `path` at the end, in one step.

    After an error `path` is as it was, and the temporary file is removed. The temporary name is short, so that a `path`
    with the longest possible name can be written. It ends in ".new", so that nothing takes it for an image.

    Args:
        path: where the file shall be; its folder exists.
        sync: wait until the content is on the disk, so that after a power cut, too, the old or the new file is there.

    Raises:
        OSError: the disk is full, or refuses for another reason.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.new")
    try:
        yield temporary
        if sync:
            flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | str, *, sync: bool = False) -> None:
    """Write a file completely or not at all; text in UTF-8. See `atomic_path`."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
