"""`opendetr data ...`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from opendetr.cli.output import JsonOption, answer, command, progress_bar

app = typer.Typer(help="Data sets: make one.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _data() -> None:
    """Data sets: make one."""


@command
def make(
    folder: Annotated[Path, typer.Argument(help="Where to; empty or not there, or scenes made before.")],
    train: Annotated[int, typer.Option(min=0, help="Scenes to train on.")] = 2000,
    val: Annotated[int, typer.Option(min=0, help="Scenes to score on.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 256,
    hard: Annotated[bool, typer.Option("--hard", help="Up to 40 objects, smaller ones.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a data set of drawn scenes, in COCO format with boxes, polygons and panoptic masks.

    Examples:

        opendetr data make scenes

        opendetr data make scenes-hard --hard --train 500 --val 100 --seed 7
    """
    from opendetr.data.scenes import SceneConfig, write_scenes

    counts = {split: count for split, count in {"train": train, "val": val}.items() if count}
    config = replace(SceneConfig.hard() if hard else SceneConfig(), size=size)
    with progress_bar("drawing") as progress:
        write_scenes(folder, counts=counts, seed=seed, config=config, progress=progress)
    if as_json:
        answer({"folder": str(folder), "images": counts, "seed": seed, "hard": hard, "size": size})
    else:
        print(f"{sum(counts.values())} scenes: {folder}")


app.command()(make)
