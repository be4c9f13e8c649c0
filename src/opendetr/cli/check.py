"""`opendetr data check`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from opendetr.cli.output import Exit, JsonOption, command, print_json, say, table
from opendetr.config import SettingError
from opendetr.recipe import DEFAULT_MODEL

if TYPE_CHECKING:
    from opendetr.data import DataFault, FaultKind
    from opendetr.data.tools import DataReport, Demands

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SHOWN_PLACES = 3
_SHOWN_CLASSES = 20
_IN_HEADING = ("training stops", "skipped")
_HEADINGS = {
    "stops": "Training stops at",
    "misreads": "Training stops, unless --allow names the fault, because it probably misreads",
    "skips": "Training skips",
    "adjusts": "Training adjusts",
    "keeps": "Training uses unchanged",
}


@command
def check(
    data: Annotated[Path, typer.Argument(help="The dataset folder.")],
    model: Annotated[str, typer.Option(help="The model to train.")] = DEFAULT_MODEL,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Short side in pixels. [default: the model's]", show_default=False)
    ] = None,
    images: Annotated[bool, typer.Option(help="Decode every image; otherwise check only the annotations.")] = True,
    fix: Annotated[Path | None, typer.Option(help="Write a fixed copy to this new folder.", show_default=False)] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw classes, box sizes and objects per image: .png, .jpg or .webp.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> Exit:
    """Check a dataset for faults: where each fault is, and what training does with it.

    The exit code is 0 if training uses everything, 3 if training, or training with masks, skips something, and 1 if
    training cannot start, or only with --allow. With --fix, the exit code is that of the copy.

    Examples:

        opendetr data check my-data

        opendetr data check my-data --model detr-r50 --no-images --json

        opendetr data check my-data --fix my-clean-data

        opendetr data check my-data --plot my-data.png

        opendetr data check my-data --model detr-tiny-panoptic
    """
    from opendetr.data import require_folder, require_new
    from opendetr.data.tools import check_data
    from opendetr.visualize import progress_bar

    if not data.exists():
        require_folder(data)
    if fix is not None:
        if not images:
            raise typer.BadParameter("--fix reads the images: leave out --no-images")
        require_new(fix)
    if plot is not None:
        require_image_name(plot, "--plot")
    with progress_bar("reading images") as progress:
        report = check_data(data, _demands(model, image_size), read_images=images, progress=progress)
    if fix is not None:
        _write_copy(report, fix)
    if plot is not None:
        _write_plot(report, plot)
    if as_json:
        print_json(_record(report))
    else:
        _show(_text(report), sys.stdout)
    return _verdict(report, fix)


def _demands(model: str, image_size: int | None) -> Demands:
    from opendetr.data.tools import Demands
    from opendetr.presets import get_preset

    preset = get_preset(model)
    config = preset.data if image_size is None else preset.data.resized(image_size)
    try:
        config.require_trainable_size()
    except SettingError as error:
        raise error.naming({"data.image_size": "image_size"}) from None
    return Demands.of(config, preset.model.num_queries)


def _write_copy(report: DataReport, folder: Path) -> None:
    from opendetr.data import Effect, count_noun
    from opendetr.data.tools import notes_on_source, write_fixed
    from opendetr.visualize import progress_bar

    with progress_bar("writing") as progress:
        splits = write_fixed(report, folder, progress)
    images = {image.path for data in splits.values() for image in data.images}
    removed = [
        kind.describe(len(faults))
        for kind, faults in report.faults.items()
        if kind.fixable and kind.effect in (Effect.STOPS, Effect.SKIPS)
    ]
    if removed:
        say(f"left out: {', '.join(removed)}")
    for note in notes_on_source(report.folder, splits):
        say(note)
    say(f"{count_noun(len(images), 'image')} in {count_noun(len(splits), 'split')}: {folder}")


def _write_plot(report: DataReport, path: Path) -> None:
    from opendetr.data import DataStatistics
    from opendetr.visualize import draw_statistics, save_image

    if not report.splits:
        say(f"{path}: not written, because no split can be read")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(draw_statistics({name: DataStatistics.of(data) for name, data in report.splits.items()}), path)
    say(f"classes, box sizes and objects per image: {path}")


def require_image_name(path: Path, option: str) -> None:
    """Raise BadParameter if drawings cannot be written to a file of this name."""
    if path.suffix.lower() not in _IMAGE_SUFFIXES:
        raise typer.BadParameter(f"{path}: give a name that ends in {', '.join(_IMAGE_SUFFIXES)}", param_hint=option)


def _verdict(report: DataReport, fix: Path | None) -> Exit:
    from opendetr.data import Effect

    kinds = [kind for kind in report.faults if fix is None or not kind.fixable]
    stopping = [kind for kind in kinds if kind.effect in (Effect.STOPS, Effect.MISREADS)]
    if stopping:
        faults = ", ".join(kind.describe(len(report.faults[kind])) for kind in stopping)
        _show(f"error: {report.folder}: training cannot start: {faults}", sys.stderr)
        return Exit.FAILED
    return Exit.SOME_FAILED if any(kind.effect is Effect.SKIPS for kind in kinds) else Exit.DONE


def _record(report: DataReport) -> dict[str, Any]:
    """The report as JSON, with the place of every fault."""
    entries = [
        {
            "kind": str(kind),
            "count": len(faults),
            "what": kind.describe(len(faults)),
            "effect": str(kind.effect),
            "consequence": kind.consequence,
            "fixable": kind.fixable,
            "places": [{"file": fault.file, "at": fault.at, "detail": fault.detail} for fault in faults],
        }
        for kind, faults in report.faults.items()
    ]
    splits = {
        split: {
            "images": counts.images,
            "objects": counts.objects,
            "classes": counts.classes,
            "sizes": dict(zip(_size_names(), counts.sizes, strict=True)),
        }
        for split, counts in report.counts.items()
    }
    return {"folder": str(report.folder), "splits": splits, "faults": entries}


def _text(report: DataReport) -> str:
    from opendetr.data import Effect

    blocks = [_counts_table(report)] if report.counts else []
    for effect in Effect:
        entries = [_entry(report, kind, faults) for kind, faults in report.with_effect(effect).items()]
        if entries:
            blocks.append("\n".join((_HEADINGS[effect], *entries)))
    used = ("training uses every image and object",) if not report.faults else ()
    return "\n\n".join((*blocks, *used))


def _entry(report: DataReport, kind: FaultKind, faults: tuple[DataFault, ...]) -> str:
    """The faults of a kind: how many, what training does with them, and the first places."""
    from opendetr.data import Effect

    is_in_heading = kind.consequence in _IN_HEADING
    is_misread = kind.effect is Effect.MISREADS
    consequence = (
        f"{kind.fix or 'give the model more queries'}, or train with --allow {kind}" if is_misread else kind.consequence
    )
    lines = [f"- {kind.describe(len(faults))}{'' if is_in_heading else f', {consequence}'}"]
    for fault in faults[:_SHOWN_PLACES]:
        place = fault.place.removeprefix(f"{report.folder}/")
        lines.append(f"    {place}{': ' if place and fault.detail else ''}{fault.detail}")
    if len(faults) > _SHOWN_PLACES:
        lines.append(f"    and {len(faults) - _SHOWN_PLACES:,} more (--json lists all)")
    return "\n".join(lines)


def _counts_table(report: DataReport) -> str:
    """A table of images, objects, classes and object sizes, with a column per split."""
    counts = list(report.counts.values())
    rows = [["", *report.counts]]
    rows.append(["images", *(f"{split.images:,}" for split in counts)])
    rows.append(["objects", *(f"{split.objects:,}" for split in counts)])
    first = counts[0].classes
    for name in sorted(first, key=lambda name: -sum(split.classes[name] for split in counts))[:_SHOWN_CLASSES]:
        rows.append([f"  {name}", *(_count_and_share(split.classes, name) for split in counts)])
    if len(first) > _SHOWN_CLASSES:
        rows.append([f"  and {len(first) - _SHOWN_CLASSES} more classes", *("" for _ in counts)])
    rows.append(["object sizes, resized", *("" for _ in counts)])
    for number, name in enumerate(_size_names()):
        rows.append([f"  {name}", *(f"{split.sizes[number]:,}" for split in counts)])
    return table(rows)


def _count_and_share(classes: Mapping[str, int], name: str) -> str:
    total = sum(classes.values())
    return f"{classes[name]:,} ({classes[name] / total:.0%})" if total else "0"


def _size_names() -> list[str]:
    from opendetr.data.tools import SIZE_LIMITS

    middle = [f"{low} to {high} px" for low, high in itertools.pairwise(SIZE_LIMITS)]
    return [f"below {SIZE_LIMITS[0]} px", *middle, f"{SIZE_LIMITS[-1]} px and more"]


def _show(text: str, stream: TextIO) -> None:
    """Print text that may quote names from files. Characters that cannot be printed are shown as escape codes."""
    shown = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
    encoding = stream.encoding or "utf-8"
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=stream)
