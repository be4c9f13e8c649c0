"""List the images in folders, lazily, and the files that match a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from opendetr.data.records import DataError
from opendetr.data.signatures import is_image_content
from opendetr.files import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES

# Files with these suffixes are not opened to see whether they are images: a folder may contain millions of them.
_OTHER_SUFFIXES = frozenset(
    {".txt", ".xml", ".json", ".csv", ".yaml", ".yml", ".md", ".npy", ".npz", ".mp4", ".mov", ".avi", ".zip", ".new"}
)


def images_in(
    folder: Path, *, skip: Path | None = None, on_unreadable: Callable[[str], None] | None = None
) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, in the order of their paths.

    An image is a file with the suffix of an image, or with the content of an image and a suffix that says nothing else.
    Files in a format that is never read are yielded, too, so that they are named, unless an image that can be read has
    the same name but for the suffix. The files that macOS adds on foreign file systems ("._a.jpg") are not images.

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
            if is_folder or (_may_be_image(entry) and (_holds(entry.is_file) or entry.is_symlink())):
                names.append(entry.name)
    known = {_stem(name) for name in names if is_image_name(name)}
    names = sorted(name for name in names if not (_is_unsupported(name) and _stem(name) in known))
    return ((folder / name, name in folders) for name in names)


def _may_be_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file has the name or the content of an image."""
    if is_image_name(entry.name) or _is_unsupported(entry.name):
        return not entry.name.startswith("._")
    if entry.name.startswith(".") or _suffix(entry.name) in _OTHER_SUFFIXES or not _holds(entry.is_file):
        return False
    return is_image_content(Path(entry.path))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  creating a Path for each name is slow


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122


def _is_unsupported(name: str) -> bool:
    return _suffix(name) in UNSUPPORTED_SUFFIXES


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # a link to itself
        return False


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return _suffix(name) in IMAGE_SUFFIXES


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
