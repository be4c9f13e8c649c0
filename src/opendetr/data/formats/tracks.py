"""Checks of the tracks of one video, the same for every format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

from opendetr.data.faults import FaultKind
from opendetr.data.records import DataFault


class TrackEntry(Protocol):
    """One object in one frame of a video, as a format describes it."""

    @property
    def frame(self) -> int:
        """The number of the frame, from 1."""
        ...

    @property
    def track(self) -> int:
        """The id of the object in all frames."""
        ...

    @property
    def category(self) -> int:
        """The number of the class in the format."""
        ...

    @property
    def at(self) -> str:
        """The position in the annotation file, such as "line 3"."""
        ...


Entry = TypeVar("Entry", bound=TrackEntry)


def checked_tracks(entries: Iterable[Entry], file: Path, num_frames: int, faults: list[DataFault]) -> list[Entry]:
    """The entries of a video without those whose id their frame has already.

    Args:
        entries: in the order of the file.
        file: the annotation file.
        num_frames: the number of frames of the video.
        faults: gets a fault for each removed entry, and warnings about tracks whose class changes and of one frame.
    """
    kept: dict[tuple[int, int], Entry] = {}
    tracks: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        first = kept.setdefault((entry.frame, entry.track), entry)
        if first is entry:
            tracks[entry.track].append(entry)
        else:
            detail = f"id {entry.track} in frame {entry.frame} is in {first.at} too"
            faults.append(DataFault(FaultKind.REPEATED_TRACK, str(file), entry.at, detail))
    for track, (first, *others) in tracks.items():
        changed = next((entry for entry in others if entry.category != first.category), None)
        if changed:
            detail = f"id {track} has class {changed.category}, and class {first.category} in {first.at}"
            faults.append(DataFault(FaultKind.CLASS_CHANGE, str(file), changed.at, detail))
        if not others and num_frames > 1:
            faults.append(DataFault(FaultKind.SHORT_TRACK, str(file), first.at, f"id {track}"))
    return list(kept.values())


def missing_frames(frames: Collection[int], first: int, last: int, place: Path, at: str = "") -> list[DataFault]:
    """A warning if the frames `first` to `last` are not all there; none if they are.

    Args:
        frames: the numbers of the frames that exist.
        first: the number of the first frame that should exist.
        last: the number of the last one.
        place: the video file, its folder, or the annotation file.
        at: the position in an annotation file.
    """
    expected = last - first + 1
    missing = expected - sum(first <= frame <= last for frame in frames)
    if not missing:
        return []
    first_missing = next(frame for frame in count(first) if frame not in frames)
    detail = f"{missing} of {expected} frames, the first is {first_missing}"
    return [DataFault(FaultKind.MISSING_FRAME, str(place), at, detail)]
