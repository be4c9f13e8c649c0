"""`opendetr compare`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opendetr.cli.output import (
    BatchSizeOption,
    DeviceOption,
    Exit,
    JsonOption,
    command,
    file_to_write,
    in_range,
    number,
    print_json,
    say,
    table,
)

if TYPE_CHECKING:
    from opendetr.analysis import Comparison, Difference
    from opendetr.data import DetectionData

_NUM_CHANGES = 10  # images that are named
_RUN_HELP = "A run folder, a file or address of weights, hf:owner/name, or a name that `opendetr models` lists."


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The options of `opendetr compare`, in the order of its help."""

    run_a: Annotated[str, typer.Argument(help=_RUN_HELP)]
    run_b: Annotated[str, typer.Argument(help="Likewise.")]
    data: Annotated[Path, typer.Option(help="The dataset folder.", show_default=False)]
    split: Annotated[
        str | None,
        typer.Option(help="The split to compare on. [default: that of the first run, else val]", show_default=False),
    ] = None
    images: Annotated[
        int | None,
        typer.Option(callback=in_range(1), help="Number of images, evenly spread. [default: all]", show_default=False),
    ] = None
    chart: Annotated[
        Path | None,
        typer.Option(callback=file_to_write, help="Write a chart of both to this file.", show_default=False),
    ] = None
    batch_size: BatchSizeOption = 8
    device: DeviceOption = "auto"
    as_json: JsonOption = False


@command
def compare(options: CompareOptions) -> Exit:
    """Test whether detector B differs from detector A on the same images.

    For each metric and class, it prints the difference B - A with its 95 % interval, and whether it is significant: p
    below 0.05 in a paired test that exchanges the predictions of both detectors at random, image by image; for classes
    with a correction for their number. Only classes that both know are compared. It names the images that changed most.

    Examples:

        opendetr compare runs/mine deformable-detr-tiny --data my-data

        opendetr compare runs/mine runs/mine --data my-data --images 50 --json
    """
    from opendetr.analysis import collect, compare_collected, draw_comparison, require_common_classes, require_detector
    from opendetr.data import spread
    from opendetr.inference import load
    from opendetr.visualize import progress_bar, require_format, save_image

    runs = (options.run_a, options.run_b)
    if options.chart is not None:
        require_format(options.chart)
    detectors = [load(run, device=options.device) for run in runs]
    for detector in detectors:
        require_detector(detector)
    require_common_classes(detectors[0].names, detectors[1].names, runs)
    data = detectors[0].open_split(options.data, options.split, masks="none")
    say(f"{data.split}: {data.summary()}")
    if options.images is not None and options.images < len(data):
        data = data.subset(spread(data.images, options.images), data.split)
    collected = []
    for name, detector in zip("AB", detectors, strict=True):
        with progress_bar(f"predicting with {name}") as progress:
            collected.append(collect(detector, data, batch_size=options.batch_size, progress=progress))
    comparison = compare_collected(*collected)
    if options.chart is not None:
        options.chart.parent.mkdir(parents=True, exist_ok=True)
        save_image(draw_comparison(comparison, runs), options.chart)
    changes = [
        {"image": data.file_name(data.images[each.image]), "errors_a": each.errors_a, "errors_b": each.errors_b}
        for each in comparison.changes
    ]
    if options.as_json:
        print_json({"a": runs[0], "b": runs[1], "data": str(options.data)} | asdict(comparison) | {"changes": changes})
    else:
        _print(comparison, data)
    unreadable = collected[0].unreadable
    if unreadable:
        say(f"{len(unreadable)} images could not be read and count as having no detections (first: {unreadable[0]})")
        return Exit.SOME_FAILED
    return Exit.DONE


def _print(comparison: Comparison, data: DetectionData) -> None:
    head = ("metric", "A", "B", "B - A", "95 % interval", "p", "")
    print(table([head, *(_row(name, row) for name, row in comparison.metrics.items())]))
    print()
    print(table([("class", *head[1:]), *(_row(name, row) for name, row in comparison.per_class.items())]))
    print()
    changes = comparison.changes[:_NUM_CHANGES]
    rows = [(data.file_name(data.images[each.image]), str(each.errors_a), str(each.errors_b)) for each in changes]
    print(table([("image that changed most", "errors of A", "errors of B"), *rows]) if rows else "no image changed")
    print(f"{len(comparison.changes)} of {comparison.images} images changed in the number of errors")


def _row(name: str, row: Difference) -> tuple[str, ...]:
    change = row.difference
    if change.value is None:
        return (name, "-", "-", "-", "-", "-", "")
    ends = "-" if change.low is None or change.high is None else f"{change.low:+.3f} to {change.high:+.3f}"
    p = "-" if row.p is None else f"{row.p:.3f}"
    return (
        name,
        number(row.a),
        number(row.b),
        f"{change.value:+.3f}",
        ends,
        p,
        "significant" if row.significant else "",
    )
