"""Checkpoints. A checkpoint is a folder with safetensors files and a JSON file; nothing is pickled.

The JSON file contains the hash of every other file. A new checkpoint is written to a temporary folder, flushed to the
disk and then renamed. After a kill or on a full disk, the new checkpoint or the one before is therefore complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from opendetr.files import flush

FORMAT = 1
_INDEX = "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint or another file of a run cannot be written or read."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their hashes.

    Attributes:
        folder: the folder of the checkpoint.
        facts: the values that were saved in addition to the tensors.
    """

    folder: Path
    facts: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Load the tensors of the file `name`, on the CPU."""
        return load_file(self.folder / name)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, an error of the disk while `path` is written raises CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]
        raise CheckpointError(
            f"cannot write {path}: {reason}; the last checkpoint is complete: make room, then continue with --resume"
        ) from error


def save_checkpoint(folder: Path, facts: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]) -> None:
    """Replace the checkpoint `folder` atomically.

    Args:
        folder: the folder of the checkpoint. Its parent is created if necessary.
        facts: values that JSON can represent.
        files: for each file name, a function that writes the file to a path.

    Raises:
        CheckpointError: the disk is full or cannot be written. The checkpoint from before is still there.
    """
    new, old = _sibling(folder, "new"), _sibling(folder, "old")
    with writing(folder):
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (new, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        try:
            _write(new, facts, files)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        flush(folder.parent)
        if old.exists():
            shutil.rmtree(old)


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint `folder`, or the one before if a kill interrupted its replacement, or None."""
    return next((path for path in (folder, _sibling(folder, "old")) if (path / _INDEX).exists()), None)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with its hash.

    Raises:
        CheckpointError: there is none, or a file of it is incomplete or was altered.
    """
    path = find_checkpoint(folder)
    if path is None:
        raise CheckpointError(f"{folder}: no checkpoint here; give a run folder with a checkpoint, or start a new run")
    try:
        index = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        index_hash = index.pop("sha256")
        damaged = [] if index_hash == _value_hash(index) else [_INDEX]
        if index["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: of format {index['format']}, this version of OpenDETR reads {FORMAT}; resume with the "
                "version that started the run, or start a new run"
            )
        damaged += [name for name, expected in index["files"].items() if _file_hash(path / name) != expected]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: the checkpoint is not complete ({error}); {_FIX}") from error
    if damaged:
        raise CheckpointError(f"{path / damaged[0]}: does not match its hash, it was cut off or altered; {_FIX}")
    return Checkpoint(path, index["facts"])


_FIX = "copy it again, use another checkpoint, or start a new run"


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _write(folder: Path, facts: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]) -> None:
    folder.mkdir(parents=True)
    for name, write in files.items():
        write(folder / name)
        flush(folder / name)
    index = {"format": FORMAT, "facts": facts, "files": {name: _file_hash(folder / name) for name in files}}
    index = json.loads(json.dumps(index))  # hash it as it is read: a tuple is a list, a key is a string
    text = json.dumps({**index, "sha256": _value_hash(index)}, indent=1)
    (folder / _INDEX).write_text(text, encoding="utf-8")
    flush(folder / _INDEX)
    flush(folder)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _value_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
