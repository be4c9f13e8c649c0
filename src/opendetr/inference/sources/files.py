"""Images in folders and those that match a pattern, found as they are asked for."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from opendetr.data import DataError
from opendetr.files import IMAGE_SUFFIXES


def images_in(
    folder: Path, *, skip: Path | None = None, on_unreadable: Callable[[str], None] | None = None
) -> Iterator[Path]:
    """The images in a folder and in its folders, in the order of their paths.

    One folder's names are held at a time, so that a tree of any size needs little memory. Links to folders are
    followed, and no folder is entered twice: loops end.

    Args:
        folder: where to begin.
        skip: a folder that is left out.
        on_unreadable: called with one line for each folder that cannot be listed.

    Raises:
        DataError: a folder cannot be listed, and `on_unreadable` is not given.
    """
    entered: set[tuple[int, int]] = set()

    def listed(path: Path) -> Iterator[tuple[Path, bool]]:
        try:
            identity = _identity(path)
            if identity in entered or (skip is not None and skip.exists() and identity == _identity(skip)):
                return iter(())
            entered.add(identity)
            return _listing(path)
        except OSError as error:
            line = f"{path}: the folder cannot be read ({error.strerror})"
            if on_unreadable is None:
                raise DataError(line) from None
            on_unreadable(line)
            return iter(())

    waiting = [listed(folder)]
    while waiting:
        path, is_folder = next(waiting[-1], (None, False))
        if path is None:
            waiting.pop()
        elif is_folder:
            waiting.append(listed(path))
        else:
            yield path


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _listing(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Folders and images in a folder by name, each with whether it is a folder. Links that lead nowhere are named."""
    folders, names = set(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = _is(entry.is_dir)
            if is_folder:
                folders.add(entry.name)
            if is_folder or (is_image_name(entry.name) and (_is(entry.is_file) or entry.is_symlink())):
                names.append(entry.name)
    names.sort()
    return ((folder / name, name in folders) for name in names)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def is_image_name(name: str) -> bool:
    """Whether a file name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  a Path of each name is slow


def matching(pattern: str) -> list[str]:
    """The files that match a pattern, sorted. Raises DataError when there is none."""
    found = sorted(set(glob.glob(pattern, recursive=True)))  # noqa: PTH207  a pattern may be absolute
    if not found:
        raise DataError(f"{pattern}: no file matches")
    return found


def is_pattern(text: str) -> bool:
    """Whether a path that does not exist is a pattern such as "photos/*.jpg"."""
    return glob.has_magic(text)
