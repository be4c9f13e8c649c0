"""`opendetr compare`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opendetr.cli.output import (
    BatchSizeOption,
    DataOption,
    DeviceOption,
    Exit,
    ImagesOption,
    JsonOption,
    WeightsArgument,
    command,
    file_to_write,
    number,
    print_json,
    say,
    say_unreadable,
    table,
    wrong_value,
)

if TYPE_CHECKING:
    from opendetr.analysis import Comparison, Difference
    from opendetr.data import DetectionData

_NUM_CHANGES = 10  # images that are named


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The options of `opendetr compare`, in the order of its help."""

    run_a: WeightsArgument
    run_b: Annotated[str, typer.Argument(help="Likewise.")]
    data: DataOption
    split: Annotated[
        str | None,
        typer.Option(help="The split to compare on. [default: that of the first run, else val]", show_default=False),
    ] = None
    images: ImagesOption = None
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
    from opendetr.inference import load
    from opendetr.visualize import progress_bar, require_format, save_image

    runs = (options.run_a, options.run_b)
    if options.chart is not None:
        try:
            require_format(options.chart)
        except ValueError as error:
            raise wrong_value("chart", str(error)) from None
        options.chart.parent.mkdir(parents=True, exist_ok=True)
    detectors = [load(run, device=options.device) for run in runs]
    for detector in detectors:
        require_detector(detector)
    require_common_classes(detectors[0].names, detectors[1].names, runs)
    data = detectors[0].open_split(options.data, options.split, masks="none")
    say(f"{data.split}: {data.summary()}")
    if options.images is not None:
        data = detectors[0].preset.data.evaluation_subset(data, options.images)
    collected = []
    for name, detector in zip("AB", detectors, strict=True):
        with progress_bar(f"predicting with {name}") as progress:
            collected.append(collect(detector, data, batch_size=options.batch_size, progress=progress))
    comparison = compare_collected(*collected)
    if options.chart is not None:
        save_image(draw_comparison(comparison, runs), options.chart)
    changes = [
        {"image": data.file_name(data.images[each.image]), "errors_a": each.errors_a, "errors_b": each.errors_b}
        for each in comparison.changes
    ]
    if options.as_json:
        print_json({"a": runs[0], "b": runs[1], "data": str(options.data)} | asdict(comparison) | {"changes": changes})
    else:
        _print(comparison, data)
    return say_unreadable(collected[0].unreadable, len(data))


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
