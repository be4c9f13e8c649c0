"""`opendetr data check`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from opendetr.cli.output import DEFAULT_MODEL, Exit, JsonOption, command, print_json, say, table

if TYPE_CHECKING:
    from opendetr.data.faults import Kind
    from opendetr.data.records import DataFault
    from opendetr.data.tools.check import DataReport, Demands

_SHOWN_PLACES = 3
_SHOWN_CLASSES = 20
_TOLD_BY_HEADING = ("training stops", "skipped")
_HEADINGS = {
    "stops": "Training stops at",
    "skips": "Training skips",
    "adjusts": "Training uses in another way than it stands there",
    "keeps": "Training uses as it stands there",
}


@command
def check(
    data: Annotated[Path, typer.Argument(help="The dataset folder.")],
    model: Annotated[str, typer.Option(help="The model that is to be trained.")] = DEFAULT_MODEL,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Short side in pixels. [default: the model's]", show_default=False)
    ] = None,
    images: Annotated[bool, typer.Option(help="Decode every image; else only look at the annotations.")] = True,
    fix: Annotated[
        Path | None, typer.Option(help="Write a cleaned copy to this new folder.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> Exit:
    """Look for faults in a dataset: where each is, and what training does with it.

    Exit code 0 when training uses everything, 3 when it, or training with masks, skips something, 1 when it cannot
    start. With --fix it is that of the copy.

    Examples:

        opendetr data check my-data

        opendetr data check my-data --model detr-r50 --no-images --json

        opendetr data check my-data --fix my-clean-data

        opendetr data check my-data --model detr-tiny-panoptic
    """
    from opendetr.data.paths import require_new
    from opendetr.data.tools.check import check_data
    from opendetr.visualize import progress_bar

    if fix is not None:
        if not images:
            raise typer.BadParameter("--fix has to read the images: leave out --no-images")
        require_new(fix)
    with progress_bar("reading images") as progress:
        report = check_data(data, _demands(model, image_size), read_images=images, progress=progress)
    if fix is not None:
        _write_copy(report, fix)
    if as_json:
        print_json(_record(report))
    else:
        _show(_text(report), sys.stdout)
    return _verdict(report, fix)


def _demands(model: str, image_size: int | None) -> Demands:
    from opendetr.data.tools.check import Demands
    from opendetr.presets import get_preset

    preset = get_preset(model)
    config = preset.data if image_size is None else preset.data.resized(image_size)
    return Demands(
        image_size=config.image_size,
        max_size=config.max_size,
        side_multiple=config.side_multiple,
        num_queries=preset.model.num_queries,
        masks=config.masks,
    )


def _write_copy(report: DataReport, folder: Path) -> None:
    from opendetr.data.tools.fix import write_fixed
    from opendetr.visualize import progress_bar

    with progress_bar("writing") as progress:
        splits = write_fixed(report, folder, progress)
    images = {image.path for data in splits.values() for image in data.images}
    say(f"{len(images)} images in {len(splits)} splits: {folder}")


def _verdict(report: DataReport, fix: Path | None) -> Exit:
    from opendetr.data.faults import Effect

    kinds = [kind for kind in report.faults if fix is None or not kind.fixable]
    stopping = [kind for kind in kinds if kind.effect is Effect.STOPS]
    if stopping:
        found = ", ".join(kind.counted(len(report.faults[kind])) for kind in stopping)
        _show(f"error: {report.folder}: training cannot start: {found}", sys.stderr)
        return Exit.FAILED
    return Exit.SOME_FAILED if any(kind.effect is Effect.SKIPS for kind in kinds) else Exit.DONE


def _record(report: DataReport) -> dict[str, Any]:
    """The report for machines, with every place."""
    findings = [
        {
            "kind": str(kind),
            "count": len(faults),
            "what": kind.counted(len(faults)),
            "effect": str(kind.effect),
            "consequence": kind.consequence,
            "mendable": kind.fixable,
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
    return {"folder": str(report.folder), "splits": splits, "findings": findings}


def _text(report: DataReport) -> str:
    from opendetr.data.faults import Effect

    blocks = [_counts_table(report)] if report.counts else []
    for effect in Effect:
        findings = [_finding(report, kind, faults) for kind, faults in report.with_effect(effect).items()]
        if findings:
            blocks.append("\n".join((_HEADINGS[effect], *findings)))
    return "\n\n".join(blocks if report.faults else [*blocks, "nothing found"])


def _finding(report: DataReport, kind: Kind, faults: tuple[DataFault, ...]) -> str:
    told_by_heading = kind.consequence in _TOLD_BY_HEADING
    lines = [f"- {kind.counted(len(faults))}{'' if told_by_heading else f', {kind.consequence}'}"]
    for fault in faults[:_SHOWN_PLACES]:
        place = fault.place.removeprefix(f"{report.folder}/")
        lines.append(f"    {place}{': ' if place and fault.detail else ''}{fault.detail}")
    if len(faults) > _SHOWN_PLACES:
        lines.append(f"    and {len(faults) - _SHOWN_PLACES:,} more (--json names all)")
    return "\n".join(lines)


def _counts_table(report: DataReport) -> str:
    """Images, objects, classes and sizes by split."""
    counts = list(report.counts.values())
    rows = [["", *report.counts]]
    rows.append(["images", *(f"{each.images:,}" for each in counts)])
    rows.append(["objects", *(f"{each.objects:,}" for each in counts)])
    first = counts[0].classes
    for name in sorted(first, key=lambda name: -sum(each.classes[name] for each in counts))[:_SHOWN_CLASSES]:
        rows.append([f"  {name}", *(_share(each.classes, name) for each in counts)])
    if len(first) > _SHOWN_CLASSES:
        rows.append([f"  and {len(first) - _SHOWN_CLASSES} more classes", *("" for _ in counts)])
    rows.append(["object sizes, resized", *("" for _ in counts)])
    for number, name in enumerate(_size_names()):
        rows.append([f"  {name}", *(f"{each.sizes[number]:,}" for each in counts)])
    return table(rows)


def _share(classes: Mapping[str, int], name: str) -> str:
    total = sum(classes.values())
    return f"{classes[name]:,} ({classes[name] / total:.0%})" if total else "0"


def _size_names() -> list[str]:
    from opendetr.data.tools.check import SIZE_LIMITS

    between = [f"{low} to {high} px" for low, high in itertools.pairwise(SIZE_LIMITS)]
    return [f"below {SIZE_LIMITS[0]} px", *between, f"{SIZE_LIMITS[-1]} px and more"]


def _show(text: str, stream: TextIO) -> None:
    """Print what may quote any name that a file holds: what cannot be printed is shown as its code."""
    shown = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
    encoding = stream.encoding or "utf-8"
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=stream)
