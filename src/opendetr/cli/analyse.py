"""`opendetr analyse`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opendetr.cli.output import (
    BatchSizeOption,
    DataOption,
    DeviceOption,
    Exit,
    ImagesOption,
    JsonOption,
    ModelOption,
    WeightsArgument,
    command,
    folder_to_write,
    number,
    print_json,
    say,
    say_unreadable,
    table,
)
from opendetr.cli.predict import require_empty

if TYPE_CHECKING:
    from opendetr.analysis import Analysis

_FOLDER = "analysis"
_ATTENTION, _FIGURES = "attention", "figures"  # subfolders
_NUM_ATTENTION = 20  # images whose attention is shown


@dataclass(frozen=True, kw_only=True)
class AnalyseOptions:
    """The options of `opendetr analyse`, in the order of its help."""

    run: WeightsArgument
    data: DataOption
    split: Annotated[
        str | None,
        typer.Option(help="The split to analyse. [default: that of the run, else val]", show_default=False),
    ] = None
    images: ImagesOption = None
    all_queries: Annotated[bool, typer.Option("--all-queries", help="Draw all queries instead of 20.")] = False
    figures: Annotated[
        bool, typer.Option("--figures", help="Also draw the attention as figures for papers, in figures/.")
    ] = False
    exact: Annotated[
        bool, typer.Option("--exact", help="Also write the exact attention weights as JSON, in attention/.")
    ] = False
    out: Annotated[
        Path | None,
        typer.Option(
            callback=folder_to_write,
            help="The folder for the page. [default: analysis in the run folder, else analysis]",
            show_default=False,
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write to --out even if it has files, and replace those of equal name.")
    ] = False
    model: ModelOption = None
    batch_size: BatchSizeOption = 8
    device: DeviceOption = "auto"
    as_json: JsonOption = False


@command
def analyse(options: AnalyseOptions) -> Exit:
    """Look inside a detector: attention, errors, certainty, decoder layers, queries, the dataset, and cost.

    It runs the detector on the dataset once, and writes a page that needs no other files (index.html), the charts as
    PNG files, and all numbers (analysis.json). On the page, the attention of 20 images can be explored with the mouse
    or the keyboard.

    Examples:

        opendetr analyse runs/mine --data my-data

        opendetr analyse deformable-detr-tiny --data my-data --images 100 --out my-analysis

        opendetr analyse runs/mine --data my-data --split test --overwrite --json
    """
    run = Path(options.run)
    out = options.out or (run / _FOLDER if run.is_dir() else Path(_FOLDER))
    if not options.overwrite:
        require_empty(out, "index.html")

    from opendetr.analysis import (
        analyse,
        attention_fragment,
        attention_of,
        require_detector,
        write_analysis,
        write_exact,
        write_figures,
    )
    from opendetr.data import spread
    from opendetr.inference import load
    from opendetr.visualize import progress_bar

    detector = load(options.run, model=options.model, device=options.device)
    require_detector(detector)
    data = detector.open_split(options.data, options.split, masks="none")
    say(f"{data.split}: {data.summary()}")
    with progress_bar("predicting") as progress:
        analysed = analyse(detector, data, images=options.images, batch_size=options.batch_size, progress=progress)
    shown = spread(data.images, min(_NUM_ATTENTION, options.images or _NUM_ATTENTION))
    attentions = list(attention_of(detector, data, shown))
    page = write_analysis(
        out,
        analysed,
        num_queries=None if options.all_queries else 20,
        sections=[("Attention", attention_fragment(attentions))] if attentions else [],
    )
    if options.figures:
        write_figures(out / _FIGURES, attentions)
    if options.exact:
        write_exact(out / _ATTENTION, attentions)
    if options.as_json:
        print_json({"page": str(page)} | analysed.analysis.to_dict())
    else:
        _print(analysed.analysis)
        print(page)
    return say_unreadable(analysed.analysis.unreadable, analysed.collected.num_images)


def _print(analysis: Analysis) -> None:
    """Print the metrics with their intervals, the errors, and the decoder layers."""
    from opendetr.analysis import KINDS, with_interval

    metrics: list[tuple[str, ...]] = [("metric", "value (95 % interval)")]
    metrics += [(name, with_interval(estimate)) for name, estimate in analysis.intervals.metrics.items()]
    errors: list[tuple[str, ...]] = [("error", "AP50 lost", "meaning")]
    errors += [(kind, number(analysis.errors.lost[kind]), meaning) for kind, meaning in KINDS.items()]
    layers: list[tuple[str, ...]] = [("decoder layer", "AP", "with NMS")]
    columns: Any = zip(analysis.layers.ap, analysis.layers.ap_nms, strict=True)
    layers += [(str(layer), number(ap), number(nms)) for layer, (ap, nms) in enumerate(columns, 1)]
    for rows in (metrics, errors, layers):
        print(table(rows))
        print()
