"""Read the rows of `gt/gt.txt`, the annotations of a video in the MOTChallenge format; see `mot`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from opendetr.data.faults import FaultKind
from opendetr.data.formats.tracks import checked_tracks
from opendetr.data.records import DataFault, FaultError
from opendetr.data.text import read_text

_MIN_COLUMNS = 6


class MotRow(NamedTuple):
    """One object of a frame: its line, frame, id, box x, y, width, height in pixels, flag, class and visibility."""

    line: int
    frame: int
    track: int
    box: tuple[float, float, float, float]
    flag: bool
    category: int
    visibility: float

    @property
    def at(self) -> str:
        """Its position in the file."""
        return f"line {self.line}"


def parse_rows(path: Path, faults: list[DataFault]) -> list[MotRow]:
    """The rows of a file that can be read. `faults` gets a fault for each of the others."""
    rows = []
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            try:
                rows.append(_parse_row(text, line, path))
            except FaultError as error:
                faults.append(error.fault)
    return rows


def _parse_row(text: str, line: int, path: Path) -> MotRow:
    at = f"line {line}"
    cells = [cell.strip() for cell in text.split("," if "," in text else None)]
    if len(cells) < _MIN_COLUMNS:
        detail = f"{len(cells)} columns; expected frame, id, left, top, width, height"
        raise FaultError(FaultKind.INVALID_ROW, path, at, detail)
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        raise FaultError(FaultKind.INVALID_ROW, path, at, f"{text[:80]!r} are not numbers") from None
    frame, track, x, y, width, height = values[:_MIN_COLUMNS]
    flag, category, visibility = (*values[_MIN_COLUMNS:], *(1.0, -1.0, 1.0)[len(values) - _MIN_COLUMNS :])[:3]
    if not all(map(float.is_integer, (frame, track, category))):  # also False for NaN and infinity
        raise FaultError(FaultKind.INVALID_ROW, path, at, f"{text[:80]!r}: frame, id and class must be whole numbers")
    if track < 0:
        detail = f"the id is {int(track)}: these are detections without ids; tracking needs the ground truth with ids"
        raise FaultError(FaultKind.INVALID_ROW, path, at, detail)
    visible = visibility if 0 <= visibility <= 1 else 1.0
    return MotRow(line, int(frame), int(track), (x, y, width, height), flag != 0, int(category), visible)


def usable_rows(rows: list[MotRow], path: Path, num_frames: int, faults: list[DataFault]) -> tuple[MotRow, ...]:
    """The rows that can be used, in the order of their frames and lines.

    Args:
        rows: in the order of the file.
        path: the file.
        num_frames: the number of frames of the video.
        faults: gets a fault for each of the other rows, and warnings about tracks.
    """
    of_video = []
    for row in rows:
        if 1 <= row.frame <= num_frames:
            of_video.append(row)
        else:
            detail = f"frame {row.frame}; the video has the frames 1 to {num_frames}"
            faults.append(DataFault(FaultKind.OUTSIDE_VIDEO, str(path), row.at, detail))
    kept = checked_tracks(of_video, path, num_frames, faults)
    return tuple(sorted(kept, key=lambda row: (row.frame, row.line)))
