"""Files: the cache folder, and writes that are complete or do not happen."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads and built code are kept: what OPENDETR_CACHE names, else ~/.cache/opendetr."""
    return Path(os.environ.get("OPENDETR_CACHE") or Path.home() / ".cache" / "opendetr")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; what is there takes the name `path` in the end, and disappears after an error.

    The name while writing is short, so that the longest name that `path` can have does not become too long.
    """
    fresh = path.with_name(f".{uuid.uuid4().hex[:12]}.new")
    try:
        yield fresh
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as fresh:
        fresh.write_bytes(content)
