"""`opendetr train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opendetr.cli.output import Exit, JsonOption, answer, command, say

_EXAMPLES = """
Train a detector on a folder of images and boxes, COCO or Pascal VOC.

Examples:

    opendetr train my-data --time 30m

    opendetr train my-data --weights none --epochs 50 --image-size 320

    opendetr train my-data --model detr-r50 --batch-size 4 --set recipe.precision=bf16

    opendetr train my-data --config runs/detr-tiny/config.yaml --seed 1

    opendetr train --resume runs/detr-tiny
"""


@command
def train(
    data: Annotated[Path | None, typer.Argument(help="The data set folder.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="A name that `opendetr models` lists. [default: detr-tiny]", show_default=False)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="What to start from: published, imagenet (backbone only), none, or a run folder or file of weights. "
            "[default: published, else imagenet]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. [default: runs/MODEL]", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Length in passes over the data.", show_default=False)] = None,
    time: Annotated[
        str | None, typer.Option(help="Length as a time, such as 45s, 30m or 1h30m.", show_default=False)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default=False)] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; the backbone's keeps its proportion.", show_default=False)
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Short side in pixels.", show_default=False)] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Share set aside for validation where there is none.", show_default=False)
    ] = None,
    train_split: Annotated[str | None, typer.Option(help="The split to train on.", show_default=False)] = None,
    val_split: Annotated[str | None, typer.Option(help="The split to score on.", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that load images.", show_default=False)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse faulty images and boxes.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.", show_default=False)] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as key=value; may be repeated.", show_default=False)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> Exit:
    """Train a detector; the help text is `_EXAMPLES`."""
    data_settings = {"val_fraction": val_fraction, "train_split": train_split, "val_split": val_split,
                     "num_workers": workers, "strict": strict or None}  # fmt: skip
    named = {name: value for name, value in data_settings.items() if value is not None}
    choices = {"model": model, "weights": weights, "out": out, "epochs": epochs, "time": time, "config": config,
               "batch_size": batch_size, "learning_rate": lr, "image_size": image_size, "seed": seed}  # fmt: skip
    if resume is None and data is None:
        raise typer.BadParameter("name the data set folder, or a run folder with --resume")
    if resume is not None and (data or named or changes or any(value is not None for value in choices.values())):
        raise typer.BadParameter("--resume keeps the settings of the run: no others may be given")

    from opendetr import training

    if resume is not None:
        run = training.resume(resume, device=device, say=say)
    else:
        assert data is not None
        run = training.train(data, **choices, changes=[{"data": named}, *(changes or [])], device=device, say=say)  # type: ignore[arg-type]
    result = run.result
    if as_json:
        answer({"folder": str(run.folder), "steps": result.step, "interrupted": result.interrupted,
                "seconds": result.seconds, "metrics": result.metrics, "best": result.best})  # fmt: skip
    else:
        print(run.folder)
    if result.interrupted:
        say(f"error: interrupted after {result.step} steps; go on with `opendetr train --resume {run.folder}`")
        return Exit.FAILED
    return Exit.DONE


train.__doc__ = _EXAMPLES
