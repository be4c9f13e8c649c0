"""`opendetr predict`."""

from __future__ import annotations

import glob
import json
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from opendetr.cli.output import (
    WEIGHTS_HELP,
    BatchSizeOption,
    DeviceOption,
    Exit,
    JsonOption,
    MergeOption,
    MergeRule,
    ModelOption,
    StrictNoObjectOption,
    command,
    folder_to_write,
    one_line,
    say,
    table,
    wrong_value,
)
from opendetr.cli.skipped import Skipped
from opendetr.cli.usage import existing_path, exists
from opendetr.recipe import DEFAULT_MODEL

if TYPE_CHECKING:
    from opendetr.inference import Predictor
    from opendetr.inference.sources import Source
    from opendetr.results import Answer, Detections, Panoptic
    from opendetr.training import StopSignal


_NUM_LISTED = 10  # images whose classes are printed
_NUM_CLASSES = 5  # classes that are printed for an image
_AUTO = "auto"  # as --min-score
_ADVISED_SCORE = 0.2  # minimum score to try if nothing reaches a higher one


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The options of `opendetr predict`, in the order of its help."""

    sources: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, patterns such as 'photos/*.jpg', URLs, videos, a camera's number or rtsp://."
        ),
    ]
    weights: Annotated[
        str | None,
        typer.Option(
            help=f"{WEIGHTS_HELP} [default: {DEFAULT_MODEL}, which knows drawn shapes]",
            show_default=False,
        ),
    ] = None
    model: ModelOption = None
    out: Annotated[
        Path, typer.Option(callback=folder_to_write, help="The folder for predictions.json and the images.")
    ] = Path("predictions")
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write to --out even if it has files, and replace those of equal name.")
    ] = False
    min_score: Annotated[
        list[str] | None,
        typer.Option(
            help="Minimum score of a detection; NAME=SCORE for one class; auto for the thresholds stored with the "
            "model, which maximise F1. May be repeated. [default: auto, or 0.5 if none are stored; with --panoptic "
            "0.85, or 0.4 for sigmoid scores; with --text and --classes 0.7; with --patch 0]",
            show_default=False,
        ),
    ] = None
    patch: Annotated[
        list[Path] | None,
        typer.Option(
            help="An image of what to locate, for a model of `opendetr pretrain`; may be repeated.", show_default=False
        ),
    ] = None
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="What to detect, for a model that takes text, such as 'the man with the umbrella'. May be repeated.",
            show_default=False,
        ),
    ] = None
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of --text, the names of classes, separated by commas: 'cat, dog'. May be repeated.",
            show_default=False,
        ),
    ] = None
    ask: Annotated[
        list[str] | None,
        typer.Option(
            help="A question about each image, for a model that answers questions. Only the answers are printed. May "
            "be repeated.",
            show_default=False,
        ),
    ] = None
    batch_size: BatchSizeOption = 8
    draw: Annotated[bool, typer.Option(help="Draw the detections on the images and videos.")] = True
    crops: Annotated[bool, typer.Option("--crops", help="Save every detection as an image in crops/CLASS.")] = False
    csv: Annotated[bool, typer.Option("--csv", help="Also write predictions.csv.")] = False
    yolo: Annotated[bool, typer.Option("--yolo", help="Also write YOLO labels: labels/*.txt and data.yaml.")] = False
    panoptic: Annotated[
        bool,
        typer.Option(
            "--panoptic",
            help="Write panoptic maps, with a thing or stuff for every pixel: panoptic.json and panoptic/*.png.",
        ),
    ] = False
    merge: MergeOption = MergeRule.DEFAULT
    strict_no_object: StrictNoObjectOption = False
    device: DeviceOption = "auto"
    as_json: JsonOption = False

    @property
    def prompt(self) -> dict[str, list[str]]:
        """The arguments of `Predictor.predict` that say what to detect."""
        if self.classes is not None:
            return {"classes": [name.strip() for name in ",".join(self.classes).split(",") if name.strip()]}
        return {} if self.text is None else {"text": [text.strip() for text in self.text]}

    def require_consistent(self) -> None:
        """Raise BadParameter for options that do not go together."""
        if self.panoptic and (self.crops or self.csv or self.yolo):
            raise typer.BadParameter("--crops, --csv and --yolo write detections: leave them out with --panoptic")
        if self.patch and self.panoptic:
            raise typer.BadParameter("--patch locates patches: leave out --panoptic")
        if self.merge is not MergeRule.DEFAULT and not self.panoptic:
            raise typer.BadParameter("--merge applies to panoptic maps: give --panoptic, too")
        if sum(given is not None for given in (self.text, self.classes, self.ask, self.patch)) > 1:
            raise typer.BadParameter("--text, --classes, --ask and --patch exclude each other: give one of them")
        if self.ask is not None and (self.min_score or self.panoptic or self.crops or self.csv or self.yolo):
            raise typer.BadParameter("--ask prints answers and writes no detections: leave out the other options")
        if _AUTO in (self.min_score or []) and (self.panoptic or self.patch or self.prompt):
            raise wrong_value("min_score", f"{_AUTO}: thresholds are stored for the classes of boxes: give a number")
        if self.ask is not None and len(self.ask) > 1 and any(map(_never_ends, self.sources)):
            raise typer.BadParameter("a camera or stream never ends: give one --ask")
        if (self.text or self.classes is not None) and self.panoptic:
            raise typer.BadParameter("--panoptic needs fixed classes: leave it out with --text and --classes")


@command
def predict(options: PredictOptions) -> Exit:
    """Detect objects in images and videos, draw them, and write them as COCO JSON.

    A model of `opendetr pretrain` locates the images of --patch instead of objects.

    A model with a mask head also predicts the masks of the objects, or, with --panoptic, panoptic maps.

    The outputs for images in a folder have the same relative paths in --out. Ctrl-C stops after the current image, and
    all files are complete.

    Examples:

        opendetr predict photo.jpg --weights runs/deformable-detr-tiny

        opendetr predict photos more/*.png --weights detr-r50 --out found --min-score 0.7

        opendetr predict street.mp4 --weights detr-r50 --min-score 0.6 --min-score person=0.4 --csv

        opendetr predict 0 --weights detr-r50

        opendetr predict photos --weights detr-r50-panoptic --panoptic

        opendetr predict photos --weights runs/pretrained --patch crop.jpg

        opendetr predict photo.jpg --weights mdetr-r101 --text "the man with the umbrella"

        opendetr predict photo.jpg --weights mdetr-r101 --classes "cat, dog, traffic light"

        opendetr predict photo.jpg --weights mdetr-r101-gqa --ask "how many dogs are there?"
    """
    options.require_consistent()
    min_score, class_min_scores = _min_scores(options.min_score or [])
    if min_score is not None and _AUTO in (options.min_score or []):
        raise wrong_value("min_score", f"{_AUTO} and {min_score:g} exclude each other: give one of them")
    if class_min_scores and (options.prompt or options.patch):
        raise wrong_value("min_score", "scores of single classes do not apply to a text, classes or patches: give one")
    sources = named_sources(options.sources)
    if options.ask is None:
        if options.draw or options.crops:
            refuse_overwriting_inputs(options.out, sources)
        if not options.overwrite:
            require_empty(options.out, "predictions.json", "panoptic.json")

    from opendetr.inference import DETECTION_SCORE, load
    from opendetr.training import StopSignal

    detector = load(
        options.weights or DEFAULT_MODEL,
        model=options.model,
        device=options.device,
        strict_no_object=options.strict_no_object,
    )
    if options.weights is None:
        _say_what_it_knows(detector)
    if _AUTO in (options.min_score or []) and detector.thresholds is None:
        say(f"score thresholds: none are stored with the model; {DETECTION_SCORE} for every class")
    if options.ask is not None:
        return _answer(detector, sources, options)
    from opendetr.inference.sources import is_endless

    with StopSignal() as stop, _Run(detector, sources, options) as run:
        run.predict(stop, options.prompt | {"min_score": min_score, "class_min_scores": class_min_scores})
        if options.as_json:
            run.print_json()
        else:
            run.print_summary()
        if stop.requested and not is_endless(sources[0]):
            say(f"error: interrupted after {run.num_images} images; their results are in {options.out}")
            return Exit.FAILED
        return Exit.SOME_FAILED if run.skipped.count else Exit.DONE


def _answer(detector: Predictor, sources: list[Source], options: PredictOptions) -> Exit:
    """Print the answer to each question about each image."""
    from opendetr.data import DataError

    assert options.ask is not None
    failed: dict[str, None] = {}  # each image once, in order
    rows = []
    for question in options.ask:
        for answer in _answers(detector, sources, question, options.batch_size, failed.setdefault):
            rows.append(
                {"file_name": answer.source, "frame": answer.frame, "question": question, "answer": answer.text,
                 "score": answer.score}
            )  # fmt: skip
            if not options.as_json:
                asked = f"{one_line(question)} " if len(options.ask) > 1 else ""
                print(f"{one_line(answer.source or 'image')}: {asked}{answer.text} ({answer.score:.2f})")
    for line in failed:
        say(f"skipped: {line}")
    if not rows:
        raise DataError(f"none of {len(failed)} images can be read")
    if options.as_json:
        print(json.dumps({"answers": rows, "failed": list(failed)}))
    return Exit.SOME_FAILED if failed else Exit.DONE


def _answers(
    detector: Predictor, sources: list[Source], question: str, batch_size: int, on_unreadable: Callable[[str], None]
) -> Iterator[Answer]:
    """The answers to one question about all images."""
    from opendetr.inference.sources import is_one_image

    only = sources[0] if len(sources) == 1 else None
    if isinstance(only, str) and is_one_image(only):
        return iter([detector.ask(only, question)])
    several: Any = sources if only is None else only
    answers: Iterator[Answer] = detector.ask(several, question, batch_size=batch_size, on_unreadable=on_unreadable)
    return answers


def _min_scores(options: Iterable[str]) -> tuple[float | None, dict[str, float]]:
    """The minimum score, None if not given or "auto", and those of single classes. Raises BadParameter."""
    min_score: float | None = None
    by_class: dict[str, float] = {}
    for option in options:
        if option == _AUTO:
            continue
        name, named, text = option.rpartition("=")
        try:
            score = float(text)
        except ValueError:
            score = -1.0
        if not 0 <= score <= 1 or (named and not name):
            raise wrong_value("min_score", f"{option!r}: give a number in 0..1, NAME=NUMBER, or auto")
        if name in by_class or (not named and min_score is not None):
            raise wrong_value("min_score", f"{option!r}: there is another score for {name or 'all classes'}; give one")
        if named:
            by_class[name] = score
        else:
            min_score = score
    return min_score, by_class


def named_sources(names: Sequence[str]) -> list[Source]:
    """The sources, with a number for a camera. Raises BadParameter for a camera among others, or a model.

    Raises DataError if the only source is a file that does not exist.
    """
    from opendetr.inference.sources import is_endless
    from opendetr.presets import list_models

    sources: list[Source] = [int(name) if _is_camera(name) else name for name in names]
    if len(sources) > 1 and any(map(is_endless, sources)):
        raise typer.BadParameter("a camera or stream never ends: give it alone")
    known = existing_path(names)
    if known is not None and not all(map(exists, known.split(" "))):
        raise typer.BadParameter(f"did you mean '{known}'? Quote a path that contains spaces")
    for name in set(list_models()).intersection(names):
        if not Path(name).exists():
            raise typer.BadParameter(f"{name} is a model: give it as --weights {name}")
    if len(sources) == 1 and isinstance(sources[0], str) and not is_endless(sources[0]):
        _require_existing(sources[0])
    return sources


def _is_camera(name: str) -> bool:
    """Whether a source is the number of a camera."""
    return name.isdecimal() and not Path(name).exists()


def _never_ends(name: str) -> bool:
    """Whether a source is a camera or a stream."""
    from opendetr.inference.sources import is_endless

    return _is_camera(name) or is_endless(name)


def _say_what_it_knows(detector: Predictor) -> None:
    """Say that the detector of the package, which the user did not choose, knows no photographs."""
    from opendetr.synthetic import CATEGORIES

    if {category["name"] for category in CATEGORIES} >= set(detector.names):
        say(
            f"note: without --weights, only drawn shapes are known ({', '.join(detector.names[:3])}, ...); for "
            "photographs and the classes of COCO, give --weights detr-r50"
        )


def require_empty(out: Path, *results: str) -> None:
    """Raise DataError if the folder has files, which could be overwritten. Hidden files are ignored.

    Args:
        out: the output folder.
        results: names of files by which the results of another run are recognised.
    """
    from opendetr.data import DataError

    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        has_results = any((out / name).exists() for name in results)
        what = "has the results of another run" if has_results else "is not empty"
        raise DataError(f"{out}: {what}; choose another --out, or replace files of equal name with --overwrite")


def _require_existing(name: str) -> None:
    """Raise DataError for the name of a file that does not exist, before the detector is loaded."""
    from opendetr.data import DataError
    from opendetr.files import near_path
    from opendetr.network import is_url

    with suppress(OSError):  # a name that no file can have; reading it says so
        if not (is_url(name) or glob.has_magic(name) or Path(name).exists()):
            raise DataError(f"{name}: no such file{near_path(Path(name))}")


def refuse_overwriting_inputs(out: Path, sources: Sequence[Source]) -> None:
    """Raise DataError if drawings would overwrite the images that are read."""
    from opendetr.data import DataError
    from opendetr.inference.sources import folders_of

    if out.exists() and any(out.samefile(folder) for source in sources for folder in folders_of(source)):
        raise DataError(f"{out}: contains the input images, which would be overwritten; choose another --out")


class _Run:
    """Predicts and writes the results; counts the images and those that could not be read."""

    def __init__(self, detector: Predictor, sources: Sequence[Source], options: PredictOptions) -> None:
        self._detector = detector
        self._sources = sources
        self._options = options
        self._out = options.out
        self.skipped = Skipped("images")
        self.num_images = 0
        self._counts = _Counts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.skipped.close()

    def predict(self, stop: StopSignal, given: Mapping[str, Any]) -> None:
        """Predict with arguments of `Predictor.predict` until the end, or until `stop` is requested.

        Raises DataError when no image could be read.
        """
        from opendetr.visualize import progress_bar

        total = self._total()
        with progress_bar("predicting") as progress, ExitStack() as stack:
            write = None
            for result in stack.enter_context(closing(self._stream(given))):
                if write is None:  # only now, so that an error before the first image leaves no folder
                    write = stack.enter_context(self._folder())
                write(result)
                self.num_images += 1
                self.skipped.say()
                self._counts.add(result)
                progress(self.num_images + self.skipped.count, total)
                if stop.requested:
                    break
        if not self.num_images:
            raise self.skipped.error()

    def _folder(self) -> AbstractContextManager[Callable[[Any], None]]:
        """Open the output folder. Yields a function that writes the result of an image."""
        from opendetr.categories import Categories, located_categories
        from opendetr.inference.writers import OutputConfig, panoptic_folder, results_folder

        roots = [Path(source) for source in self._sources if isinstance(source, str)]
        options = self._options
        names = options.prompt.get("text") or options.prompt.get("classes")
        categories = self._detector.categories if names is None else Categories.from_names(list(dict.fromkeys(names)))
        if options.patch:
            categories = located_categories(len(options.patch))
        if options.panoptic:
            return panoptic_folder(self._out, categories, draw=options.draw, roots=roots)
        config = OutputConfig(draw=options.draw, crops=options.crops, csv=options.csv, yolo=options.yolo)
        return results_folder(self._out, categories, config, roots=roots)

    def _stream(self, given: Mapping[str, Any]) -> Generator[Detections | Panoptic]:
        """Yield the result of each image."""
        from opendetr.inference.sources import each_image, is_endless, is_one_image

        options = {**given, "batch_size": self._options.batch_size, "patches": self._options.patch or None}
        if self._options.panoptic:
            options |= {"panoptic": True, "merge": self._options.merge.value}
        only = self._sources[0] if len(self._sources) == 1 else None
        if isinstance(only, str) and is_one_image(only):
            yield self._detector.predict(only, **options)
        elif only is not None and is_endless(only):
            endless: Any = only
            yield from self._detector.predict(endless, **options, on_unreadable=self.skipped.add)
        else:
            images = each_image(self._sources if only is None else only, self.skipped.add, skip=self._out)
            distinct = images if only is not None else _distinct(images)
            yield from self._detector.predict(distinct, **options, on_unreadable=self.skipped.add)

    def _total(self) -> int | None:
        """The number of images for a progress bar that is shown; None if it is not known in advance."""
        from opendetr.inference.sources import count_images

        return count_images(self._sources, skip=self._out) if sys.stderr.isatty() else None

    def print_summary(self) -> None:
        """Print the classes in each of the first images, then in all of them, and the output folder."""
        if self.num_images > 1:
            print(table(self._counts.rows()))
        objects = _plural(self._counts.total.total(), "segment" if self._options.panoptic else "object")
        classes = f" ({_classes(self._counts.total)})" if self._counts.total else ""
        print(f"{objects} in {_plural(self.num_images, 'image')}{classes}: {self._out}")
        if not self._counts.total:
            say(self._advice())

    def _advice(self) -> str:
        """What to do if nothing was found."""
        lowest, _ = _min_scores(self._options.min_score or [])
        stored = self._detector.thresholds
        if lowest is None and stored is not None:
            lowest = min(stored.default, *stored.by_class.values())
        if lowest is None or lowest > _ADVISED_SCORE:
            return f"nothing reaches the minimum score; try a lower one, such as --min-score {_ADVISED_SCORE}"
        return (
            f"nothing reaches the minimum score, {lowest:.2g}; `opendetr eval` shows on annotated images what the "
            "model detects"
        )

    def print_json(self) -> None:
        """Print the result as JSON."""
        from opendetr.inference.writers import COCO_FILE, PANOPTIC_FILE

        file = PANOPTIC_FILE if self._options.panoptic else COCO_FILE
        self.skipped.print_json({"out": str(self._out)}, self._out / file)


class _Counts:
    """Counts the objects of each class: in all images, and in each of the first ones. A video counts as one image."""

    def __init__(self) -> None:
        self.total = Counter[str]()
        self._first: dict[str, Counter[str]] = {}
        self._num_frames = Counter[str]()
        self._num_others = 0

    def add(self, result: Detections | Panoptic) -> None:
        """Add the objects of the next image."""
        self.total.update(result.names)
        source = result.source or "image"
        if source not in self._first and len(self._first) >= _NUM_LISTED:
            self._num_others += 1
            return
        self._first.setdefault(source, Counter()).update(result.names)
        self._num_frames[source] += result.frame is not None

    def rows(self) -> list[tuple[str, str]]:
        """The name and the classes of each of the first images; the last row tells how many others there are."""
        rows = []
        for source, counts in self._first.items():
            frames = f" ({_plural(self._num_frames[source], 'frame')})" if self._num_frames[source] else ""
            rows.append((one_line(source) + frames, _classes(counts) or "nothing"))
        return [*rows, (f"... and {_plural(self._num_others, 'more image')}", "")] if self._num_others else rows


def _classes(counts: Counter[str]) -> str:
    """The numbers of objects of the most frequent classes, such as "3 person, 1 dog"."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{count} {one_line(name)}" for name, count in ranked[:_NUM_CLASSES])
    num_others = sum(count for _, count in ranked[_NUM_CLASSES:])
    return f"{text}, {num_others} of other classes" if num_others else text


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _distinct(images: Iterable[Source]) -> Iterator[Source]:
    """Each path once, even if folders and patterns overlap."""
    seen: set[str] = set()
    for image in images:
        if isinstance(image, str | Path):
            if str(image) in seen:
                continue
            seen.add(str(image))
        yield image
