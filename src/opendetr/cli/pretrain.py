"""`opendetr pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from opendetr.cli.output import Exit, command
from opendetr.cli.running import RunOptions, execute

if TYPE_CHECKING:
    from opendetr.training import Run


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(RunOptions):
    """The options of `opendetr pretrain`."""

    command: ClassVar[str] = "pretrain"
    images: ClassVar[str] = "the images'"

    data: Annotated[
        Path | None, typer.Argument(help="A folder of images, searched recursively.", show_default=False)
    ] = None
    model: Annotated[
        str | None, typer.Option(help="up-detr-tiny or up-detr-r50. [default: up-detr-tiny]", show_default=False)
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            help="What to start from: published, imagenet (backbone only), none, a run folder, or a file or address of "
            "weights. [default: published, else imagenet, else none]",
            show_default=False,
        ),
    ] = None
    num_queries: Annotated[
        int | None,
        typer.Option(help="Number of queries, a multiple of the number of patches.", show_default=False),
    ] = None
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Fraction held out for validation if no folder is named val.", show_default=False),
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="Refuse unreadable images instead of skipping them.")] = False
    best_by: Annotated[
        str | None,
        typer.Option(help="The metric that selects the best checkpoint. [default: found]", show_default=False),
    ] = None


@command
def pretrain(options: PretrainOptions) -> Exit:
    """Pre-train a detector on a folder of images without annotations (UP-DETR).

    Patches are cut from the images at random, and the model locates them. The held-out images show how many it finds,
    beside a control with the patches of another image. `opendetr train DATA --weights RUN` then trains a detector.

    Examples:

        opendetr pretrain photos --time 2h --out runs/pretrained

        opendetr train my-data --weights runs/pretrained

        opendetr pretrain photos --epochs 60 --batch-size 16 --set data.patch_size=96

        opendetr pretrain imagenet --model up-detr-r50 --processes 8 --precision bf16

        opendetr pretrain --resume runs/pretrained
    """
    return execute(options, _next_commands)


def _next_commands(run: Run) -> Sequence[str]:
    return (
        f"train DATA --weights {run.folder}",
        f"{run.preset.example} --weights {run.folder}",
        f"eval {run.data} --weights {run.folder}",
    )
