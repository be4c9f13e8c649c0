"""File names from annotation files: look-up, and the check that they stay inside the dataset's folder."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from opendetr.data.faults import FaultKind
from opendetr.data.records import DataError, FaultError
from opendetr.files import near_path

# Of files that describe or annotate a dataset.
DESCRIPTION_SUFFIXES = (".yaml", ".yml", ".data", ".txt", ".csv", ".tsv", ".json", ".xml")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
_FILES_OF_A_RUN = ("config.yaml", "metrics.jsonl")  # a YOLO folder may have a config.yaml, too


def inside(folder: Path, name: str, file: str | Path, at: str = "") -> Path:
    """`folder / name`, checked to lie inside `folder`. Links inside the folder are followed.

    Args:
        folder: the folder that must contain the file.
        name: a relative path from an annotation file.
        file: the annotation file, for the message.
        at: the position in the annotation file, for the message.

    Raises:
        DataError: the name is absolute or leads out of the folder.
    """
    if not is_inside(name):
        detail = f"the file name {name!r} leaves the data folder; use names inside {folder}"
        raise FaultError(FaultKind.UNSAFE_NAME, file, at, detail)
    return folder / name


def is_inside(name: str) -> bool:
    """Whether a relative path stays inside the folder it starts from, on every operating system."""
    windows = PureWindowsPath(name)
    climbs = posixpath.normpath(name.replace("\\", "/")).split("/")[0] == ".."
    return not (climbs or windows.root or windows.drive or "\0" in name or not name.strip("./"))


def first_folder_holding(names: Sequence[str], folders: Iterable[Path]) -> Path | None:
    """The first folder that contains one of the named files, or None."""
    return next((folder for folder in folders if any(is_file(folder / name) for name in names)), None)


def is_file(path: Path) -> bool:
    """Whether the file exists; False for names that are invalid on this system."""
    try:
        return path.is_file()
    except OSError:
        return False


def require_folder(folder: Path, contents: str = "images and annotations") -> None:
    """Raise DataError unless `folder` is a folder that is not empty, or a file that describes a dataset.

    Args:
        folder: the dataset.
        contents: what it needs, for the message.
    """
    if folder.suffix.lower() in DESCRIPTION_SUFFIXES and is_file(folder):
        return
    try:
        if not any(folder.iterdir()):
            raise DataError(f"{folder}: the folder is empty; pass a folder with {contents}")
        if all((folder / name).is_file() for name in _FILES_OF_A_RUN):
            raise DataError(f"{folder}: is the folder of a run, not a dataset; give the folder of the dataset")
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder{near_path(folder)}") from None
    except NotADirectoryError:
        is_archive = folder.suffix.lower() in _ARCHIVE_SUFFIXES
        advice = "unpack this archive, and pass its folder" if is_archive else "pass the folder of the dataset"
        raise DataError(f"{folder}: a file, not a folder; {advice}") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def require_new(folder: Path) -> None:
    """Raise DataError if `folder` exists, unless it is an empty folder: nothing is overwritten."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not an empty folder; choose a new folder")


def file_length(path: Path, file: str | Path, at: str = "") -> int:
    """Length of the image file `path` in bytes.

    Raises DataError if the image is missing; the message names the annotation file `file` and the position `at` in it.
    """
    try:
        status: os.stat_result | None = path.stat()
    except (OSError, ValueError):  # also a name that is invalid on this system
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        detail = f"the image {path} is missing; add the image, or remove it from the annotations"
        raise FaultError(FaultKind.MISSING_IMAGE, file, at, detail)
    return status.st_size
