"""Write the tracks of videos: annotated videos with trails, MOTChallenge text, COCO JSON and CSV.

Memory use does not grow with the number of frames.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from opendetr.categories import Categories
from opendetr.data import FRAME, TRACK, VIDEO
from opendetr.files import atomic_path
from opendetr.inference.writers.background import Background
from opendetr.inference.writers.names import OutputNames
from opendetr.inference.writers.tables import CSV_HEAD, coco_tables, used_rows
from opendetr.inference.writers.video import video_writer
from opendetr.results import Detections
from opendetr.visualize import draw_tracks

TRACKS_FILE, TRACKS_CSV = "tracks.json", "tracks.csv"
_CSV_HEAD = ("video", "frame_id", "track_id", *CSV_HEAD[3:])
_TRAIL_FRAMES = 30

Write = Callable[[Detections], None]
BeginClip = Callable[[str], AbstractContextManager[tuple[PurePath, Write]]]


@contextmanager
def tracks_folder(
    folder: Path, categories: Categories, *, draw: bool = True, roots: Sequence[Path] = ()
) -> Iterator[BeginClip]:
    """Context manager that gives a function. It begins a clip, given its source, and returns a context manager.

    The value of the latter is the name of the clip in the folder, without a suffix, and a function that writes the
    objects of its next frame. For each clip, `NAME.mp4` is the video with the objects drawn on it, and `NAME.txt` has
    them in the MOTChallenge format. They appear when the context of the clip ends, but not after an error.
    `tracks.json` and `tracks.csv` have the objects of all clips, and appear at the end.

    Args:
        folder: the output folder. It is created if it is missing.
        categories: the categories of the tracker.
        draw: write the videos.
        roots: the input folders. The name of a clip is its path below its root.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = OutputNames(roots)
    rows = [{"id": row["id"], "name": row["name"]} for row in used_rows(categories)]
    # File names that are not valid text keep their bytes.
    with (
        coco_tables(folder / TRACKS_FILE, rows) as (images, annotations),
        atomic_path(folder / TRACKS_CSV) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(_CSV_HEAD)
        count = 0

        @contextmanager
        def begin(source: str) -> Iterator[tuple[PurePath, Write]]:
            name = _name(names, source)
            with ExitStack() as stack:
                sinks = [stack.enter_context(_mot_text((folder / name).with_name(f"{name.name}.txt")))]
                if draw:
                    sinks.append(stack.enter_context(_video((folder / name).with_name(f"{name.name}.mp4"))))

                def write(detections: Detections) -> None:
                    nonlocal count
                    count += 1
                    images.add(_image_row(detections, count, name.as_posix()))
                    for row, track in zip(detections.to_coco(count), _ids(detections), strict=True):
                        annotations.add(row | {TRACK: track})
                    table.writerows(_csv_rows(detections, name.as_posix()))
                    for sink in sinks:
                        sink(detections)

                yield name, write

        yield begin


def _name(names: OutputNames, source: str) -> PurePath:
    """A new name for a clip, without a suffix."""
    path = Path(source)
    path = path if path.name not in ("", "..") else path.resolve()
    return names.name(str(path.with_name(f"{path.name}.mp4")) if path.is_dir() else str(path)).with_suffix("")


def _ids(detections: Detections) -> list[int]:
    assert detections.track_ids is not None
    return detections.track_ids.tolist()


def _frame_number(detections: Detections) -> int:
    """The number of the frame from 1."""
    return (detections.frame or 0) + 1


def _image_row(detections: Detections, number: int, video: str) -> dict[str, object]:
    height, width = detections.size
    row = {"id": number, "file_name": detections.source, "height": height, "width": width}
    return row | {VIDEO: video, FRAME: _frame_number(detections), "time": detections.time}


def _csv_rows(detections: Detections, video: str) -> Iterator[tuple[object, ...]]:
    ids = [detections.categories.ids[label] for label in detections.labels.tolist()]
    for track, id_, name, score, box in zip(
        _ids(detections), ids, detections.names, detections.scores.tolist(), detections.boxes.tolist(), strict=True
    ):
        yield video, _frame_number(detections), track, id_, name, f"{score:.6f}", *(f"{x:.3f}" for x in box)


@contextmanager
def _mot_text(path: Path) -> Iterator[Write]:
    """A sink that writes the rows `frame,id,left,top,width,height,score,-1,-1,-1`. Frames and ids count from 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:

        def add(detections: Detections) -> None:
            frame = _frame_number(detections)
            for track, score, (left, top, right, bottom) in zip(
                _ids(detections), detections.scores.tolist(), detections.boxes.tolist(), strict=True
            ):
                box = f"{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f}"
                stream.write(f"{frame},{track},{box},{score:.4f},-1,-1,-1\n")

        yield add


@contextmanager
def _video(path: Path) -> Iterator[Write]:
    """A sink that writes the frames with the objects and their trails drawn on them."""
    trails: dict[int, deque[tuple[float, float]]] = {}
    # The writer is closed after the threads have drawn all frames.
    with video_writer(path) as writer, Background() as background:

        def add(detections: Detections) -> None:
            _extend(trails, detections)
            seen = {track: list(centres) for track, centres in trails.items()}
            background.submit(
                partial(_drawn, detections, seen),
                partial(writer.write, seconds=detections.time or 0.0),
                size=detections.image.nbytes,
            )

        yield add


def _extend(trails: dict[int, deque[tuple[float, float]]], detections: Detections) -> None:
    """Add the centres of this frame. The trails of tracks that are not in it get shorter, and end."""
    boxes = detections.boxes
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()
    current = dict(zip(_ids(detections), centres, strict=True))
    for track in current.keys() - trails.keys():
        trails[track] = deque(maxlen=_TRAIL_FRAMES)
    for track in list(trails):
        if track in current:
            trails[track].append((current[track][0], current[track][1]))
        else:
            trails[track].popleft()
        if not trails[track]:
            del trails[track]


def _drawn(detections: Detections, trails: dict[int, list[tuple[float, float]]]) -> np.ndarray:
    boxes = detections.boxes.numpy()
    return np.asarray(draw_tracks(detections.image, boxes, _ids(detections), detections.names, trails))
