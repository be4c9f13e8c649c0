"""`opendetr data ...`."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opendetr.cli.check import check, require_image_name
from opendetr.cli.output import Exit, JsonOption, command, file_to_write, print_json, say, table, wrong_value
from opendetr.cli.usage import Command, Group

if TYPE_CHECKING:
    from PIL.Image import Image

    from opendetr.data import DetectionData, ImageRecord

_SIDE = 480  # longer side of an image on a contact sheet, in pixels
_FRAME_STEP = 3  # from one shown frame of a video to the next

_HELP = "Make, show, check, convert and split datasets."

app = typer.Typer(cls=Group, help=_HELP, no_args_is_help=True, rich_markup_mode=None)

SourceArgument = Annotated[
    Path,
    typer.Argument(help="The dataset: a folder of images and annotations in any format, or its annotation file."),
]
TargetArgument = Annotated[Path, typer.Argument(help="The folder to write, empty or new.")]
LinkOption = Annotated[bool, typer.Option("--link", help="Link to the images instead of copying them.")]


class Target(StrEnum):
    """The formats that can be written; the values are those of `Format`."""

    COCO = "coco"
    YOLO = "yolo"
    VOC = "voc"


@app.callback(help=_HELP)
def _data() -> None:
    pass


@command
def make(
    folder: Annotated[Path, typer.Argument(help="The folder to write: empty, new, or made by this command before.")],
    train: Annotated[int, typer.Option(min=0, help="Number of training scenes.")] = 2000,
    val: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of validation scenes or videos. [default: 300 scenes, a fifth of the videos]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 256,
    hard: Annotated[
        bool,
        typer.Option("--hard", help="More and smaller objects, up to 40; in videos, sudden turns and look-alikes."),
    ] = False,
    captions: Annotated[
        bool, typer.Option("--captions", help="Describe the scenes: expressions, captions, questions with answers.")
    ] = False,
    videos: Annotated[
        int | None, typer.Option(min=1, help="Make this number of training videos instead.", show_default=False)
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Number of frames of a video.")] = 40,
    as_json: JsonOption = False,
) -> None:
    """Make a dataset of drawn scenes, in COCO format with boxes, polygons and panoptic masks.

    With --captions, the scenes have a text per entry instead, in MDETR's format: an expression that refers to one
    object, a caption that names several objects, and a question with its answer.

    With --videos, objects move, hide each other, leave and return. The videos are in MOTChallenge format: their frames,
    and for every object of a frame its id, box, class, and how much of it is visible.

    Examples:

        opendetr data make scenes

        opendetr data make scenes-hard --hard --train 500 --val 100 --seed 7

        opendetr data make described --captions

        opendetr data make videos --videos 200 --frames 40
    """
    from opendetr.synthetic import (
        DescribedConfig,
        SceneConfig,
        VideoConfig,
        write_captioned_scenes,
        write_scenes,
        write_videos,
    )
    from opendetr.visualize import progress_bar

    if captions and videos:
        raise typer.BadParameter("a dataset has captions or videos, not both; choose one", param_hint="--videos")
    num_train = train if videos is None else videos
    num_val = val if val is not None else 300 if videos is None else math.ceil(videos / 5)
    counts = {split: count for split, count in {"train": num_train, "val": num_val}.items() if count}
    if not counts:
        raise typer.BadParameter("--train and --val are both 0: there is nothing to draw")
    if hard and captions:
        raise typer.BadParameter(
            "--hard scenes have too many small objects to describe; choose one", param_hint="--captions"
        )
    with progress_bar("drawing") as progress:
        if videos:
            moving = VideoConfig(frames=frames, size=size, hard=hard)
            write_videos(folder, counts=counts, seed=seed, config=moving, progress=progress)
        elif captions:
            described = DescribedConfig(size=size)
            write_captioned_scenes(folder, counts=counts, seed=seed, config=described, progress=progress)
        else:
            config = replace(SceneConfig.hard() if hard else SceneConfig(), size=size)
            write_scenes(folder, counts=counts, seed=seed, config=config, progress=progress)
    kind = "videos" if videos else "scenes"
    if as_json:
        made = {"videos": counts, "frames": frames} if videos else {"images": counts, "captions": captions}
        print_json({"folder": str(folder), **made, "seed": seed, "hard": hard, "size": size})
    else:
        print(f"{sum(counts.values()):,} {kind}: {folder}")


@command
def convert(
    source: SourceArgument,
    folder: TargetArgument,
    to: Annotated[Target, typer.Option(help="The format to write.")],
    link: LinkOption = False,
    as_json: JsonOption = False,
) -> Exit:
    """Write a dataset in another format.

    Everything that OpenDETR reads is kept. Fields that VOC and YOLO cannot hold are written to opendetr.json next to
    the annotations, and a note is printed. Every command reads this file. Captions are kept in COCO only. OpenDETR
    does not read keypoints, licences and poses, so they are not converted.

    Examples:

        opendetr data convert bccd bccd-yolo --to yolo

        opendetr data convert my-data/data.yaml my-data-coco --to coco --link
    """
    from opendetr.data.formats import Format, read_splits

    splits = read_splits(source)
    return _write(splits, folder, Format(to), source, link=link, as_json=as_json)


@command
def show(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(callback=file_to_write, help="The image to write: .png, .jpg or .webp.")] = Path(
        "sheet.png"
    ),
    split: Annotated[
        str | None, typer.Option(help="The split to show. [default: train, else the first]", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=100, help="Number of images, chosen at random.")] = 16,
    seed: Annotated[int, typer.Option(help="Another seed chooses other images.")] = 0,
    as_json: JsonOption = False,
) -> Exit:
    """Draw a contact sheet of a dataset: images with the masks of their objects, or else the boxes, and captions.

    In a dataset of videos, the images are frames of a few videos, some frames apart. Each track has its own colour, and
    a trail since the first frame of the video that is shown.

    Examples:

        opendetr data show my-data

        opendetr data show my-videos --images 9

        opendetr data show my-data --split val --images 36 --seed 1 --out val.png
    """
    from opendetr.data import DataError, count_noun, has_tracks, unknown_split
    from opendetr.data.formats import TRAIN_NAMES, recognise
    from opendetr.visualize import contact_sheet, save_image

    require_image_name(out, "--out")
    dataset = recognise(source)
    chosen = split or next((name for name in TRAIN_NAMES if name in dataset.splits), dataset.splits[0])
    if chosen not in dataset.splits:
        raise unknown_split(source, chosen, dataset.splits)
    data = dataset.read((chosen,))[chosen]
    say(f"{chosen}: {data.summary()}")
    failures: list[str] = []
    columns = math.ceil(math.sqrt(min(images, len(data))))
    drawn = (_drawn_tracks if has_tracks(data) else _drawn_truth)(data, images, columns, seed, failures)
    titles, drawings = zip(*drawn, strict=True) if drawn else ((), ())
    if not drawn:
        raise DataError(f"{source}: the split '{chosen}' has no image that can be shown")
    sheet = contact_sheet(drawings, columns, titles)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_image(sheet, out)
    for failure in failures:
        say(f"skipped: {failure}")
    shown = len(drawn)
    if as_json:
        print_json({"out": str(out), "split": chosen, "images": shown, "failed": failures})
    else:
        print(f"{count_noun(shown, 'image')}: {out}")
    return Exit.SOME_FAILED if failures else Exit.DONE


@command
def split(
    source: SourceArgument,
    folder: TargetArgument,
    fractions: Annotated[str, typer.Option(help="The new splits and their fractions.")] = "train=0.8,val=0.1,test=0.1",
    seed: Annotated[int, typer.Option(help="Another seed splits differently.")] = 0,
    link: LinkOption = False,
    as_json: JsonOption = False,
) -> Exit:
    """Split a dataset anew, with about the same fractions of every class.

    The images of all its splits are pooled first. The result has the format of the dataset; a CSV table and
    MOTChallenge videos become COCO. The frames of a video stay together.

    Examples:

        opendetr data split my-data my-splits

        opendetr data split my-data my-splits --fractions train=0.9,val=0.1 --seed 3 --link
    """
    from opendetr.data.formats import Format, pooled, recognise, stratified
    from opendetr.data.tools import WRITTEN_FORMATS

    shares = _shares(fractions)
    dataset = recognise(source)
    pool = pooled(dataset.read(dataset.splits))
    parts = {name: pool.subset(images, name) for name, images in stratified(pool.images, shares, seed).items()}
    to = dataset.format if dataset.format in WRITTEN_FORMATS else Format.COCO
    return _write(parts, folder, to, source, link=link, as_json=as_json)


def _write(
    splits: Mapping[str, DetectionData], folder: Path, to: Any, source: Path, *, link: bool, as_json: bool
) -> Exit:
    """Write splits of the dataset `source`. Prints their classes, and notes on what could not be kept as it was."""
    from opendetr.data import FaultKind
    from opendetr.data.tools import notes_on_source, write_data
    from opendetr.visualize import progress_bar

    for name, data in splits.items():
        say(f"{name}: {data.summary()}")
    with progress_bar("writing images") as progress:
        notes = write_data(splits, folder, to, link=link, progress=progress)
    notes += notes_on_source(source, splits)
    rows = [row for data in splits.values() for row in _class_counts(data)]
    if as_json:
        print_json({"folder": str(folder), "format": str(to), "classes": rows, "notes": notes})
    else:
        print(table([tuple(rows[0]), *(tuple(map(str, row.values())) for row in rows)]))
        for note in notes:
            print(note)
        print(folder)
    losses = (FaultKind.EMPTY_FILE, FaultKind.UNREADABLE_IMAGE, FaultKind.OVERSIZED_IMAGE)
    some_lost = any(entry.kind in losses for data in splits.values() for entry in data.fault_counts)
    return Exit.SOME_FAILED if some_lost else Exit.DONE


def _class_counts(data: DetectionData) -> list[dict[str, Any]]:
    """The number of images and of objects of every class in the split."""
    images, objects = Counter[int](), Counter[int]()
    for image in data.images:
        counts = Counter(labelled.category_id for labelled in image.objects)
        images.update(counts.keys())
        objects.update(counts)
    return [
        {"split": data.split, "class": name, "images": images[id_], "objects": objects[id_]}
        for id_, name in zip(data.categories.ids, data.categories.names, strict=True)
    ]


def _sampled(images: Iterable[ImageRecord], number: int, seed: int) -> list[ImageRecord]:
    """`number` images chosen at random, in their original order."""
    candidates = list(images)
    chosen = random.Random(seed).sample(range(len(candidates)), min(number, len(candidates)))
    return [candidates[index] for index in sorted(chosen)]


def _drawn_truth(
    data: DetectionData, number: int, columns: int, seed: int, failures: list[str]
) -> list[tuple[str, Image]]:
    """Title and drawing of some images. Errors of unreadable ones are added to `failures`.

    The title is the caption, for a question with its answer, or else the name of the file.
    """
    from opendetr.data import DataError, known_masks, read_record, text_of
    from opendetr.visualize import draw_truth

    drawn = []
    for record in _sampled(data.images, number, seed):
        try:
            title = text_of(record) or record.path.name
            image, masks = read_record(record), known_masks(record)
            scale = _SIDE / max(image.shape[:2])
            drawn.append((title, draw_truth(image, record.objects, data.categories, masks=masks, scale=scale)))
        except DataError as error:
            failures.append(str(error))
    return drawn


def _drawn_tracks(
    data: DetectionData, number: int, columns: int, seed: int, failures: list[str]
) -> list[tuple[str, Image]]:
    """Title and drawing of some frames of some videos. Errors are added to `failures`.

    A video fills one row of `columns` frames, or more if there are fewer videos than rows.
    """
    import numpy as np

    from opendetr.data import TRACK, DataError, Videos, read_record
    from opendetr.visualize import draw_tracks

    drawn: list[tuple[str, Image]] = []
    rng, videos = random.Random(seed), Videos(data)
    num_rows = math.ceil(number / columns)
    chosen = sorted(rng.sample(range(len(videos)), min(len(videos), num_rows)))
    length = columns * math.ceil(num_rows / len(chosen))
    for video in chosen:
        frames = videos.frames[video]
        step = max(1, min(_FRAME_STEP, (len(frames) - 1) // max(length - 1, 1)))
        start = rng.randint(0, max(0, len(frames) - 1 - step * (length - 1)))
        trails: dict[int, list[tuple[float, float]]] = {}
        for position, index in enumerate(frames[start : start + step * (length - 1) + 1]):
            record = data.images[index]
            ids = [int(obj.extras[TRACK]) for obj in record.objects]
            boxes = np.array([obj.box for obj in record.objects], np.float64).reshape(-1, 4)
            for track, (x, y, width, height) in zip(ids, boxes.tolist(), strict=True):
                trails.setdefault(track, []).append((x + width / 2, y + height / 2))
            if position % step == 0 and len(drawn) < number:
                boxes[:, 2:] += boxes[:, :2]
                names = [data.categories.names[data.categories.label_of_id(obj.category_id)] for obj in record.objects]
                try:
                    image = read_record(record)
                except DataError as error:
                    failures.append(str(error))
                    continue
                seen = {track: trails[track] for track in ids}
                scale = _SIDE / max(image.shape[:2])
                title = f"{videos.names[video]}, frame {record.extras['frame_id']}"
                drawn.append((title, draw_tracks(image, boxes, ids, names, seen, scale=scale)))
    return drawn


def _shares(text: str) -> dict[str, float]:
    """Parse fractions such as "train=0.8,val=0.2". Raises BadParameter."""
    parts = [part.partition("=") for part in text.split(",")]
    try:
        shares = {name.strip(): float(share) for name, _, share in parts}
    except ValueError:
        shares = {}
    if len(shares) != len(parts):
        raise wrong_value("fractions", f"{text!r}: write it as train=0.8,val=0.2")
    return shares


for _function in (make, show, check, convert, split):
    app.command(cls=Command)(_function)
