"""`opendetr eval`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    table,
    write_json,
)
from opendetr.recipe import DEFAULT_MODEL

if TYPE_CHECKING:
    from opendetr.data import DetectionData
    from opendetr.evaluation import Evaluation
    from opendetr.inference import Predictor


_NUM_NAMED = 5  # classes without ground truth that are named


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

    If the model has a mask head and the dataset has masks, it also reports the twelve metrics of masks, and panoptic
    quality for panoptic maps.

    Examples:

        opendetr eval my-data --weights runs/deformable-detr-tiny

        opendetr eval my-data --weights runs/deformable-detr-tiny --split test --layers

        opendetr eval coco --weights detr-r50 --json --predictions results.json

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
    if options.as_json:
        facts = {"weights": options.weights, "data": str(options.data), "split": split, "images": len(data)}
        record = asdict(scores)
        record.pop("results")
        print_json(facts | record)
    else:
        _print(scores, data)
    if scores.unreadable:
        say(f"{len(scores.unreadable)} of {len(data)} images could not be read and count as having no detections")
        return Exit.SOME_FAILED
    return Exit.DONE


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


def _print(scores: Evaluation, data: DetectionData) -> None:
    from opendetr.evaluation import describe_metric

    print(table([(name, number(value), describe_metric(name)) for name, value in scores.metrics.items()]))
    print()
    print(_class_table(scores, data))
    if scores.per_layer:
        layers = [(str(layer), number(value)) for layer, value in enumerate(scores.per_layer, start=1)]
        print()
        print(table([("decoder layer", "AP"), *layers]))
    print(f"\n{scores.seconds_per_image:.3f} seconds per image")


def _class_table(scores: Evaluation, data: DetectionData) -> str:
    """One row for each class with a metric, one for all classes, and a line about the classes without ground truth.

    The threshold, precision, recall and F1 of all classes are those of one common threshold.
    """
    metrics, points = scores.metrics, scores.operating_points
    columns = {"AP": (scores.per_class, metrics["AP"])}
    if scores.mask_per_class:
        columns["mask AP"] = (scores.mask_per_class, metrics.get("mask_AP"))
    if scores.panoptic_per_class:
        for name in ("PQ", "SQ", "RQ"):
            per_class = {class_: quality[name] for class_, quality in scores.panoptic_per_class.items()}
            columns[name] = (per_class, metrics.get(name))
    for head, name in {"threshold": "threshold", "precision": "precision", "recall": "recall", "F1": "f1"}.items():
        per_class = {class_: getattr(point, name) for class_, point in points.per_class.items()}
        columns[head] = (per_class, getattr(points.overall, name))
    names = list(dict.fromkeys(name for per_class, _ in columns.values() for name in per_class))
    known = [name for name in names if any(per_class.get(name) is not None for per_class, _ in columns.values())]
    objects = _object_counts(data)
    rows = [
        (name, f"{objects[name]:,}", *(number(per_class.get(name)) for per_class, _ in columns.values()))
        for name in known
    ]
    total = ("all classes", f"{objects.total():,}", *(number(value) for _, value in columns.values()))
    lines = [table([("class", "objects", *columns), *rows, total])]
    missing = [name for name in names if name not in known]
    if missing:
        more = ", ..." if len(missing) > _NUM_NAMED else ""
        lines.append(
            f"no ground truth for {len(missing)} of {len(names)} classes: {', '.join(missing[:_NUM_NAMED])}{more}"
        )
    return "\n".join(lines)


def _object_counts(data: DetectionData) -> Counter[str]:
    """The number of objects of each class, without crowd regions."""
    names = dict(zip(data.categories.ids, data.categories.distinct_names, strict=True))
    return Counter(names[obj.category_id] for image in data.images for obj in image.objects if not obj.crowd)
