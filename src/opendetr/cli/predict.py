"""`opendetr predict`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from opendetr.cli.output import (
    DEFAULT_MODEL,
    Exit,
    JsonOption,
    MergeOption,
    MergeRule,
    ModelOption,
    WeightsOption,
    command,
    say,
)

if TYPE_CHECKING:
    from opendetr.inference.predictor import Predictor
    from opendetr.inference.sources.reading import Source
    from opendetr.inference.writers.folder import OutputConfig
    from opendetr.results import Detections, Panoptic
    from opendetr.training.signals import StopSignal


@command
def predict(
    sources: Annotated[
        list[str],
        typer.Argument(help="Images, folders, patterns such as 'photos/*.jpg', URLs, videos, or a camera's number."),
    ],
    weights: WeightsOption = DEFAULT_MODEL,
    model: ModelOption = None,
    out: Annotated[Path, typer.Option(help="Where predictions.json and the images go.")] = Path("predictions"),
    min_score: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out what scores less; NAME=SCORE for one class. May be repeated. [default: 0.5; with "
            "--panoptic 0.85, or 0.4 for sigmoid scores]",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model together.")] = 8,
    pictures: Annotated[bool, typer.Option(help="Draw the detections on the images and videos.")] = True,
    crops: Annotated[bool, typer.Option("--crops", help="Save every detection, cut out, in crops/CLASS.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Write predictions.csv, too.")] = False,
    yolo: Annotated[bool, typer.Option("--yolo", help="Write YOLO labels, too: labels/*.txt and data.yaml.")] = False,
    panoptic: Annotated[
        bool,
        typer.Option(
            "--panoptic", help="Write the thing or stuff that every pixel belongs to: panoptic.json and panoptic/*.png."
        ),
    ] = False,
    merge: MergeOption = MergeRule.DEFAULT,
    strict_no_object: Annotated[
        bool, typer.Option("--strict-no-object", help='Leave out queries whose best answer is "no object".')
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: JsonOption = False,
) -> Exit:
    """Find objects in images and videos: draws them, and writes them as COCO JSON.

    With their masks, where the model has a mask head; such a model gives panoptic maps, too.

    What is written of the images in a folder has the same place in --out. Ctrl-C stops after the image at hand and
    leaves whole files.

    Examples:

        opendetr predict photo.jpg --weights runs/deformable-detr-tiny

        opendetr predict photos more/*.png --weights detr-r50 --out found --min-score 0.7

        opendetr predict street.mp4 --weights detr-r50 --min-score 0.6 --min-score person=0.4 --csv

        opendetr predict 0 --weights detr-r50

        opendetr predict photos --weights detr-r50-panoptic --panoptic
    """
    least, by_class = _scores(min_score or [])
    if panoptic and (crops or csv or yolo):
        raise typer.BadParameter("--crops, --csv and --yolo are of detections: leave them out with --panoptic")
    if merge is not MergeRule.DEFAULT and not panoptic:
        raise typer.BadParameter("--merge is a rule of panoptic maps: give --panoptic, too")

    from opendetr.inference.predictor import load
    from opendetr.inference.writers.folder import OutputConfig
    from opendetr.training.signals import StopSignal

    given = _given(sources)
    if pictures or crops:
        _refuse_overwriting(out, given)
    detector = load(weights, model=model, device=device, strict_no_object=strict_no_object)
    config = OutputConfig(pictures=pictures, crops=crops, csv=csv, yolo=yolo)
    with StopSignal() as stop, _Run(detector, given, out, panoptic=panoptic) as run:
        options = {"panoptic": True, "merge": merge.value} if panoptic else {}
        run.predict(config, stop, min_score=least, class_min_scores=by_class, batch_size=batch_size, **options)
        if as_json:
            run.print_json()
        else:
            what = "segments" if panoptic else "objects"
            print(f"{run.num_objects} {what} in {run.num_images} images: {out}")
        if stop.requested and not isinstance(given[0], int):
            say(f"error: interrupted after {run.num_images} images; what was found in them is in {out}")
            return Exit.FAILED
        return Exit.SOME_FAILED if run.num_failed else Exit.DONE


def _scores(options: Iterable[str]) -> tuple[float | None, dict[str, float]]:
    """The least score, if one is given, and those of single classes. Raises BadParameter for what is neither."""
    least: float | None = None
    by_class = {}
    for option in options:
        name, named, text = option.rpartition("=")
        try:
            score = float(text)
        except ValueError:
            score = -1.0
        if not 0 <= score <= 1 or (named and not name):
            raise typer.BadParameter(f"--min-score {option}: give a number in 0..1, or NAME=NUMBER")
        if named:
            by_class[name] = score
        else:
            least = score
    return least, by_class


def _given(sources: Sequence[str]) -> list[Source]:
    """The sources, a camera's as a number. Raises BadParameter for those that make no sense."""
    from opendetr.presets import list_models

    given: list[Source] = [int(each) if each.isdecimal() and not Path(each).exists() else each for each in sources]
    if len(given) > 1 and any(isinstance(each, int) for each in given):
        raise typer.BadParameter("a camera never ends: give it alone")
    for name in set(list_models()).intersection(sources):
        if not Path(name).exists():
            raise typer.BadParameter(f"{name} is a model: give it as --weights {name}")
    return given


def _refuse_overwriting(out: Path, given: Sequence[Source]) -> None:
    """Raise DataError where images that are read would be replaced by the drawn ones."""
    from opendetr.data.records import DataError
    from opendetr.inference.sources.reading import folders_of

    if out.exists() and any(out.samefile(folder) for each in given for folder in folders_of(each)):
        raise DataError(f"{out}: holds the images that are read, which would be overwritten; give another --out")


class _Run:
    """Predicts and writes, and counts what could be read and what could not."""

    def __init__(self, detector: Predictor, given: Sequence[Source], out: Path, *, panoptic: bool) -> None:
        from opendetr.inference.writers.tables import Rows

        self._detector = detector
        self._given = given
        self._out = out
        self._panoptic = panoptic
        self._failures = Rows()
        self._last_failure = ""
        self.num_failed = 0
        self.num_images = 0
        self.num_objects = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._failures.close()

    def predict(self, config: OutputConfig, stop: StopSignal, **options: Any) -> None:
        """Predict until the end, or until a stop is asked for. Raises DataError when nothing could be read."""
        from opendetr.data.records import DataError
        from opendetr.visualize import progress_bar

        total = self._total()
        with progress_bar("predicting") as progress, ExitStack() as stack:
            write = None
            for found in stack.enter_context(closing(self._stream(options))):
                if write is None:  # only now, so that an error before the first image leaves no folder
                    write = stack.enter_context(self._folder(config))
                write(found)
                self.num_images += 1
                self.num_objects += len(found)
                progress(self.num_images + self.num_failed, total)
                if stop.requested:
                    break
        if not self.num_images:
            several = f"none of {self.num_failed} images can be read"
            raise DataError(several if self.num_failed > 1 else self._last_failure)

    def _folder(self, config: OutputConfig) -> AbstractContextManager[Callable[[Any], None]]:
        """Writes what is found in each image."""
        from opendetr.inference.writers.folder import panoptic_folder, results_folder

        roots = [Path(source) for source in self._given if isinstance(source, str)]
        categories = self._detector.categories
        if self._panoptic:
            return panoptic_folder(self._out, categories, pictures=config.pictures, roots=roots)
        return results_folder(self._out, categories, config, roots=roots)

    def _stream(self, options: Mapping[str, Any]) -> Generator[Detections | Panoptic]:
        from opendetr.inference.sources.reading import each_image, is_one_image

        only = self._given[0] if len(self._given) == 1 else None
        if only is not None and is_one_image(only):
            yield self._detector.predict(only, **options)
        elif isinstance(only, int):
            yield from self._detector.predict(only, **options, on_unreadable=self._failed)
        else:
            pieces = each_image(self._given if only is None else only, self._failed, skip=self._out)
            distinct = pieces if only is not None else _distinct(pieces)
            yield from self._detector.predict(distinct, **options, on_unreadable=self._failed)

    def _failed(self, line: str) -> None:
        say(f"skipped: {line}")
        self._failures.add(line)
        self._last_failure = line
        self.num_failed += 1

    def _total(self) -> int | None:
        """How many images there will be, for a bar that somebody sees; None where only the end will tell."""
        from opendetr.inference.sources.reading import count_images

        return count_images(self._given, skip=self._out) if sys.stderr.isatty() else None

    def print_json(self) -> None:
        """Print the result as JSON, piece by piece as it lies on the disk."""
        from opendetr.inference.writers.folder import COCO_FILE, PANOPTIC_FILE

        sys.stdout.write(f'{{"out": {json.dumps(str(self._out))}, "failed": ')
        self._failures.copy_to(sys.stdout)
        with (self._out / (PANOPTIC_FILE if self._panoptic else COCO_FILE)).open(encoding="utf-8") as stream:
            sys.stdout.write(",\n" + stream.readline().removeprefix("{"))
            shutil.copyfileobj(stream, sys.stdout)


def _distinct(pieces: Iterable[Source]) -> Iterator[Source]:
    """Each path once, also where folders and patterns overlap."""
    seen: set[str] = set()
    for piece in pieces:
        if isinstance(piece, str | Path):
            if str(piece) in seen:
                continue
            seen.add(str(piece))
        yield piece
