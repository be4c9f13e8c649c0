"""`opendetr ablate`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opendetr.cli.output import (
    DeviceOption,
    Exit,
    JsonOption,
    command,
    folder_to_write,
    in_range,
    number,
    print_json,
    say,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from opendetr.analysis import Scale, Setting


class ScaleName(StrEnum):
    """The scales; the values are the names in `analysis.SCALES`."""

    TINY = "tiny"
    SMALL = "small"
    PAPER = "paper"


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """The options of `opendetr ablate`, in the order of its help."""

    data: Annotated[
        Path | None,
        typer.Argument(help="The dataset folder. [default: easy scenes, for --scale tiny]", show_default=False),
    ] = None
    scale: Annotated[
        ScaleName,
        typer.Option(
            help="tiny: half an hour a run on one CPU core; small: an hour on a GPU; paper: prints the commands for "
            "32 GPUs."
        ),
    ] = ScaleName.TINY
    out: Annotated[
        Path, typer.Option(callback=folder_to_write, help="The folder of the study; a later call continues it.")
    ] = Path("ablation")
    only: Annotated[
        list[str] | None, typer.Option(help="A setting to run; may be repeated. [default: all]", show_default=False)
    ] = None
    list_settings: Annotated[bool, typer.Option("--list", help="List the settings, and exit.")] = False
    images: Annotated[
        int | None,
        typer.Option(
            callback=in_range(1),
            help="Training images of a run, repeated ones counted. [default: that of the scale]",
            show_default=False,
        ),
    ] = None
    device: DeviceOption = "auto"
    as_json: JsonOption = False


@command
def ablate(options: AblateOptions) -> Exit:
    """Repeat the ablations of the DETR paper, and its comparison with Faster R-CNN, RetinaNet and SSD.

    Every setting is trained for the same number of images, the baseline with three seeds. Each run leaves a small file
    in results/. The command can be interrupted and repeated, and several calls can share the work of one folder. Each
    call prints the tables of all finished runs with the numbers of the papers beside them, and writes them as
    table.json, table.md and table.png.

    Examples:

        opendetr ablate --out ablation

        opendetr ablate --out ablation --only baseline --only no-ffn

        opendetr ablate my-data --scale small --out ablation-mine

        opendetr ablate coco --scale paper --out ablation-coco

        opendetr ablate --list
    """
    from opendetr.analysis import (
        SCALES,
        InterruptedStudyError,
        collect_study,
        open_study,
        run_study,
        study_commands,
        write_tables,
    )

    scale = SCALES[options.scale.value]
    settings = scale.choose(options.only or [])
    if options.list_settings:
        _print_settings(scale, settings, as_json=options.as_json)
        return Exit.DONE
    study = open_study(options.out, scale, options.data, images=options.images, device=options.device)
    left: list[str] = []
    if scale.nodes:
        collect_study(study, settings)
        for line in study_commands(study, settings):
            print(line)
    else:
        try:
            left = run_study(study, settings, say)
        except InterruptedStudyError as error:
            say(f"error: {error}")
            return Exit.FAILED
    content = write_tables(study)
    if options.as_json:
        print_json(content)
    elif any(row["runs"] for row in (*content["ablations"], *content["detectors"])):
        _print(content)
        print(options.out / "table.md")
    return Exit.SOME_FAILED if left else Exit.DONE


def _print_settings(scale: Scale, settings: Sequence[Setting], *, as_json: bool) -> None:
    if as_json:
        rows = [{"name": each.name, "group": each.group, "title": each.title, "runs": each.runs} for each in settings]
        print_json({"scale": scale.name, "about": scale.about, "settings": rows})
        return
    print(scale.about)
    print()
    lines = [(each.name, each.group, each.title, str(len(each.runs))) for each in settings]
    print(table([("setting", "what varies", "what it is", "runs"), *lines]))


def _print(content: Mapping[str, Any]) -> None:
    """Print short versions of both tables."""
    from opendetr.analysis import difference_text

    rows = [
        (row["setting"], row["title"], str(row["runs"]), number(row["AP"]), difference_text(row), *_published(row))
        for row in content["ablations"]
    ]
    print(table([("setting", "what it is", "runs", "AP", "difference", "published AP", "difference"), *rows]))
    print()
    detectors = [
        (row["title"], str(row["runs"]), *map(number, (row["AP"], row["nms"], row["no_nms"])), _published(row)[0])
        for row in content["detectors"]
    ]
    print(table([("detector", "runs", "AP", "with NMS", "without NMS", "published AP"), *detectors]))


def _published(row: Mapping[str, Any]) -> tuple[str, str]:
    """The published AP and difference, times 100."""
    published = row["published"] or {"AP": None, "difference": None}
    ap, difference = published["AP"], published["difference"]
    return "-" if ap is None else f"{ap:.1f}", "-" if difference is None else f"{difference:+.1f}"
