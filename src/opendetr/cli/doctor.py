"""`opendetr doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opendetr.cli.output import DeviceOption, JsonOption, command, print_json


@command
def doctor(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Name the cause if a run has learned nothing (its main metric stays below 0.01).

    The command reads the settings and metrics of the run and opens its data again. It predicts a few training and
    validation images with the last weights.

    Examples:

        opendetr doctor runs/deformable-detr-tiny

        opendetr doctor runs/deformable-detr-tiny --json
    """
    from opendetr.training import collect_facts, diagnose, report_lines

    facts = collect_facts(run, device=device)
    if as_json:
        causes = [{"cause": diagnosis.cause, "text": diagnosis.text} for diagnosis in diagnose(facts)]
        print_json(
            {"run": str(run), "metric": facts.metric, "best": facts.best, "steps": facts.steps, "causes": causes}
        )
        return
    lines = report_lines(facts) or [
        f"{facts.metric} reached {facts.best:.3f} in {facts.steps} steps: the run has learned something"
    ]
    print("\n".join(lines))
