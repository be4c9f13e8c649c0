"""Paths that a description gives, found here although they were written on another machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from opendetr.data.paths import is_file
from opendetr.data.text import read_text

_MAX_LINK_BYTES = 4096
_MAX_LINKS = 8


class Place(NamedTuple):
    """A file or folder, and the name that it goes by in the dataset, which differs where a link is on the way."""

    path: Path
    name: Path


def find_place(entry: str, bases: Sequence[Path], folder: Path) -> Place | None:
    """The file or folder that a path in a description means; None where there is none.

    Args:
        entry: the path, as written. One that is absolute or climbs out, and leads nowhere, is looked for by its end.
        bases: folders that it may start from.
        folder: the dataset's.
    """
    entry = entry.strip()
    slashed = entry.replace("\\", "/")
    parts = PurePosixPath(slashed).parts
    ends = (Path(*parts[start:]) for start in range(len(parts)) if parts[start] not in ("/", ".."))
    names = [base / spelling for spelling in dict.fromkeys((entry, slashed)) for base in bases]
    names += [folder / end for end in ends if not end.is_absolute()]
    found = ((through_text_links(name), name) for name in names)
    return next((Place(path, name) for path, name in found if path is not None), None)


def through_text_links(path: Path, depth: int = 0) -> Path | None:
    """The file or folder itself; None where there is none.

    Where links cannot be made, Git writes a link as a small text file with the path that it leads to.
    """
    try:
        if path.is_dir() or (path.is_file() and not _linked_folder(path)):
            return path
    except (OSError, ValueError):
        return None
    link = next((step for step in (path, *path.parents) if is_file(step)), None)
    target = _linked_folder(link) if link else None
    if link is None or target is None or depth == _MAX_LINKS:
        return None
    return through_text_links(target / path.relative_to(link), depth + 1)


def _linked_folder(link: Path) -> Path | None:
    """Where a link that is stored as text leads, if that is a folder, or another such link."""
    if link.suffix or link.stat().st_size > _MAX_LINK_BYTES:
        return None
    try:
        target = Path(os.path.normpath(link.parent / read_text(link).strip()))
        return target if target != link.parent and target.exists() else None
    except (OSError, ValueError):
        return None
