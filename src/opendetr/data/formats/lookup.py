"""Find the files of a dataset by the names that annotations, lists and descriptions give.

Every reader finds its files here. A name means the file of that path if it exists. Otherwise, the end of the name
decides: the files with the same last part are candidates, and the one whose folders agree longest is meant. Parts are
compared without regard to the kind of slash, the Unicode normal form, `%` encoding, and upper or lower case. Of several
candidates, one that is spelled alike is preferred: first with another case of the suffix, then of the name. A name of a
labelling server, such as `https://host/data/upload/1/x.jpg`, `/data/local-files/?d=shots/x.jpg` or `1f2e3d4c-x.jpg`, is
reduced to what lies in the folder. Several files that fit equally well are an error that lists them. No file outside
the folder is ever found.
"""

from __future__ import annotations

import collections
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from opendetr.data.faults import FaultKind
from opendetr.data.formats.links import through_text_links
from opendetr.data.formats.splits import path_split
from opendetr.data.listing import is_image_name
from opendetr.data.paths import is_inside
from opendetr.data.records import DataError, DataFault, FaultError
from opendetr.files import IMAGE_SUFFIXES

_MAX_FILES = 2_000_000
_MAX_DEPTH = 12
_MAX_NAMED = 5  # candidates that an error lists
_OTHER_FOLDERS = ("__macosx", "@eadir")  # made by macOS and by network storage beside the files
_FILES_OF_A_RUN = {"config.yaml", "metrics.jsonl"}
# Folders that hold masks or maps, whose files may have the names of images.
_MASK_FOLDERS = frozenset({"annotations", "masks", "mask", "segmentationclass", "segmentationobject", "segmentations"})
_SERVER_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio writes it before the name of an uploaded file


class Found(NamedTuple):
    """A file of the dataset.

    Attributes:
        path: the file.
        name: its path within the dataset; it differs from `path` if it leads through a link stored as text.
        respelled: whether its path is spelled differently from its name in the annotations.
    """

    path: Path
    name: Path
    respelled: bool = False


class _Entry(NamedTuple):
    """A file in the dataset: its folder relative to the dataset, with forward slashes, and its name."""

    folder: str
    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.folder.split("/"), self.name) if self.folder else (self.name,)


class Lookup:
    """The files of a dataset folder. Each folder is listed at most once, when it is first needed.

    Args:
        folder: the dataset.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[str, frozenset[str]] = {}
        self._linked: dict[str, str | None] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}
        self._tables: dict[str, dict[str, list[_Entry]]] = {}

    # ------------------------------------------------------------------------------------------------------ listings

    def has(self, path: str | Path) -> bool:
        """Whether a path is listed in its folder. The file itself is not touched: it may be a broken link."""
        parent, name = os.path.split(path)
        return name in self.names_in(parent)

    def names_in(self, folder: str | Path) -> frozenset[str]:
        """The names of all files and folders in a folder; none if it cannot be read."""
        key = os.fspath(folder)
        names = self._names.get(key)
        if names is None:
            try:
                names = frozenset(os.listdir(key or "."))  # noqa: PTH208  a Path for each is slow
            except (OSError, ValueError):
                names = frozenset()
            self._names[key] = names
        return names

    @cached_property
    def tree(self) -> list[tuple[str, list[str]]]:
        """The folder and its subfolders, each with the names of its files, in the order of their paths.

        A folder is given by its path relative to the dataset, "" for the dataset itself. Hidden files, the folders of
        runs, links to folders around the dataset, and folders that are reached a second time are left out.

        Raises:
            DataError: there are too many files for a dataset.
        """
        found: list[tuple[str, list[str]]] = []
        visited = _outer_folders(self.folder)
        count = 0
        waiting = collections.deque([("", 0)])
        while waiting:
            relative, depth = waiting.popleft()
            folders, links, files = _listed(self.folder / relative, visited)
            if depth and set(files) >= _FILES_OF_A_RUN:
                continue
            count += len(files)
            if count > _MAX_FILES:
                raise DataError(
                    f"{self.folder}: contains more than {_MAX_FILES:,} files; name the folder of the dataset"
                )
            found.append((relative, files))
            prefix = f"{relative}/" if relative else ""
            if depth < _MAX_DEPTH:
                waiting.extendleft((prefix + name, depth + 1) for name in folders)
                waiting.extend((prefix + name, depth + 1) for name in links)  # after all folders
        return sorted(found, key=lambda entry: entry[0].split("/"))

    def files(self, *suffixes: str) -> list[Path]:
        """The files of the dataset with these suffixes (in lower case), in the order of their paths."""
        return [
            self.folder / folder / name for folder, names in self.tree for name in names if _suffix(name) in suffixes
        ]

    def images(self) -> list[Path]:
        """The images of the dataset, in the order of their paths."""
        return [self.folder / folder / name for folder, names in self.tree for name in names if is_image_name(name)]

    def has_images(self) -> bool:
        """Whether the dataset contains an image."""
        return any(is_image_name(name) for _, names in self.tree for name in names)

    # --------------------------------------------------------------------------------------------------------- names

    def image(self, name: str, bases: Sequence[Path], file: Path, at: str = "") -> Found | None:
        """The image that an annotation names; None if there is none.

        Args:
            name: the name in the annotation file.
            bases: folders that the name may be relative to; they lie in the dataset, or are links in it.
            file: the annotation file. Images near it are preferred, and errors name it.
            at: the position in the annotation file, for errors.

        Raises:
            FaultError: several images fit equally well.
        """
        return self._exact(name, bases) or self._by_end(name, "images", is_image_name, file, at)

    def place(self, name: str, bases: Sequence[Path], file: Path) -> Path | None:
        """The file or folder that a description names; None if there is none. The arguments are those of `image`."""
        found = self._exact(name, bases) or self._by_end(name, "places", lambda name: True, file, "")
        return found.path if found else None

    def require_image(
        self, name: str, bases: Sequence[Path], file: Path, at: str = "", faults: list[DataFault] | None = None
    ) -> Path:
        """The image that an annotation names. The arguments are those of `image`.

        If the name is spelled differently from the path of the image, a warning is added to `faults`.

        Raises:
            FaultError: there is no such image, its name leads out of the dataset, or several images fit.
        """
        found = self.image(name, bases, file, at)
        if found is None:
            if not is_inside(name):
                detail = f"the file name {name!r} leaves the data folder; use names inside {self.folder}"
                raise FaultError(FaultKind.UNSAFE_NAME, file, at, detail)
            path = (bases[0] if bases else self.folder) / name
            detail = f"the image {path} is missing; add the image, or remove it from the annotations"
            raise FaultError(FaultKind.MISSING_IMAGE, file, at, detail)
        if found.respelled and faults is not None:
            faults.append(respelled(name, found.path, file, at))
        return found.path

    def image_of(self, annotation: Path, named: str, bases: Sequence[Path] = ()) -> Found | None:
        """The image of an annotation file that annotates one image; None if there is none.

        It has the name of the annotation file, in the same folder or another one, or else the name that the file gives.

        Args:
            annotation: the annotation file.
            named: the file name in the annotation file; may be empty.
            bases: folders in which an image of that name is the one.

        Raises:
            FaultError: several images fit equally well.
        """
        last = re.split(r"[\\/]", named)[-1]
        for base in bases:
            names = self._by_stem(base).get(annotation.stem, [])
            if len(names) > 1:
                names = [name for name in names if _key(name) == _key(last)] or names
            if names:
                return Found(base / names[0], base / names[0])
        table = self._table("stems", is_image_name, lambda name: _key(os.path.splitext(name)[0]))  # noqa: PTH122
        candidates = table.get(_key(annotation.stem), [])
        if candidates:
            own = self._relative(annotation.parent)
            ranks = [
                (_key(entry.name) == _key(last), *affinity(own, entry.folder), _stem_distance(entry.name, annotation))
                for entry in candidates
            ]
            path = self._best(candidates, ranks, annotation.name, annotation, "")
            return Found(path, path)
        return self.image(named, [annotation.parent, *bases], annotation) if named else None

    def _exact(self, name: str, bases: Sequence[Path]) -> Found | None:
        """The file with this path relative to one of the folders, with either kind of slash."""
        slashed = name.replace("\\", "/")
        for spelling in dict.fromkeys((name, slashed, name.strip(), slashed.strip())):
            if not is_inside(spelling):
                continue
            for base in bases:
                path = os.path.join(base, spelling)  # noqa: PTH118  a Path for each of many images is slow
                if self.has(path):
                    return Found(Path(path), Path(path))
                parent, last = os.path.split(path)
                linked = self._through_links(parent)
                if linked is not None and self.has(os.path.join(linked, last)):  # noqa: PTH118
                    return Found(Path(linked, last), Path(path))
        return None

    def _through_links(self, folder: str) -> str | None:
        """The folder that a path leads to through a link stored as text; None if there is no such link in it."""
        if folder not in self._linked:
            found = None if self.names_in(folder) else through_text_links(Path(folder))
            self._linked[folder] = str(found) if found else None
        return self._linked[folder]

    def _by_end(self, name: str, kind: str, accepts: Callable[[str], bool], file: Path, at: str) -> Found | None:
        """The file whose path agrees with the end of a name."""
        table = self._table(kind, accepts, _key)
        readings = _readings(name)
        for shorten in (_key, lambda last: _SERVER_PREFIX.sub("", _key(last))):
            pairs = [(reading, entry) for reading in readings for entry in table.get(shorten(reading[-1]), ())]
            if not pairs and kind == "images":
                stems = self._table("stems", accepts, lambda name: _key(os.path.splitext(name)[0]))  # noqa: PTH122
                pairs = [
                    (reading, entry)
                    for reading in readings
                    if not is_image_name(reading[-1])
                    for entry in stems.get(shorten(reading[-1]), ())
                ]
            if pairs:
                own = self._relative(file.parent)
                ranks: dict[_Entry, tuple[int, bool, int]] = {}
                for reading, entry in pairs:
                    rank = (_agreement(reading, entry.parts), _is_below(entry.folder, own), _likeness(reading, entry))
                    ranks[entry] = max(rank, ranks.get(entry, rank))
                path = self._best(list(ranks), list(ranks.values()), name, file, at)
                return Found(path, path, respelled=_is_respelled(name, path.relative_to(self.folder)))
        return None

    def _best(
        self, candidates: Sequence[_Entry], ranks: Sequence[tuple[Any, ...]], name: str, file: Path, at: str
    ) -> Path:
        """The candidate with the highest rank. Raises FaultError if several have it."""
        highest = max(ranks)
        best = [entry for entry, rank in zip(candidates, ranks, strict=True) if rank == highest]
        if len(best) > 1:
            names = ["/".join(entry.parts) for entry in best]
            listed = ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
            detail = (
                f"{name[:200]!r} fits {len(names)} files: {listed}; rename or remove all but one, or name its folder"
            )
            raise FaultError(FaultKind.AMBIGUOUS_NAME, file, at, detail)
        return self.folder.joinpath(*best[0].parts)

    def _by_stem(self, folder: Path) -> dict[str, list[str]]:
        """Name without suffix -> the images of that name in a folder, `.jpg` first."""
        key = os.fspath(folder)
        if key not in self._stems:
            stems: dict[str, list[str]] = {}
            for name in sorted(filter(is_image_name, self.names_in(key)), key=_suffix_order):
                stems.setdefault(os.path.splitext(name)[0], []).append(name)  # noqa: PTH122
            self._stems[key] = stems
        return self._stems[key]

    def _table(self, kind: str, accepts: Callable[[str], bool], key: Callable[[str], str]) -> dict[str, list[_Entry]]:
        """Key of a name -> the files with that key."""
        if kind not in self._tables:
            table: dict[str, list[_Entry]] = {}
            for folder, names in self.tree:
                for name in names:
                    if accepts(name):
                        table.setdefault(key(name), []).append(_Entry(folder, name))
                if kind == "places" and folder:
                    parent, _, last = folder.rpartition("/")
                    table.setdefault(key(last), []).append(_Entry(parent, last))
            self._tables[kind] = table
        return self._tables[kind]

    def _relative(self, folder: Path) -> str:
        """A folder relative to the dataset; "" for one that is not in it."""
        if not folder.is_relative_to(self.folder):
            return ""
        return "" if folder == self.folder else folder.relative_to(self.folder).as_posix()

    # -------------------------------------------------------------------------------------------------------- labels

    def pairs(self, images: Iterable[Path], texts: Iterable[Path]) -> dict[Path, Path]:
        """Image -> its label file, for images and label files that have the same name up to spelling.

        A label file belongs to the image whose folder agrees best with its own, of all images of the dataset. Images
        and label files in the folders of different splits do not belong together.

        Args:
            images: images without a label file in the usual place.
            texts: label files without an image in the usual place.

        Raises:
            FaultError: an image fits several label files equally well, or the other way round.
        """
        by_key: dict[str, list[Path]] = {}
        for text in texts:
            by_key.setdefault(_key(text.stem), []).append(text)
        wanted = set(images)
        table = self._table("stems", is_image_name, lambda name: _key(os.path.splitext(name)[0]))  # noqa: PTH122
        found: dict[Path, Path] = {}
        for key, candidates in by_key.items():
            for text in candidates:
                own = self._relative(text.parent)
                entries = [entry for entry in table.get(key, []) if not _splits_differ(own, entry.folder)]
                if not entries:
                    continue
                ranks = [(*affinity(own, entry.folder), _stem_distance(entry.name, text)) for entry in entries]
                image = self._best(entries, ranks, text.name, text, "")
                if image not in wanted:
                    continue
                if image in found:
                    detail = f"fits {found[image]}, and so does {text}; remove one of them"
                    raise FaultError(FaultKind.AMBIGUOUS_NAME, image, "", detail)
                found[image] = text
        return found


def respelled(name: str, path: Path, file: str | Path, at: str = "") -> DataFault:
    """The warning that a name in a file is spelled differently from the path of the file that it means."""
    return DataFault(FaultKind.RESPELLED_NAME, str(file), at, f"{name[:200]!r} is {path}")


def name_key(name: str) -> str:
    """A key that is equal for names that are equal up to their spelling."""
    return _key(name)


def affinity(a: str, b: str) -> tuple[int, bool]:
    """How well two folders of a dataset agree: the number of equal outer and inner folders, and whether b has no masks.

    `annotations/train` agrees better with `images/train` than with `images/val`, and `train/labels` better with
    `train/images` than with `val/images`. A folder agrees best with itself.
    """
    first, second = ([_key(part) for part in folder.split("/") if part] for folder in (a, b))
    holds_images = not (second and second[-1] in _MASK_FOLDERS)
    if first == second:
        return len(first) + 1, True
    shorter = min(len(first), len(second))
    outer = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    inner = next((n for n in range(shorter - outer) if first[-1 - n] != second[-1 - n]), shorter - outer)
    return outer + inner, holds_images


def _splits_differ(a: str, b: str) -> bool:
    first, second = path_split(a), path_split(b)
    return first is not None and second is not None and first != second


def _listed(folder: Path, visited: set[tuple[int, int]]) -> tuple[list[str], list[str], list[str]]:
    """The names of the folders, the links to folders, and the files in a folder; none if it was visited.

    Hidden entries, links that lead nowhere, and what is neither a file nor a folder are left out.
    """
    folders: list[str] = []
    links: list[str] = []
    files: list[str] = []
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return folders, links, files
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if _holds(entry.is_dir):
                    if name.lower() not in _OTHER_FOLDERS:
                        (links if entry.is_symlink() else folders).append(name)
                elif _holds(entry.is_file):
                    files.append(name)
    except OSError:
        pass
    return folders, links, sorted(files)


def _outer_folders(folder: Path) -> set[tuple[int, int]]:
    """The identities of the folders around a folder."""
    found = set()
    try:
        for outer in folder.resolve().parents:
            status = outer.stat()
            found.add((status.st_dev, status.st_ino))
    except OSError:
        pass
    return found


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # a link to itself
        return False


def composed(text: str) -> str:
    """A text in Unicode's composed normal form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _key(name: str) -> str:
    """A name without regard to Unicode normal form, `%` encoding and case."""
    if "%" in name:
        name = _decoded(name)
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _decoded(name: str) -> str:
    """A name with its `%` encoding resolved, also where it was encoded twice."""
    for _ in range(2):
        try:
            name = unquote(name, errors="strict")
        except UnicodeDecodeError:
            name = unquote(name, encoding="latin-1")
    return name


def _readings(name: str) -> list[tuple[str, ...]]:
    """The parts of a path that a name may stand for: the name itself, and without or from the query of a URL."""
    texts = [name]
    if "?" in name:
        path, _, query = name.partition("?")
        texts += [path, *(value.partition("=")[2] for value in query.split("&"))]
    parts = [re.split(r"[\\/]", spelling) for text in texts for spelling in dict.fromkeys((text, _decoded(text)))]
    kept = (tuple(part for part in of_text if part.strip() not in ("", ".", "..")) for of_text in parts)
    return [reading for reading in dict.fromkeys(kept) if reading]


def _agreement(reading: Sequence[str], parts: Sequence[str]) -> int:
    """The number of equal parts at the end of two paths; at least 1, because the candidate was found by its name."""
    pairs = zip(reversed(reading[:-1]), reversed(parts[:-1]), strict=False)
    return 1 + next((n for n, (a, b) in enumerate(pairs) if _key(a) != _key(b)), min(len(reading), len(parts)) - 1)


def _likeness(reading: Sequence[str], entry: _Entry) -> int:
    """How alike the last parts are: 4 if equal, 3 in one normal form, 2 decoded, 1 up to the case of the suffix."""
    name, other = reading[-1], entry.name
    if name == other:
        return 4
    name, other = composed(name), composed(other)
    if name == other:
        return 3
    name, other = composed(_decoded(name)), composed(_decoded(other))
    if name == other:
        return 2
    return int(os.path.splitext(name)[0] == os.path.splitext(other)[0])  # noqa: PTH122


def _stem_distance(image: str, annotation: Path) -> int:
    """0 if an image has exactly the name of an annotation file, negative for another spelling."""
    stem = os.path.splitext(image)[0]  # noqa: PTH122
    return 0 if stem == annotation.stem else -1 if composed(stem) == composed(annotation.stem) else -2


def _is_below(folder: str, other: str) -> bool:
    return not other or folder == other or folder.startswith(f"{other}/")


def _is_respelled(name: str, path: Path) -> bool:
    """Whether neither of a name and the path of its file is an end of the other. A missing suffix does not count."""
    stated = [part for part in re.split(r"[\\/]", composed(name)) if part not in ("", ".")]
    parts = list(map(composed, path.parts))
    if not is_image_name(stated[-1]):
        parts[-1] = os.path.splitext(parts[-1])[0]  # noqa: PTH122
    length = min(len(stated), len(parts))
    return stated[-length:] != parts[-length:]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _suffix_order(name: str) -> tuple[int, str]:
    return IMAGE_SUFFIXES.index(_suffix(name)), name
