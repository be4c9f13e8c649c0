"""`opendetr eval`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opendetr.cli.output import (
    DEFAULT_MODEL,
    Exit,
    JsonOption,
    MergeOption,
    MergeRule,
    ModelOption,
    WeightsOption,
    command,
    number,
    print_json,
    say,
    table,
    write_json,
)

if TYPE_CHECKING:
    from opendetr.evaluation.detection import Evaluation


class MaskSource(StrEnum):
    """What masks a score is against, as `DataConfig.masks` names them."""

    NONE = "none"
    AUTO = "auto"
    INSTANCES = "instances"
    PANOPTIC = "panoptic"


@command
def evaluate(
    data: Annotated[Path, typer.Argument(help="The dataset folder.")],
    weights: WeightsOption = DEFAULT_MODEL,
    model: ModelOption = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Which split to score on. [default: the one the run was scored on, else val]", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model together.")] = 8,
    layers: Annotated[bool, typer.Option("--layers", help="Also the AP of each decoder layer.")] = False,
    masks: Annotated[
        MaskSource | None,
        typer.Option(
            help="Score against outlines of objects, against panoptic maps, or boxes alone. "
            "[default: as the model was trained]",
            show_default=False,
        ),
    ] = None,
    merge: MergeOption = MergeRule.DEFAULT,
    panoptic_score: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Queries that score less have no part in a panoptic map. [default: 0.85; 0.4 for sigmoid scores]",
            show_default=False,
        ),
    ] = None,
    strict_no_object: Annotated[
        bool, typer.Option("--strict-no-object", help='Leave out queries whose best answer is "no object".')
    ] = False,
    predictions: Annotated[
        Path | None, typer.Option(help="Write the detections to this file, as COCO results.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: JsonOption = False,
) -> Exit:
    """Score a detector on a dataset: the twelve COCO numbers, and AP by class.

    Where the model has a mask head and the data masks, the twelve numbers of masks, too; PQ for panoptic maps.

    Examples:

        opendetr eval my-data --weights runs/deformable-detr-tiny

        opendetr eval my-data --weights runs/deformable-detr-tiny --split test --layers

        opendetr eval coco --weights detr-r50 --json --predictions results.json

        opendetr eval my-data --weights detr-r50-panoptic --merge published --batch-size 1
    """
    from opendetr.config import ConfigError
    from opendetr.data.formats.recognise import open_split
    from opendetr.inference.predictor import load
    from opendetr.visualize import progress_bar

    detector = load(weights, model=model, device=device, strict_no_object=strict_no_object)
    given = {
        "--masks": masks not in (None, MaskSource.NONE),
        "--merge": merge is not MergeRule.DEFAULT,
        "--panoptic-score": panoptic_score is not None,
    }
    of_masks = [option for option, is_given in given.items() if is_given]
    if of_masks and not detector.has_masks:
        raise ConfigError(f"{weights}: has no mask head, only boxes are scored: leave out {' and '.join(of_masks)}")
    config = detector.preset.data
    chosen = split or config.val_split or "val"
    split_data = open_split(
        data,
        chosen,
        val_fraction=config.val_fraction,
        strict=config.strict,
        masks=masks.value if masks else config.masks,
    )
    if merge is not MergeRule.DEFAULT and split_data.masks == "none":
        raise ConfigError(f"{data}: was read without masks, only boxes are scored: leave out --merge")
    if panoptic_score is not None and split_data.masks != "panoptic":
        raise ConfigError(f"{data}: was read without panoptic maps, none are scored: leave out --panoptic-score")
    say(f"{chosen}: {split_data.summary()}")
    with progress_bar("evaluating") as progress:
        scores = detector.evaluate(
            split_data,
            batch_size=batch_size,
            layers=layers,
            merge=merge.value,
            panoptic_score=panoptic_score,
            progress=progress,
        )
    if predictions is not None:
        write_json(predictions, scores.results)
    if as_json:
        record = asdict(scores)
        record.pop("results")
        print_json({"weights": weights, "data": str(data), "split": chosen, "images": len(split_data)} | record)
    else:
        _print(scores)
    if scores.unreadable:
        say(f"{len(scores.unreadable)} of {len(split_data)} images could not be read and count as without detections")
        return Exit.SOME_FAILED
    return Exit.DONE


def _print(scores: Evaluation) -> None:
    from opendetr.evaluation.names import meaning

    print(table([(name, number(value), meaning(name)) for name, value in scores.metrics.items()]))
    print()
    columns = {"AP": scores.per_class, "mask AP": scores.mask_per_class}
    for name in ("PQ", "SQ", "RQ"):
        columns[name] = {of: quality[name] for of, quality in scores.panoptic_per_class.items()}
    shown = {head: column for head, column in columns.items() if column}
    names = list(dict.fromkeys(name for column in shown.values() for name in column))
    rows = [(name, *(number(column.get(name)) for column in shown.values())) for name in names]
    print(table([("class", *shown), *rows]))
    if scores.per_layer:
        layers = [(str(layer), number(value)) for layer, value in enumerate(scores.per_layer, start=1)]
        print()
        print(table([("decoder layer", "AP"), *layers]))
    print(f"\n{scores.seconds_per_image:.3f} seconds an image")
