"""`opendetr track`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from opendetr.cli.output import (
    DeviceOption,
    Exit,
    JsonOption,
    ModelOption,
    command,
    folder_to_write,
    in_range,
    one_line,
    say,
    table,
)
from opendetr.cli.predict import named_sources, refuse_overwriting_inputs, require_empty
from opendetr.cli.skipped import Skipped

if TYPE_CHECKING:
    from opendetr.inference import Tracker, TrackHistory
    from opendetr.inference.sources import Clip
    from opendetr.inference.writers import BeginClip
    from opendetr.results import Detections
    from opendetr.training import StopSignal

_NUM_LISTED = 10  # clips that are printed


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """The options of `opendetr track`, in the order of its help."""

    sources: Annotated[
        list[str],
        typer.Argument(help="Videos, folders of frames or of videos, patterns such as 'frames/*.jpg', or a camera."),
    ]
    weights: Annotated[
        str,
        typer.Option(
            help="A tracking model, or a detector with --association: a run folder, a file or address of weights, "
            "hf:owner/name, or a name that `opendetr models` lists.",
        ),
    ]
    model: ModelOption = None
    association: Annotated[
        str | None,
        typer.Option(
            help="How the boxes of a detector are associated from frame to frame: bytetrack, ocsort or sort. "
            "Extra: track.",
            show_default=False,
        ),
    ] = None
    birth: Annotated[
        float | None,
        typer.Option(
            callback=in_range(0, 1),
            help="Lowest score with which a track begins. [default: that stored with the weights, else the published]",
            show_default=False,
        ),
    ] = None
    keep: Annotated[
        float | None,
        typer.Option(
            callback=in_range(0, 1),
            help="Lowest score with which a track continues. [default: likewise]",
            show_default=False,
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            callback=in_range(1),
            help="Number of frames without the object after which its track ends. [default: likewise]",
            show_default=False,
        ),
    ] = None
    out: Annotated[Path, typer.Option(callback=folder_to_write, help="The folder for the results.")] = Path("tracks")
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write to --out even if it has files, and replace those of equal name.")
    ] = False
    draw: Annotated[bool, typer.Option(help="Write videos with the objects and their trails drawn on them.")] = True
    device: DeviceOption = "auto"
    as_json: JsonOption = False


@command
def track(options: TrackOptions) -> Exit:
    """Follow objects through videos: each object keeps its id from frame to frame.

    For each video, it writes the video with ids and trails (NAME.mp4) and the boxes in the MOTChallenge format
    (NAME.txt). tracks.json and tracks.csv have the boxes of all videos. If a folder has annotations, NAME.png shows
    which query carries which object, and where and why ids change.

    A frame that cannot be read is skipped. Ctrl-C stops after the current frame, and all files are complete.

    Examples:

        opendetr track street.mp4 --weights runs/motr-tiny

        opendetr track street.mp4 --weights detr-r50 --association bytetrack --birth 0.6

        opendetr track my-videos/val --weights runs/motr-tiny --out tracks-of-val --no-draw

        opendetr track 0 --weights runs/transtrack-tiny --patience 60
    """
    from opendetr.inference.sources import find_clips

    sources = named_sources(options.sources)
    if options.draw:
        refuse_overwriting_inputs(options.out, sources)
    if not options.overwrite:
        require_empty(options.out, "tracks.json")
    clips = [clip for source in sources for clip in find_clips(source, skip=options.out)]

    from opendetr.inference import Tracker
    from opendetr.training import StopSignal

    tracker = Tracker(
        options.weights,
        model=options.model,
        association=options.association,
        birth=options.birth,
        keep=options.keep,
        patience=options.patience,
        device=options.device,
    )
    roots = [Path(source) for source in sources if isinstance(source, str)]
    with StopSignal() as stop, _Run(tracker, clips, roots, options) as run:
        run.track(stop)
        run.print_json() if options.as_json else run.print_summary()
        if stop.requested and not clips[0].is_live:
            say(f"error: interrupted after {run.num_frames} frames; their tracks are in {options.out}")
            return Exit.FAILED
        return Exit.SOME_FAILED if run.skipped.count else Exit.DONE


class _Run:
    """Tracks and writes; counts frames and those that could not be read."""

    def __init__(self, tracker: Tracker, clips: Sequence[Clip], roots: Sequence[Path], options: TrackOptions) -> None:
        self._tracker = tracker
        self._clips = clips
        self._roots = roots
        self._options = options
        self._results: list[_Result] = []
        self._begin: BeginClip | None = None
        self._seconds = 0.0
        self.skipped = Skipped("frames")
        self.num_frames = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.skipped.close()

    def track(self, stop: StopSignal) -> None:
        """Track all clips, or until `stop` is requested. Raises DataError when no frame could be read."""
        from opendetr.data import DataError
        from opendetr.visualize import progress_bar

        known = [clip.num_frames for clip in self._clips]
        total = None if None in known else sum(number for number in known if number is not None)
        began = time.monotonic()
        with progress_bar("tracking", rate_of="frames") as progress, ExitStack() as folder:
            for clip in self._clips:
                for note in clip.notes:
                    say(f"note: {note}")
                try:
                    for _ in self._track_clip(clip, folder, stop):
                        progress(self.num_frames + self.skipped.count, total)
                except DataError as error:
                    if len(self._clips) == 1:
                        raise
                    self.skipped.add(str(error))
                if stop.requested:
                    break
        self._seconds = time.monotonic() - began
        if not self.num_frames:
            raise self.skipped.error()
        self.skipped.say()

    def _track_clip(self, clip: Clip, folder: ExitStack, stop: StopSignal) -> Iterator[None]:
        """Track and write a clip until its end or a stop; yields after each frame.

        The files are opened at its first frame. They are complete only if the generator is exhausted.
        """
        from opendetr.inference import TrackHistory
        from opendetr.inference.writers import tracks_folder

        result = None
        history = None if clip.annotations is None else TrackHistory(clip.annotations)
        with ExitStack() as stack:
            for detections in stack.enter_context(closing(self._tracker.track(clip, on_unreadable=self.skipped.add))):
                if self._begin is None:
                    categories, roots = self._tracker.predictor.categories, self._roots
                    opened = tracks_folder(self._options.out, categories, draw=self._options.draw, roots=roots)
                    self._begin = folder.enter_context(opened)
                if result is None:
                    name, write = stack.enter_context(self._begin(clip.source))
                    result = _Result(name.as_posix())
                    self._results.append(result)
                write(detections)
                if history is not None:
                    history.add(detections, self._tracker.queries)
                result.add(detections)
                self.num_frames += 1
                self.skipped.say()
                yield
                if stop.requested:
                    break
        if result is not None and history is not None:
            result.explain(history, self._options.out)

    def print_summary(self) -> None:
        """Print the numbers of frames and tracks of the first clips, the speed and the output folder."""
        rows = [(one_line(result.name), f"{result.frames} frames", result.text()) for result in self._results]
        print(table(rows[:_NUM_LISTED]))
        if len(rows) > _NUM_LISTED:
            print(f"... and {len(rows) - _NUM_LISTED} more videos")
        rate = self.num_frames / max(self._seconds, 1e-9)
        print(f"{self.num_frames} frames, {rate:.1f} per second: {self._options.out}")
        if not any(result.tracks for result in self._results):
            lower = max(self._tracker.config.birth / 2, 0.05)
            say(f"nothing was tracked; try a lower score, such as --birth {lower:.2f}")

    def print_json(self) -> None:
        """Print the result as JSON."""
        from opendetr.inference.writers import TRACKS_FILE

        out, videos = self._options.out, [result.to_dict() for result in self._results]
        self.skipped.print_json({"out": str(out), "videos": videos}, out / TRACKS_FILE)


class _Result:
    """The printed facts about a clip.

    Attributes:
        name: its name in the output folder, without a suffix.
        frames: the number of frames that were read.
        tracks: the number of tracks.
        switches: for an annotated clip, the number of changes of ids by their reason.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames = 0
        self.switches: dict[str, int] | None = None
        self._ids: set[int] = set()

    @property
    def tracks(self) -> int:
        """The number of tracks."""
        return len(self._ids)

    def add(self, detections: Detections) -> None:
        """Count the next frame."""
        assert detections.track_ids is not None
        self.frames += 1
        self._ids.update(detections.track_ids.tolist())

    def explain(self, history: TrackHistory, out: Path) -> None:
        """Write the chart of the clip, and count its switches."""
        from opendetr.visualize import save_image

        explanation = history.explain()
        self.switches = explanation.counts
        save_image(explanation.draw(self.name), (out / self.name).with_name(f"{Path(self.name).name}.png"))

    def text(self) -> str:
        """The numbers as text."""
        text = f"{self.tracks} track{'' if self.tracks == 1 else 's'}"
        if self.switches is None:
            return text
        count = sum(self.switches.values())
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.switches.items() if number)
        return f"{text}, {count} switch{'' if count == 1 else 'es'} of ids{f' ({reasons})' if reasons else ''}"

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values."""
        return {"name": self.name, "frames": self.frames, "tracks": self.tracks, "switches": self.switches}
