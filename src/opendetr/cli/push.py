"""`opendetr push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opendetr.cli.output import JsonOption, ModelOption, command, print_json


@command
def push(
    weights: Annotated[
        str,
        typer.Argument(help="A run folder (its best checkpoint), a weights file, or a name from `opendetr models`."),
    ],
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub; created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a detector to the Hugging Face Hub. Other commands then load it with --weights hf:owner/name.

    You must be logged in (`hf auth login`), or HF_TOKEN must contain a token with write access.

    Examples:

        opendetr push runs/mine anna/blood-cells

        opendetr predict photo.jpg --weights hf:anna/blood-cells
    """
    from opendetr.export import push as upload
    from opendetr.inference import load
    from opendetr.network import OFFLINE, is_offline
    from opendetr.weights import WeightsError

    if is_offline():
        raise WeightsError(f"push: {OFFLINE} is set; unset it, or push without --offline")
    detector = load(weights, model=model, device="cpu")
    address = upload(
        detector.model,
        detector.preset,
        detector.categories,
        repository,
        metrics=_metrics(Path(weights)),
        thresholds=detector.thresholds,
        private=private,
    )
    if as_json:
        print_json({"repository": repository, "address": address, "model": detector.preset.name})
    else:
        print(f"{detector.preset.name}: {address}")


def _metrics(folder: Path) -> dict[str, float]:
    """The metrics of the best checkpoint of a run folder, such as AP, mask_AP and PQ; empty for other weights."""
    from opendetr.evaluation import describe_metric
    from opendetr.training import find_checkpoint, load_checkpoint

    best = find_checkpoint(folder / "best")
    metrics = {} if best is None else load_checkpoint(best).facts["metrics"]
    whole = {name: value for name, value in metrics.items() if "/" not in name}
    return {name: value for name, value in whole.items() if value is not None and describe_metric(name)}
