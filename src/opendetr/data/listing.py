"""List the images in folders, lazily, and the files that match a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from opendetr.data.records import DataError
from opendetr.files import IMAGE_SUFFIXES


def images_in(
    folder: Path, *, skip: Path | None = None, on_unreadable: Callable[[str], None] | None = None
) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, in the order of their paths.

    Only the names in the current folder and its parents are kept in memory. Links to folders are followed, but no
    folder is listed twice, so a link to a parent does no harm.

    Args:
        folder: the folder to start in.
        skip: a folder to skip.
        on_unreadable: called with a one-line message for each folder that cannot be read.

    Raises:
        DataError: a folder cannot be read and `on_unreadable` is not given.
    """
    visited: set[tuple[int, int]] = set()

    def open_folder(path: Path) -> Iterator[tuple[Path, bool]]:
        try:
            identity = _identity(path)
            if identity in visited or (skip is not None and skip.exists() and identity == _identity(skip)):
                return iter(())
            visited.add(identity)
            return _list_folder(path)
        except OSError as error:
            line = f"{path}: the folder cannot be read ({error.strerror})"
            if on_unreadable is None:
                raise DataError(line) from None
            on_unreadable(line)
            return iter(())

    listings = [open_folder(folder)]
    while listings:
        path, is_folder = next(listings[-1], (None, False))
        if path is None:
            listings.pop()
        elif is_folder:
            listings.append(open_folder(path))
        else:
            yield path


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _list_folder(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(path, is a folder) of each subfolder and image in a folder, in the order of the names. Includes broken links."""
    folders, names = set(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = _holds(entry.is_dir)
            if is_folder:
                folders.add(entry.name)
            if is_folder or (is_image_name(entry.name) and (_holds(entry.is_file) or entry.is_symlink())):
                names.append(entry.name)
    names.sort()
    return ((folder / name, name in folders) for name in names)


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # a link to itself
        return False


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  creating a Path for each name is slow


def number_frames(paths: Iterable[Path]) -> dict[int, Path]:
    """Frame number -> image file, in ascending order.

    The number is the last one in the file name, if all names have different ones. Otherwise the frames are the files in
    the order of their names, numbered from 1.
    """
    paths = list(paths)
    found = {path: re.findall(r"\d+", path.stem) for path in paths}
    numbers = {int(digits[-1]): path for path, digits in found.items() if digits}
    if len(numbers) < len(paths):
        ordered = sorted(paths, key=lambda path: [(len(part), part) for part in re.split(r"(\d+)", path.stem)])
        return dict(enumerate(ordered, start=1))
    return dict(sorted(numbers.items()))


def files_matching(pattern: str) -> list[str]:
    """The files that match a pattern, sorted. Raises DataError if there are none."""
    paths = sorted(set(glob.glob(pattern, recursive=True)))  # noqa: PTH207  a pattern may be absolute
    if not paths:
        raise DataError(f"{pattern}: no file matches")
    return paths


def is_pattern(text: str) -> bool:
    """Whether the text contains wildcards, such as "photos/*.jpg". An existing file may have such a name, too."""
    return glob.has_magic(text)
