"""`opendetr train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opendetr.cli import launch
from opendetr.cli.output import Exit, JsonOption, command, print_json, say

_EXAMPLES = """
Train a detector on a folder of images and boxes: COCO, Pascal VOC, YOLO, or a CSV table.

Examples:

    opendetr train my-data --time 30m

    opendetr train my-data --weights none --epochs 50 --image-size 320

    opendetr train my-data --model detr-r50 --batch-size 4 --precision bf16 --freeze backbone

    opendetr train my-data --epochs 100 --ema 0.999 --patience 5 --best-by AP50

    opendetr train my-data --weights runs/mine --freeze-detector

    opendetr train my-data --batch-size 16 --processes 4

    opendetr train my-data --config runs/deformable-detr-tiny/config.yaml --seed 1

    opendetr train --resume runs/deformable-detr-tiny
"""


@command
def train(
    data: Annotated[Path | None, typer.Argument(help="The dataset folder.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A name that `opendetr models` lists. [default: deformable-detr-tiny]", show_default=False),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="What to start from: published, imagenet (backbone only), none, a run folder, a file or address of "
            "weights, or hf:owner/name. [default: published, else imagenet, else none]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. [default: runs/MODEL]", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Length in passes over the data.", show_default=False)] = None,
    max_steps: Annotated[int | None, typer.Option(help="Length in optimiser steps.", show_default=False)] = None,
    time: Annotated[
        str | None, typer.Option(help="Length as a time, such as 45s, 30m or 1h30m.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, of all processes together.", show_default=False)
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a step computes one by one to save memory.", show_default=False)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; the backbone's keeps its proportion.", show_default=False)
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Short side in pixels.", show_default=False)] = None,
    num_queries: Annotated[
        int | None,
        typer.Option(min=1, help="The most objects that an image can have; new queries are split from the old."),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="What training does to the images: detr, colour, mosaic, copy-paste, or strong, which is all of them.",
            show_default=False,
        ),
    ] = None,
    batch_pixels: Annotated[
        int | None,
        typer.Option(help="Most pixels of a batch, padding included; the largest comes first.", show_default=False),
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Share set aside for validation where there is none.", show_default=False)
    ] = None,
    train_split: Annotated[str | None, typer.Option(help="The split to train on.", show_default=False)] = None,
    val_split: Annotated[str | None, typer.Option(help="The split to score on.", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that load images.", show_default=False)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse faulty images and boxes.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16, or fp16 on a CUDA GPU.", show_default=False)
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time, the same numbers.")
    ] = False,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="A part to leave as it is, such as backbone; may be repeated.", show_default=False),
    ] = None,
    freeze_detector: Annotated[
        bool,
        typer.Option(
            "--freeze-detector",
            help="Train a mask head alone, around the trained detector of --weights: 25 epochs unless told otherwise.",
        ),
    ] = False,
    ema: Annotated[
        float | None,
        typer.Option(help="Score and keep a moving average of the weights: its decay, as 0.999.", show_default=False),
    ] = None,
    best_by: Annotated[
        str | None,
        typer.Option(
            help="Score that the best checkpoint has most of: AP, AP50, AP/cat, mask_AP, PQ, ...", show_default=False
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without a new best one.", show_default=False)
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write files for TensorBoard, too.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.", show_default=False)] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as key=value; may be repeated.", show_default=False)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.", show_default=False)] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Train in so many processes on this machine.", show_default=False)
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Print the command to run on each of so many machines, and stop.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> Exit:
    """Train a detector; the help text is `_EXAMPLES`."""
    data_settings = {"val_fraction": val_fraction, "train_split": train_split, "val_split": val_split,
                     "num_workers": workers, "strict": strict or None, "augment": augment,
                     "batch_pixels": batch_pixels}  # fmt: skip
    named = {name: value for name, value in data_settings.items() if value is not None}
    recipe_settings = {"accumulate": accumulate, "precision": precision, "ema_decay": ema, "best_by": best_by,
                       "patience": patience, "freeze": freeze or None, "tensorboard": tensorboard or None,
                       "gradient_checkpointing": gradient_checkpointing or None}  # fmt: skip
    of_recipe = {name: value for name, value in recipe_settings.items() if value is not None}
    choices = {"model": model, "weights": weights, "out": out, "epochs": epochs, "max_steps": max_steps, "time": time,
               "config": config, "batch_size": batch_size, "learning_rate": lr, "image_size": image_size,
               "num_queries": num_queries, "seed": seed}  # fmt: skip
    if resume is None and data is None:
        raise typer.BadParameter("name the dataset folder, or a run folder with --resume")
    given = (data, named, of_recipe, changes, freeze_detector, *(value is not None for value in choices.values()))
    if resume is not None and any(given):
        raise typer.BadParameter("--resume keeps the settings of the run: no others may be given")
    if nodes is not None:
        print(launch.command_line(nodes, processes or 1))
        return Exit.DONE
    if processes is not None and processes > 1:
        return launch.run(processes)

    from opendetr import training
    from opendetr.distributed import ProcessError, is_main

    try:
        if resume is not None:
            run = training.resume(resume, device=device, say=say)
        else:
            assert data is not None
            settings = [{"data": named, "recipe": of_recipe}, *(changes or [])]
            options = {**choices, "freeze_detector": freeze_detector, "changes": settings}
            run = training.train(data, **options, device=device, say=say)  # type: ignore[arg-type]
    except ProcessError as error:
        if is_main():
            say(f"error: {error}")
        return Exit.FAILED
    result = run.result
    if not is_main():
        return Exit.FAILED if result.interrupted else Exit.DONE
    if as_json:
        print_json({"folder": str(run.folder), "steps": result.step, "interrupted": result.interrupted,
                "seconds": result.seconds, "metrics": result.metrics, "best": result.best})  # fmt: skip
    else:
        print(run.folder)
    if result.interrupted:
        say(f"error: interrupted after {result.step} steps; go on with `opendetr train --resume {run.folder}`")
        return Exit.FAILED
    return Exit.DONE


train.__doc__ = _EXAMPLES
