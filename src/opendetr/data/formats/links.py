"""Find the files and folders that a description names, even if its paths were written on another machine."""

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
    """A file or folder, and its path within the dataset. The two differ if the path leads through a link."""

    path: Path
    name: Path


def find_place(entry: str, bases: Sequence[Path], folder: Path) -> Place | None:
    """The file or folder that a path in a description refers to; None if it does not exist.

    If the path itself does not exist, ever shorter ends of it are searched for in `folder`. This finds paths that are
    absolute or lead out of the folder.

    Args:
        entry: the path as written in the description.
        bases: folders that it may be relative to.
        folder: the folder of the dataset.
    """
    entry = entry.strip()
    slashed = entry.replace("\\", "/")
    parts = PurePosixPath(slashed).parts
    ends = (Path(*parts[start:]) for start in range(len(parts)) if parts[start] not in ("/", ".."))
    names = [base / spelling for spelling in dict.fromkeys((entry, slashed)) for base in bases]
    names += [folder / end for end in ends if not end.is_absolute()]
    resolved = ((through_text_links(name), name) for name in names)
    return next((Place(path, name) for path, name in resolved if path is not None), None)


def through_text_links(path: Path, depth: int = 0) -> Path | None:
    """The file or folder that a path leads to through links stored as text; None if it does not exist.

    On systems without symbolic links, Git writes a link as a small text file that contains the path of its target.
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
    """The target of a link that is stored as text; None if the file is no such link or the target does not exist."""
    if link.suffix or link.stat().st_size > _MAX_LINK_BYTES:
        return None
    try:
        target = Path(os.path.normpath(link.parent / read_text(link).strip()))
        return target if target != link.parent and target.exists() else None
    except (OSError, ValueError):
        return None
