"""A checkpoint is a folder: tensors as safetensors, the rest as JSON with the hash of every file; nothing is pickled.

It is written aside, flushed to the disk and renamed into place, so that at any moment, a kill or a full disk included,
a whole one is there: the new one or the one before.
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
    """A checkpoint, or another file of a run, cannot be written or read."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be what was written.

    Attributes:
        folder: where it lies.
        facts: what was saved beside the tensors.
    """

    folder: Path
    facts: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of the file `name`, on the CPU."""
        return load_file(self.folder / name)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the disk refuses while `path` is written into a CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]
        raise CheckpointError(
            f"cannot write {path}: {reason}; the checkpoint before it is whole: make room, then go on with --resume"
        ) from error


def save_checkpoint(folder: Path, facts: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]) -> None:
    """Replace the checkpoint `folder` by a new one, or leave it as it is.

    Args:
        folder: the checkpoint's place; its parent is made if need be.
        facts: anything that JSON holds.
        files: for each file name a function that writes the file to the path it is given.

    Raises:
        CheckpointError: the disk is full or refuses otherwise; the checkpoint that was there is still there.
    """
    new, old = _beside(folder, "new"), _beside(folder, "old")
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
    """Where the checkpoint `folder` lies: there, beside it if a kill came while it was replaced, or nowhere."""
    return next((place for place in (folder, _beside(folder, "old")) if (place / _INDEX).exists()), None)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with its hash.

    Raises:
        CheckpointError: there is none, or it was cut off or altered.
    """
    place = find_checkpoint(folder)
    if place is None:
        raise CheckpointError(f"{folder}: no checkpoint here; give a run folder with a checkpoint, or start a new run")
    try:
        index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        found = index.pop("sha256")
        damaged = [] if found == _hash_of(index) else [_INDEX]
        if index["format"] != FORMAT:
            raise CheckpointError(f"{place}: of format {index['format']}, this version of OpenDETR reads {FORMAT}")
        damaged += [name for name, expected in index["files"].items() if _hash(place / name) != expected]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{place}: the checkpoint is not whole ({error}); {_MEND}") from error
    if damaged:
        raise CheckpointError(f"{place / damaged[0]}: does not match its hash, it was cut off or altered; {_MEND}")
    return Checkpoint(place, index["facts"])


_MEND = "copy it again, use another checkpoint, or start a new run"


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _write(folder: Path, facts: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]) -> None:
    folder.mkdir(parents=True)
    for name, write in files.items():
        write(folder / name)
        flush(folder / name)
    index = {"format": FORMAT, "facts": facts, "files": {name: _hash(folder / name) for name in files}}
    index = json.loads(json.dumps(index))  # as it will be read: a tuple is a list, a key is text
    text = json.dumps({**index, "sha256": _hash_of(index)}, indent=1)
    (folder / _INDEX).write_text(text, encoding="utf-8")
    flush(folder / _INDEX)
    flush(folder)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
