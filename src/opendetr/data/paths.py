"""File names that come from annotation files: found, and kept inside the dataset's folder."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from opendetr.data.faults import Kind
from opendetr.data.records import DataError, FaultError

DESCRIPTION_SUFFIXES = (".yaml", ".yml", ".csv", ".tsv")  # of files that can stand for a dataset


def inside(folder: Path, name: str, file: str | Path, at: str = "") -> Path:
    """`folder / name`. Raises DataError when the name is absolute or climbs out; links in the folder are the user's.

    Args:
        folder: where the file is to lie.
        name: a relative path from an annotation file.
        file: the annotation file, for the message.
        at: where in it, likewise.
    """
    if not is_inside(name):
        detail = f"the file name {name!r} leaves the data folder; use names inside {folder}"
        raise FaultError(Kind.UNSAFE_NAME, file, at, detail)
    return folder / name


def is_inside(name: str) -> bool:
    """Whether a relative path stays in the folder that it starts from, on every system."""
    windows = PureWindowsPath(name)
    climbs = posixpath.normpath(name.replace("\\", "/")).split("/")[0] == ".."
    return not (climbs or windows.root or windows.drive or "\0" in name or not name.strip("./"))


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
    """Raise DataError unless the folder is there and holds something, or is a file that describes a dataset."""
    if folder.suffix.lower() in DESCRIPTION_SUFFIXES and is_file(folder):
        return
    try:
        if not any(folder.iterdir()):
            raise DataError(f"{folder}: the folder is empty; give a folder with images and annotations")
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: a file, not a folder; give the folder of the dataset") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def require_new(folder: Path) -> None:
    """Raise DataError when there is something that writing a folder would destroy."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: not an empty folder; name a new one to write to")


def file_length(path: Path, file: str | Path, at: str = "") -> int:
    """Bytes in the file. Raises DataError that names the annotation file, and where in it, when there is none such."""
    if not is_file(path):
        detail = f"its image {path} is missing; put it there, or take it out of the annotations"
        raise FaultError(Kind.MISSING_IMAGE, file, at, detail)
    return path.stat().st_size
