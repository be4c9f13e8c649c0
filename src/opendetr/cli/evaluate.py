"""`opendetr eval`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opendetr.cli.output import (
    BatchSizeOption,
    DeviceOption,
    Exit,
    JsonOption,
    MergeOption,
    MergeRule,
    ModelOption,
    StrictNoObjectOption,
    WeightsOption,
    command,
    file_to_write,
    in_range,
    number,
    print_json,
    say,
    say_unreadable,
    table,
    write_json,
)
from opendetr.recipe import DEFAULT_MODEL

if TYPE_CHECKING:
    from opendetr.data import DetectionData
    from opendetr.inference import Predictor


class MaskSource(StrEnum):
    """The masks to evaluate against; the values are those of `DataConfig.masks`."""

    NONE = "none"
    AUTO = "auto"
    INSTANCES = "instances"
    PANOPTIC = "panoptic"


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The options of `opendetr eval`, in the order of its help."""

    data: Annotated[Path, typer.Argument(help="The dataset folder.")]
    weights: WeightsOption = DEFAULT_MODEL
    model: ModelOption = None
    split: Annotated[
        str | None,
        typer.Option(help="The split to evaluate on. [default: that of the run, else val]", show_default=False),
    ] = None
    batch_size: BatchSizeOption = 8
    layers: Annotated[bool, typer.Option("--layers", help="Also evaluate each decoder layer.")] = False
    masks: Annotated[
        MaskSource | None,
        typer.Option(
            help="Ground-truth masks: outlines (instances), panoptic maps, those that the dataset has (auto), or none. "
            "[default: as the model was trained]",
            show_default=False,
        ),
    ] = None
    merge: MergeOption = MergeRule.DEFAULT
    panoptic_score: Annotated[
        float | None,
        typer.Option(
            callback=in_range(0, 1),
            help="Minimum score of a query in a panoptic map. [default: 0.85; 0.4 for sigmoid scores]",
            show_default=False,
        ),
    ] = None
    strict_no_object: StrictNoObjectOption = False
    report: Annotated[
        Path | None,
        typer.Option(
            callback=file_to_write,
            help="Write a report to this file: a page with the metrics, confusion matrix, curves and worst images. "
            "[default: report-SPLIT.html in the run folder; none for other weights]",
            show_default=False,
        ),
    ] = None
    predictions: Annotated[
        Path | None,
        typer.Option(
            callback=file_to_write, help="Write the detections to this file as COCO results.", show_default=False
        ),
    ] = None
    device: DeviceOption = "auto"
    as_json: JsonOption = False


@command
def evaluate(options: EvalOptions) -> Exit:
    """Evaluate a detector on a dataset: the twelve COCO metrics, AP per class, and score thresholds.

    For each class, it reports AP, and precision, recall and F1 of boxes (IoU 0.5) at the score threshold that maximises
    F1. Classes without ground truth are left out.

    A page with all results is left in the run folder as report-SPLIT.html, or written to --report.

    If the model has a mask head and the dataset has masks, it also reports the twelve metrics of masks, and panoptic
    quality for panoptic maps.

    Examples:

        opendetr eval my-data --weights runs/deformable-detr-tiny

        opendetr eval my-data --weights runs/deformable-detr-tiny --split test --layers

        opendetr eval coco --weights detr-r50 --json --predictions results.json --report detr-r50.html

        opendetr eval my-data --weights detr-r50-panoptic --merge published --batch-size 1
    """
    from opendetr.inference import load
    from opendetr.visualize import progress_bar

    if options.predictions is not None:  # an evaluation can take hours
        options.predictions.parent.mkdir(parents=True, exist_ok=True)
    detector = load(
        options.weights, model=options.model, device=options.device, strict_no_object=options.strict_no_object
    )
    split = options.split or detector.preset.data.val_split or "val"
    data = _open(detector, options, split)
    say(f"{split}: {data.summary()}")
    for line in detector.class_differences(data):
        say(line)
    with progress_bar("evaluating") as progress:
        scores = detector.evaluate(
            data,
            batch_size=options.batch_size,
            layers=options.layers,
            merge=options.merge.value,
            panoptic_score=options.panoptic_score,
            progress=progress,
        )
    if options.predictions is not None:
        write_json(options.predictions, scores.results)
    report = _write_report(detector, options, data, scores)
    if options.as_json:
        facts = {"weights": options.weights, "data": str(options.data), "split": split, "images": len(data),
                 "report": None if report is None else str(report)}  # fmt: skip
        record = asdict(scores)
        record.pop("results", None)
        print_json(facts | record)
    else:
        _print(scores)
        if report is not None:
            print(f"report: {report}")
    return say_unreadable(scores.unreadable, len(data))


def _write_report(detector: Predictor, options: EvalOptions, data: DetectionData, scores: Any) -> Path | None:
    """Write the report and return its path; None if there is none. Without --report, a failure is a warning."""
    import yaml

    from opendetr.config import to_dict
    from opendetr.evaluation import (
        dataset_detections,
        dataset_section,
        report_sections,
        settings_section,
        write_page,
    )

    run = Path(options.weights)
    if options.report is None and not (run / "config.yaml").is_file():
        return None
    path = options.report or run / f"report-{data.split}.html"
    size = sum(parameter.numel() for parameter in detector.model.parameters())
    facts = {
        "model": f"{detector.preset.name}, {size / 1e6:.1f} million parameters",
        "weights": options.weights,
        "evaluated on": f"{data.folder.resolve().name}, {data.split}: {data.size()}",
        "time": f"{1000 * scores.seconds_per_image:.0f} ms per image on {detector.device}",
    }
    if scores.unreadable:
        facts["unreadable images"] = str(len(scores.unreadable))
    sections = [
        *report_sections(scores, dataset_detections(scores, data)),
        dataset_section({data.split: data}),
        settings_section(yaml.safe_dump(to_dict(detector.preset), sort_keys=False, width=120)),
    ]
    try:
        return write_page(path, f"Evaluation of {run.name}", sections, facts=facts)
    except OSError as error:
        if options.report is not None:
            raise
        say(f"warning: {path} was not written: {error.strerror or error}")
        return None


def _open(detector: Predictor, options: EvalOptions, split: str) -> DetectionData:
    """Open the split. Raises ConfigError for mask options if the model or the dataset has no masks."""
    from opendetr.config import ConfigError

    has_merge, has_panoptic_score = options.merge is not MergeRule.DEFAULT, options.panoptic_score is not None
    of_masks = {
        "--masks": options.masks not in (None, MaskSource.NONE),
        "--merge": has_merge,
        "--panoptic-score": has_panoptic_score,
    }
    given = [option for option, is_given in of_masks.items() if is_given]
    if given and not detector.has_masks:
        raise ConfigError(
            f"{options.weights}: has no mask head, only boxes are evaluated: leave out {' and '.join(given)}"
        )
    data = detector.open_split(options.data, split, masks=options.masks.value if options.masks else None)
    if has_merge and data.masks == "none":
        raise ConfigError(f"{options.data}: was read without masks, only boxes are evaluated: leave out --merge")
    if has_panoptic_score and data.masks != "panoptic":
        raise ConfigError(f"{options.data}: was read without panoptic maps: leave out --panoptic-score")
    return data


def _print(scores: Any) -> None:
    """Print the tables of an evaluation."""
    for rows in scores.tables():
        print(table([tuple(cell if isinstance(cell, str) else number(cell) for cell in row) for row in rows]))
        print()
    print(f"{scores.seconds_per_image:.3f} seconds per image")
