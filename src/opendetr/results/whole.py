"""Files that are there whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
