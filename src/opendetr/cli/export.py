"""`opendetr export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from opendetr.cli.output import JsonOption, ModelOption, command, print_json, say


class Format(StrEnum):
    """The layouts in which a detector can be written."""

    HUGGINGFACE = "huggingface"
    OFFICIAL = "official"


@command
def export(
    weights: Annotated[str, typer.Argument(help="A run folder, a file of weights, or a name of `opendetr models`.")],
    out: Annotated[Path, typer.Argument(help="A new folder for huggingface, a new .pth file for official.")],
    format: Annotated[Format, typer.Option(help="The layout to write.")],
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a detector for other software: a folder for transformers, or a file for the original implementation.

    transformers loads the folder with from_pretrained of AutoModelForObjectDetection and AutoImageProcessor. The
    commands of OpenDETR load it with --weights FOLDER. An official file contains neither classes nor settings: loading
    it requires --model and, for classes other than COCO's, opendetr.load(..., categories=...).

    Examples:

        opendetr export runs/mine mine-for-transformers --format huggingface

        opendetr export runs/mine mine.pth --format official
    """
    from opendetr.export import huggingface_difference
    from opendetr.inference import load

    detector = load(weights, model=model, device="cpu")
    preset = detector.preset
    detector.export(out, format.value)
    if preset.model.backbone.frozen() != preset.model.backbone:
        say("batch norm was written as frozen batch norm: evaluation is the same, training leaves it unchanged")
    if format is Format.HUGGINGFACE:
        say(f"note: {huggingface_difference(preset)}")
    if as_json:
        print_json(
            {"out": str(out), "format": format, "model": preset.name, "classes": list(detector.categories.names)}
        )
    else:
        print(f"{preset.name}, {len(detector.categories)} classes: {out}")
