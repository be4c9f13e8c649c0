"""File names that come from annotation files: found, and kept inside the data set's folder."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from opendetr.data.records import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def inside(folder: Path, name: str, place: str) -> Path:
    """`folder / name`. Raises DataError when the name is absolute or climbs out; links in the folder are the user's.

    Args:
        folder: where the file is to lie.
        name: a relative path from an annotation file.
        place: the annotation file, for the message.
    """
    windows = PureWindowsPath(name)
    climbs = posixpath.normpath(name.replace("\\", "/")).split("/")[0] == ".."
    if climbs or windows.root or windows.drive or "\0" in name or not name.strip("./"):
        raise DataError(f"{place}: the file name {name!r} leaves the data folder; use names inside {folder}")
    return folder / name


def first_folder_holding(names: Sequence[str], folders: Iterable[Path]) -> Path | None:
    """The first of the folders in which one of the named files lies; None when there is none."""
    return next((folder for folder in folders if any(is_file(folder / name) for name in names)), None)


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for names that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def require_folder(folder: Path) -> None:
    """Raise DataError unless the folder is there and holds something."""
    try:
        if not any(folder.iterdir()):
            raise DataError(f"{folder}: the folder is empty; give a folder with COCO or Pascal VOC annotations")
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: a file, not a folder; give the folder of the data set") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def file_length(path: Path, place: str) -> int:
    """Bytes in the file. Raises DataError that names `place`, the annotation file, when there is no such file."""
    if not is_file(path):
        raise DataError(f"{place}: its image {path} is missing; put it there, or take it out of the annotations")
    return path.stat().st_size
