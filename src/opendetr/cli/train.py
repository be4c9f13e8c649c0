"""`opendetr train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from opendetr.cli.output import Exit, command
from opendetr.cli.running import RunOptions, execute

if TYPE_CHECKING:
    from opendetr.training import Run


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """The options of `opendetr train`, those of every run first."""

    command: ClassVar[str] = "train"
    images: ClassVar[str] = "the dataset"

    augment: Annotated[
        str | None,
        typer.Option(
            help="Augmentation of training images: detr, colour, mosaic, copy-paste, or strong, which is all of them.",
            show_default=False,
        ),
    ] = None
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A fault that shall not stop training, named by the message of the error; may be repeated.",
            show_default=False,
        ),
    ] = None
    freeze_detector: Annotated[
        bool,
        typer.Option(
            "--freeze-detector",
            help="Train only a mask head for the trained detector of --weights, for 25 epochs by default.",
        ),
    ] = False


@command
def train(options: TrainOptions) -> Exit:
    """Train a detector on a folder of images and boxes: COCO, Pascal VOC, YOLO, a CSV table, or MOTChallenge videos.

    Examples:

        opendetr train my-data --time 30m

        opendetr train my-data --weights none --epochs 50 --image-size 320

        opendetr train my-data --model detr-r50 --batch-size 4 --precision bf16 --freeze backbone

        opendetr train my-data --epochs 100 --ema 0.999 --patience 5 --best-by AP50

        opendetr train my-data --weights runs/pretrained --epochs 100

        opendetr train my-data --weights runs/mine --freeze-detector

        opendetr train my-data --batch-size 16 --processes 4

        opendetr train my-data --config runs/deformable-detr-tiny/config.yaml --seed 1

        opendetr train --resume runs/deformable-detr-tiny
    """
    return execute(options, _next_commands)


def _next_commands(run: Run) -> Sequence[str]:
    return (
        f"{run.preset.example} --weights {run.folder}",
        f"eval {run.data} --weights {run.folder}",
        f"train {run.data} --weights {run.folder}",
    )
