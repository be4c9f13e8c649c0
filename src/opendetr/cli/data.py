"""`opendetr data ...`."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opendetr.cli.check import check
from opendetr.cli.output import Exit, JsonOption, command, print_json, say, table

if TYPE_CHECKING:
    from opendetr.data.records import DetectionData, ImageRecord

_HELP = "Datasets: make, look at, check, convert and split one."
_SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

app = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)

SourceArgument = Annotated[Path, typer.Argument(help="The dataset: COCO, Pascal VOC, YOLO, or a CSV table.")]
TargetArgument = Annotated[Path, typer.Argument(help="Where to; empty or not there.")]
LinkOption = Annotated[bool, typer.Option("--link", help="Make links to the images instead of copies.")]


class Target(StrEnum):
    """The formats that are written, as `data.convert` names them."""

    COCO = "coco"
    YOLO = "yolo"
    VOC = "voc"


@app.callback(help=_HELP)
def _data() -> None:
    pass


@command
def make(
    folder: Annotated[Path, typer.Argument(help="Where to; empty or not there, or scenes made before.")],
    train: Annotated[int, typer.Option(min=0, help="Scenes to train on.")] = 2000,
    val: Annotated[int, typer.Option(min=0, help="Scenes to score on.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 256,
    hard: Annotated[bool, typer.Option("--hard", help="Up to 40 objects, smaller ones.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a dataset of drawn scenes, in COCO format with boxes, polygons and panoptic masks.

    Examples:

        opendetr data make scenes

        opendetr data make scenes-hard --hard --train 500 --val 100 --seed 7
    """
    from opendetr.synthetic import SceneConfig, write_scenes
    from opendetr.visualize import progress_bar

    counts = {split: count for split, count in {"train": train, "val": val}.items() if count}
    config = replace(SceneConfig.hard() if hard else SceneConfig(), size=size)
    with progress_bar("drawing") as progress:
        write_scenes(folder, counts=counts, seed=seed, config=config, progress=progress)
    if as_json:
        print_json({"folder": str(folder), "images": counts, "seed": seed, "hard": hard, "size": size})
    else:
        print(f"{sum(counts.values())} scenes: {folder}")


@command
def convert(
    source: SourceArgument,
    folder: TargetArgument,
    to: Annotated[Target, typer.Option(help="The format to write.")],
    link: LinkOption = False,
    as_json: JsonOption = False,
) -> Exit:
    """Write a dataset in another format, without loss.

    What VOC and YOLO have no place for goes into opendetr.json beside them, which every command here reads; a line says
    so. What no record holds is left behind: keypoints, captions, licences, poses.

    Examples:

        opendetr data convert bccd bccd-yolo --to yolo

        opendetr data convert my-data/data.yaml my-data-coco --to coco --link
    """
    from opendetr.data.formats.recognise import Format, read_splits

    splits = read_splits(source)
    return _write(splits, folder, Format(to), source, link=link, as_json=as_json)


@command
def show(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(help="The image to write: .png, .jpg or .webp.")] = Path("sheet.png"),
    split: Annotated[
        str | None, typer.Option(help="Which split. [default: train, else the first]", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=100, help="How many images, chosen at random.")] = 16,
    seed: Annotated[int, typer.Option(help="Another one chooses others.")] = 0,
    as_json: JsonOption = False,
) -> Exit:
    """Draw a contact sheet: images of a dataset with the masks, or else the boxes, of their objects.

    Examples:

        opendetr data show my-data

        opendetr data show my-data --split val --images 36 --seed 1 --out val.png
    """
    from opendetr.data.formats.recognise import TRAIN_NAMES, recognise
    from opendetr.data.records import DataError
    from opendetr.visualize import save_image, truth_sheet

    if out.suffix.lower() not in _SHEET_SUFFIXES:
        raise typer.BadParameter(f"{out}: give a name that ends in {', '.join(_SHEET_SUFFIXES)}", param_hint="--out")
    found = recognise(source)
    usual = next((name for name in TRAIN_NAMES if name in found.splits), found.splits[0])
    chosen = split or usual
    if chosen not in found.splits:
        raise DataError(f"{source}: no split '{chosen}'; it has {', '.join(found.splits)}")
    data = found.read((chosen,))[chosen]
    say(f"{chosen}: {data.summary()}")
    records = _some(data.images, images, seed)
    failures: list[str] = []
    pictures = _readable(records, failures)
    first = next(pictures, None)
    if first is None:
        raise DataError(f"{source}: the split '{chosen}' has no image that can be shown")
    columns = math.ceil(math.sqrt(len(records)))
    sheet = truth_sheet(chain([first], pictures), data.categories, columns=columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_image(sheet, out)
    for failure in failures:
        say(f"skipped: {failure}")
    shown = len(records) - len(failures)
    if as_json:
        print_json({"out": str(out), "split": chosen, "images": shown, "failed": failures})
    else:
        print(f"{shown} images: {out}")
    return Exit.SOME_FAILED if failures else Exit.DONE


@command
def split(
    source: SourceArgument,
    folder: TargetArgument,
    fractions: Annotated[str, typer.Option(help="The new splits and their shares.")] = "train=0.8,val=0.1,test=0.1",
    seed: Annotated[int, typer.Option(help="Another one divides differently.")] = 0,
    link: LinkOption = False,
    as_json: JsonOption = False,
) -> Exit:
    """Divide a dataset anew, every class in about the same shares; the images of all its splits are taken together.

    The result is in the format of the dataset; of a table, in COCO's.

    Examples:

        opendetr data split my-data my-splits

        opendetr data split my-data my-splits --fractions train=0.9,val=0.1 --seed 3 --link
    """
    from opendetr.data.formats.recognise import Format, recognise
    from opendetr.data.formats.splits import pooled, stratified
    from opendetr.data.tools.convert import WRITTEN_FORMATS

    shares = _shares(fractions)
    found = recognise(source)
    whole = pooled(found.read(found.splits))
    parts = {name: whole.subset(images, name) for name, images in stratified(whole.images, shares, seed).items()}
    to = found.format if found.format in WRITTEN_FORMATS else Format.COCO
    return _write(parts, folder, to, source, link=link, as_json=as_json)


def _write(
    splits: Mapping[str, DetectionData], folder: Path, to: Any, source: Path, *, link: bool, as_json: bool
) -> Exit:
    """Write splits of the dataset `source`, and say what is in them and what became of it."""
    from opendetr.data.faults import Kind
    from opendetr.data.tools.convert import maps_left_behind, write_data
    from opendetr.visualize import progress_bar

    for name, data in splits.items():
        say(f"{name}: {data.summary()}")
    with progress_bar("writing images") as progress:
        notes = write_data(splits, folder, to, link=link, progress=progress)
    notes += maps_left_behind(source, splits)
    rows = [row for data in splits.values() for row in _class_counts(data)]
    if as_json:
        print_json({"folder": str(folder), "format": str(to), "classes": rows, "notes": notes})
    else:
        print(table([tuple(rows[0]), *(tuple(map(str, row.values())) for row in rows)]))
        for note in notes:
            print(note)
        print(folder)
    lost = (Kind.EMPTY_FILE, Kind.UNREADABLE_IMAGE, Kind.OVERSIZED_IMAGE)
    some_lost = any(finding.kind in lost for data in splits.values() for finding in data.findings)
    return Exit.SOME_FAILED if some_lost else Exit.DONE


def _class_counts(data: DetectionData) -> list[dict[str, Any]]:
    """Of every class: how many images of the split have it, and how many objects there are."""
    images, objects = Counter[int](), Counter[int]()
    for image in data.images:
        found = Counter(thing.category_id for thing in image.objects)
        images.update(found.keys())
        objects.update(found)
    return [
        {"split": data.split, "class": name, "images": images[id_], "objects": objects[id_]}
        for id_, name in zip(data.categories.ids, data.categories.names, strict=True)
    ]


def _some(images: Iterable[ImageRecord], number: int, seed: int) -> list[ImageRecord]:
    """So many images at random, in their order."""
    every = list(images)
    chosen = random.Random(seed).sample(range(len(every)), min(number, len(every)))
    return [every[index] for index in sorted(chosen)]


def _readable(records: Iterable[ImageRecord], failures: list[str]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Name, image, objects and masks of each record, one at a time; a line for each that cannot be read."""
    from opendetr.data.images import read_record
    from opendetr.data.masks import known_masks
    from opendetr.data.records import DataError

    for record in records:
        try:
            yield record.path.name, read_record(record), record.objects, known_masks(record)
        except DataError as error:
            failures.append(str(error))


def _shares(text: str) -> dict[str, float]:
    """ "train=0.8,val=0.2" as numbers by name."""
    parts = [part.partition("=") for part in text.split(",")]
    try:
        shares = {name.strip(): float(share) for name, _, share in parts}
    except ValueError:
        shares = {}
    if len(shares) != len(parts):
        raise typer.BadParameter(f"{text!r}: write it as train=0.8,val=0.2", param_hint="--fractions")
    return shares


for _function in (make, show, check, convert, split):
    app.command()(_function)
